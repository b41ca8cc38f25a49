"""A fit of any one law: known parameters back, forecasts where asked, one JSON round trip."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analysis.asked import forecast_at
from analysis.catalogue import LAWS
from analysis.fitting import fit_points
from analysis.law_study import LawStudy, make_law_study
from analysis.law_summary import summarise_law
from analysis.leverage_law import LeverageLaw
from analysis.moe_laws import EfficiencyLeverage
from analysis.optima_study import OptimaStudy, make_optima_study
from analysis.optima_summary import summarise_optima
from analysis.points import Points, make_points, take
from analysis.results import FitError
from analysis.settings import FitSettings
from analysis.study import Study
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=600)
SIZES, TOKENS = 1e7 * 3.0 ** np.arange(5), 3e8 * 3.0 ** np.arange(4)
GIVEN: dict[str, tuple[float, ...]] = {
    "num_experts": (1.0, 4.0, 16.0, 64.0),
    "granularity": (1.0, 2.0, 4.0, 8.0),
    "activation_ratio": (0.03, 0.1, 0.3, 1.0),
    "unique_tokens": (1e8, 1e9),
}
TRUTHS: dict[str, list[float]] = {
    "hoffmann": [1.7, 480.0, 2100.0, 0.35, 0.37],
    "gadre": [1.5, 14.0, 19.0, 0.12],
    "muennighoff": [1.7, 480.0, 2100.0, 0.35, 0.37],
    "compute": [1.6, 95.0, 0.094],
    "size": [1.7, 480.0, 0.35],
    "tokens": [1.7, 2100.0, 0.37],
    "clark": [-0.08, -0.2, 0.006, 2.6, 2.0, 300.0],
    "krajewski": [0.9, 30.0, 300.0, 900.0, 0.6, 0.33, 0.35],
    "ludziejewski": [1.2, 900.0, 600.0, -0.15, 0.35, -0.01, 0.1, 0.31, 0.005],
    "leverage": [1.5, 60.0, 0.09, 0.11, -0.007, 0.0015, -0.0105],
}
OTHER_TRUTHS = {
    "power": [3.0, -0.2],
    "downstream": [0.85, 2.1, 0.75],
    "abnar": [0.5, 300.0, 900.0, 0.2, 90.0, 0.33, 0.35, -0.4, -0.15, 0.28],
}


def points_of(name: str, noise_sd: float = 0.0, seed: int = 0) -> Points:
    """A grid of sizes, tokens and the law's further variables, its losses from the truth."""
    law = LAWS[name]
    further = [v for v in law.VARIABLES if v in GIVEN]
    rows = np.array(list(itertools.product(SIZES, TOKENS, *(GIVEN[v] for v in further))))
    size, tokens = rows[:, 0], rows[:, 1]
    extra = {v: tuple(rows[:, 2 + i].tolist()) for i, v in enumerate(further)}
    points = make_points(
        size_variable="N", label=[f"run {i}" for i in range(len(rows))], size=size, tokens=tokens,
        flops=6 * size * tokens, loss=np.ones(len(rows)), extra=extra,
        setting=[rows[:, 2 + i] for i in range(len(further))],
    )  # fmt: skip
    columns = [points.column(v, name) for v in law.VARIABLES]
    noise = noise_sd * np.random.default_rng(seed).standard_normal(len(rows))
    loss = np.asarray(law.formula(TRUTHS[name], *columns)) * np.exp(noise)
    values: dict[str, Any] = {f: getattr(points, f) for f in points.__dataclass_fields__}
    return Points(**(values | {"loss": tuple(loss.tolist())}))


@pytest.mark.parametrize("name", TRUTHS)
def test_every_law_comes_back_without_noise_and_reads_back_from_json(name: str) -> None:
    points = points_of(name)
    study = make_law_study(name, name, points, (), QUICK, test=take(points, [1, 2]))
    np.testing.assert_allclose(study.fit.law.parameters, TRUTHS[name], rtol=1e-6)
    assert LawStudy.from_json(study.to_json()) == study
    with pytest.raises(ConfigError, match="fit schema 99, this program reads 2"):
        LawStudy.from_json(study.to_json().replace('"schema_version":2', '"schema_version":99', 1))
    for point in study.tests:
        assert point.forecast.value == pytest.approx(point.measured, rel=1e-6)
    text = summarise_law(study)
    assert max(map(len, text.splitlines())) <= 100
    assert "2 of 2 measured losses inside" in text
    with pytest.raises(ConfigError, match=f"holds a fit of {name}; here the law of size"):
        Study.from_json(study.to_json())


