"""Published fits of over-trained, routed and MoE runs: coefficients, errors, extrapolations."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.data_laws import OverTrainingLaw
from analysis.fitting import fit_law, fit_power_law
from analysis.isoflop import isoflop_laws, isoflop_optima
from analysis.points import Points, make_points
from analysis.routed import RoutedLaw
from analysis.routed_fit import fit_routed, flat_range
from analysis.settings import FitSettings

SQUARES = FitSettings(loss="squares", replicates=100, starts=1000)
PLAIN = FitSettings(loss="squares", residual="plain", replicates=100, starts=1000)


def expected(published: Path, entry: str) -> dict[str, Any]:
    return dict(json.loads((published / "expected.json").read_text())[entry])


def gadre(published: Path, dataset: str) -> pd.DataFrame:
    runs = pd.read_csv(published / "gadre/runs.csv")
    return runs[runs["train_dataset"] == dataset].sort_values("N")


@pytest.mark.parametrize(
    ("entry", "dataset"), [("c4", "c4_original"), ("rpj", "rpj"), ("rw", "rw_original")]
)
def test_over_training(published: Path, entry: str, dataset: str) -> None:
    """Five rows, plain squares; the held-out runs of RedPajama come out as published."""
    table = expected(published, f"gadre/{entry}")
    runs = gadre(published, dataset)
    few = pd.concat(
        [
            runs[runs["chinchilla_multiplier"] == 1].head(4),
            runs[runs["chinchilla_multiplier"] == 16].head(1),
        ]
    )
    variables = (few["flops_6ND"].to_numpy(float), (few["D"] / few["N"]).to_numpy(float))
    losses = few["loss_c4_val"].to_numpy(float)
    fit = fit_law(OverTrainingLaw, variables, losses, PLAIN, name="loss")
    for name in ("E", "a", "b", "eta"):
        value = getattr(fit.law, name)
        assert value == pytest.approx(table["own"][name], rel=5e-4), name
        assert value == pytest.approx(table["published"][name], rel=table["tol"]), name
    assert "FEW_POINTS" in {warning.status for warning in fit.warnings}
    for place, (size, multiplier) in {
        "1.4B M=640": (1.4e9, 32),
        "6.9B M=20": (6.9e9, 1),
    }.items():
        if "extrapolation" in table:
            near = runs[np.isclose(runs["N"], size, rtol=0.05)]
            run = near[near["chinchilla_multiplier"] == multiplier].iloc[0]
            forecast = fit.predict(float(run["flops_6ND"]), float(run["D"] / run["N"])).value
            error = abs(forecast / run["loss_c4_val"] - 1)
            assert error == pytest.approx(table["extrapolation"][place]["own"], rel=1e-3)


@pytest.mark.parametrize(
    ("entry", "router", "count"),
    [("hash", "Hash", 56), ("rl-r", "RL-R", 59), ("s-base", "S-Base", 58)],
)
def test_routed(published: Path, entry: str, router: str, count: int) -> None:
    """By error, and the global optimum; E_max is weakly determined and its flatness is said."""
    table = expected(published, f"clark/{entry}")
    curves = pd.read_csv(published / "clark_routing/curves.csv.gz")
    last = curves.sort_values("step").groupby("hyper_id").tail(1)
    chosen = last[
        (last["seed"] == 42)
        & (last["k"] == 1)
        & (last["routing_frequency"] == 0.5)
        & last["router_type"].isin([router, "Dense"])
    ]
    assert len(chosen) == count
    size, experts, losses = (
        chosen[name].to_numpy(float)
        for name in ("dense_parameter_count", "num_experts", "loss_validation")
    )
    fit = fit_routed(size, experts, losses, FitSettings(replicates=100))
    own = table["own_global"]
    assert isinstance(fit.law, RoutedLaw)
    rmse_log10 = math.sqrt(2 * fit.objective.value / count) / math.log(10)
    assert rmse_log10 <= own["rmse"] * (1 + 1e-3)
    assert rmse_log10 < table["own_at_published_Estart_Emax"]["rmse"]
    for name, value in fit.law.base_10().items():
        assert value == pytest.approx(own[name], abs=1e-4), name
    assert fit.law.E_start == pytest.approx(own["E_start"], rel=2e-3)
    assert fit.law.E_max == pytest.approx(own["E_max"], rel=5e-3)
    low, high = flat_range(*(np.log(size), experts, np.log(losses)))
    assert low < table["published"]["E_max"] < high
    assert any("every E_max from" in warning.sentence for warning in fit.warnings)


def test_dense_power_law(published: Path) -> None:
    table = expected(published, "clark/dense")["own"]
    curves = pd.read_csv(published / "clark_routing/curves.csv.gz")
    last = curves.sort_values("step").groupby("hyper_id").tail(1)
    dense = last[
        (last["router_type"] == "Dense") & (last["k"] == 1) & (last["routing_frequency"] == 0.5)
    ]
    mean = dense.groupby("dense_parameter_count")["loss_validation"].mean()
    fit = fit_power_law(mean.index.tolist(), mean.tolist(), SQUARES, name="loss")
    assert -fit.coefficients["b"].value == pytest.approx(table["alpha"], rel=0.01)
    assert fit.law.inverse(1.0) == pytest.approx(table["Nc"], rel=0.01)  # type: ignore[union-attr,call-arg]


def marin(published: Path, size: str, loss: str) -> Points:
    runs = pd.read_csv(published / "marin_moe_v16/v16_isoflop.csv")
    runs = runs[(runs["budget_flops"] <= 3e20) & ~runs["hidden_dim"].isin([640, 896])]
    return make_points(
        size_variable=size,
        label=runs["run"].tolist(),
        size=runs[size].to_numpy(float),
        tokens=runs["tokens"].to_numpy(float),
        loss=runs[loss].to_numpy(float),
        flops=runs["budget_flops"].to_numpy(float),
    )


def test_isoflop_moe(published: Path) -> None:
    """Parabola minima against compute with 1.6 pinned; the forecast that was checked at 1e21."""
    table = expected(published, "marin_moe_v16")
    points = marin(published, "active_params_with_lmhead", "paloma_macro_loss")
    optima = isoflop_optima(points)
    assert [optimum.status for optimum in optima] == ["inside"] * 6
    flops = [optimum.flops for optimum in optima]
    law = fit_power_law(flops, [o.loss - 1.6 for o in optima], SQUARES, name="loss - 1.6").law
    assert law.parameters == pytest.approx([table["own"]["A"], -table["own"]["alpha"]], rel=2e-3)
    assert 1.6 + float(law(1e21)) == pytest.approx(2.606, abs=5e-4)  # type: ignore[call-arg,arg-type]
    assert 1.6 + float(law(1e23)) == pytest.approx(2.252, abs=5e-4)  # type: ignore[call-arg,arg-type]

    by_bits = marin(published, "active_params_noembed_nolmhead", "c4_en_bpb")
    best = isoflop_optima(by_bits)
    size, _ = isoflop_laws(best, 6.0, SQUARES, by="lowest_run")
    assert size.law.parameters == pytest.approx(table["own"]["N*"], rel=5e-3)
    by_macro = marin(published, "active_params_noembed_nolmhead", "paloma_macro_loss")
    parabola, _ = isoflop_laws(isoflop_optima(by_macro), 6.0, SQUARES)
    assert parabola.coefficients["b"].value == pytest.approx(0.563, abs=2e-3), "the choice moves it"