@pytest.mark.parametrize("name", [n for n in LAWS if hasattr(LAWS[n], "inverse")])
def test_inverses_undo_their_laws(name: str) -> None:
    """The law at its inverse is the loss again, whatever the inverse solves for."""
    law_class: Any = LAWS[name]
    parameters = (TRUTHS | OTHER_TRUTHS)[name]
    law = law_class(**dict(zip(law_class.PARAMETERS, parameters, strict=True)))
    others = {"tokens": 5e9, "num_experts": 16.0, "tokens_per_size": 20.0, "activation_ratio": 0.1,
              "granularity": 8.0, "size": 1e9, "unique_tokens": 1e9}  # fmt: skip
    if name == "hoffmann":
        best = law.optimum(1e21)
        assert law.inverse(best.loss) == pytest.approx(1e21)
        return
    if name == "muennighoff":
        assert law.inverse(float(law(1e9, 5e9, 1e9)), 1e9, 1e9) == pytest.approx(5e9)
        return
    main = 1e9 if law.VARIABLES[0] == "size" else 3.0 if name == "downstream" else 1e20
    rest = [others[v] for v in law.VARIABLES[1:]]
    assert law.inverse(float(law(main, *rest)), *rest) == pytest.approx(main)
    if "tokens" in law.VARIABLES[1:]:
        tokens, third = rest
        loss = float(law(main, tokens, third))
        assert law.tokens_for(loss, main, third) == pytest.approx(tokens)
        no_less = float(law(1e300, tokens, third))
        with pytest.raises(ConfigError, match="never reached on 5e\\+09 tokens: the limit is"):
            law.inverse(0.999 * no_less, *rest)
        with pytest.raises(ConfigError, match="never reached at size 1e\\+09"):
            law.tokens_for(0.999 * float(law(main, 1e300, third)), main, third)


def test_the_leverage_law_is_the_published_leverage() -> None:
    """Dense compute times the leverage gives the same loss, with the published constants."""
    published = EfficiencyLeverage()
    b = 0.09
    law = LeverageLaw(E=1.5, a=60.0, b=b, be=b * published.a, bd=b * published.d,
                      bg=b * published.gamma, bh=b * published.beta)  # fmt: skip
    lever = float(published(0.035, 8, 1e21))
    assert float(law(1e21, 0.035, 8)) == pytest.approx(1.5 + 60.0 * (lever * 1e21) ** -b)
    for name in ("a", "d", "gamma", "beta", "A_start"):
        assert getattr(law.leverage(), name) == pytest.approx(getattr(published, name))
    assert law.best_granularity() == pytest.approx(published.best_granularity())


def test_forecasts_follow_from_two_of_size_tokens_and_flops() -> None:
    points = points_of("gadre")
    fit = fit_points(LAWS["gadre"], points, QUICK)
    one = forecast_at(fit, points, {"params": 1e9, "tokens": 2e10}, 0.9)
    other = forecast_at(fit, points, {"flops": 1.2e20, "tokens_per_size": 20.0}, 0.9)
    assert one == other
    assert forecast_at(fit, points, {"flops": 1.2e20, "size": 1e9}, 0.9) == one
    with pytest.raises(ConfigError, match=r"at.tokens_per_size: missing"):
        forecast_at(fit, points, {"flops": 1e20}, 0.9)
    with pytest.raises(ConfigError, match=r"at.experts: not a variable of the gadre law"):
        forecast_at(fit, points, {"experts": 8}, 0.9)
    with pytest.raises(ConfigError, match=r"at.flops must be positive"):
        forecast_at(fit, points, {"flops": -1}, 0.9)


def test_a_law_that_its_top_budgets_leave_is_widened_with_distance() -> None:
    """Losses that bend upwards: every hold-out forecasts too little, and the fit says so."""
    points = points_of("compute", 0.0005)
    flops = points.array("flops")
    bent = points.array("loss") * np.exp(0.004 * np.log(flops / flops.min()) ** 2)
    values: dict[str, Any] = {f: getattr(points, f) for f in points.__dataclass_fields__}
    points = Points(**(values | {"loss": tuple(bent.tolist())}))
    study = make_law_study(
        "c", "compute", points, (), QUICK, at={"flops": 1e22}, protocol={"data": "text"}
    )
    assert study.protocol == {"data": "text"}
    assert "HOLDOUT_MISSED" in {warning.status for warning in study.fit.warnings}
    assert study.fit.drift is not None
    assert study.fit.drift.side == "above"
    there = study.forecasts[0].forecast
    straight = replace(study.fit, drift=None).predict(1e22)
    assert there.value == pytest.approx(straight.value)
    assert there.high > straight.high, "by how fast forecasts went wrong"


def test_a_held_parameter_stays_and_is_no_trouble() -> None:
    held = FitSettings(replicates=100, starts=300, held={"E": 1.6})
    study = make_law_study("c", "compute", points_of("compute", 0.002), (), held)
    law: Any = study.fit.law
    assert pytest.approx(1.6, rel=1e-12) == law.E
    assert law.b == pytest.approx(0.094, rel=0.02)
    assert not {"AT_BOUND", "AT_START"} & {w.status for w in study.fit.warnings}
    fixed = FitSettings(replicates=100, starts=300, held={"alpha": 0.35})
    assert fit_points(LAWS["hoffmann"], points_of("hoffmann", 0.002), fixed).coefficients[
        "alpha"
    ].width == pytest.approx(0, abs=1e-12)
    with pytest.raises(ConfigError, match=r"fit.held.A: the hoffmann law can hold E, alpha, beta"):
        fit_points(
            LAWS["hoffmann"], points_of("hoffmann"),
            FitSettings(replicates=100, starts=300, held={"A": 3.0}),
        )  # fmt: skip


def test_one_value_of_a_variable_is_refused() -> None:
    points = points_of("krajewski")
    same = [row for row, g in enumerate(points.extra["granularity"]) if g == 2.0]
    with pytest.raises(ConfigError, match="one granularity only: all 20 runs have 2"):
        make_law_study("x", "krajewski", take(points, same), (), QUICK)
    with pytest.raises(ConfigError, match="no law 'kraj'"):
        make_law_study("x", "kraj", points, (), QUICK)


def test_optima_of_budgets_and_cells_read_back() -> None:
    size = np.repeat(1e7 * 4.0 ** np.arange(4), 7) * np.tile(2.0 ** np.arange(-3, 4), 4)
    flops = np.repeat(1e17 * 16.0 ** np.arange(4), 7)
    vertex = np.repeat(1e7 * 4.0 ** np.arange(4), 7)
    loss = 1.6 + 95 * flops**-0.0941 + 0.02 * np.log(size / vertex) ** 2
    points = make_points(
        size_variable="N", label=[str(i) for i in range(28)], size=size, tokens=flops / (6 * size),
        flops=flops, loss=loss,
    )  # fmt: skip
    held = FitSettings(replicates=100, starts=300, loss="squares", held={"E": 1.6})
    study = make_optima_study("iso", "isoflop", points, (), held, at={"flops": 1e23})
    assert OptimaStudy.from_json(study.to_json()) == study
    np.testing.assert_allclose(
        study.fits["loss at the minimum"].law.parameters, [95, -0.0941], rtol=1e-6
    )
    forecast = study.forecasts["loss at the minimum"]
    assert forecast.value == pytest.approx(1.6 + 95 * 1e23**-0.0941)
    assert max(map(len, summarise_optima(study).splitlines())) <= 100
    with pytest.raises(ConfigError, match=r"at.tokens"):
        make_optima_study("iso", "isoflop", points, (), held, at={"tokens": 1e9})
    with pytest.raises(FitError, match="no budget holds three sizes"):
        make_optima_study("iso", "isoflop", take(points, [0, 7, 14, 21]), (), held)
    lr = 1e-2 * size**-0.1 * np.tile(2.0 ** np.arange(-3, 4), 4)
    cells = make_points(
        size_variable="N", label=[str(i) for i in range(28)], size=vertex, tokens=20 * vertex,
        flops=120 * vertex**2, extra={"peak_lr": tuple(lr.tolist())},
        loss=2 + 90 * vertex**-0.2 + 0.02 * np.log(lr / (3e-2 * vertex**-0.15)) ** 2,
    )  # fmt: skip
    grid = make_optima_study("lr", "learning_rate", cells, (), QUICK)
    assert OptimaStudy.from_json(grid.to_json()) == grid
    assert set(grid.fits) == {"peak_lr against C"}
    assert -0.08 < float(grid.fits["peak_lr against C"].law.parameters[1]) < -0.06
    assert any("two token counts are needed" in note for note in grid.notes)
    said = summarise_optima(grid)
    assert max(map(len, said.splitlines())) <= 100
    (law,) = [line for line in said.splitlines() if "·C^" in line]
    assert law.startswith("  peak_lr ")
    assert law.endswith(f"), against C, {grid.fits['peak_lr against C'].num_points} optima")
