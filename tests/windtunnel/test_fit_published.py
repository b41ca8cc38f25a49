"""The published sets through the table's door, as their readers would try them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.law_study import LawStudy
from analysis.optima_study import OptimaStudy
from analysis.routed import RoutedLaw
from windtunnel import cli

BESIDE = Path(__file__).resolve().parents[3] / "shared/data"
PUBLISHED = Path(os.environ.get("WINDTUNNEL_PUBLISHED_SETS", BESIDE))
QUICK = ["fit.replicates=100", "fit.starts=1000", "fit.holdout_budgets=0"]
TASKS = (
    *("bigbench_operators", "pubmed_qa_labeled", "hellaswag_zeroshot", "boolq", "arc_easy", "coqa"),
    *("bigbench_dyck_languages", "lambada_openai", "bigbench_novel_concepts", "winograd"),
    *("bigbench_cs_algorithms", "commonsense_qa", "bigbench_qa_wikidata", "hellaswag", "copa"),
    *("squad", "piqa"),
)

pytestmark = pytest.mark.skipif(
    not PUBLISHED.exists(), reason=f"the published sets are not at {PUBLISHED}"
)


def expected(entry: str) -> dict[str, Any]:
    return dict(json.loads((PUBLISHED / "expected.json").read_text())[entry])


def fit(tmp_path: Path, table: Path, *words: str) -> str:
    out = tmp_path / "fit.json"
    code = cli.main(["fit", f"root={tmp_path}", f"records={table}", f"out={out}", *words, *QUICK])
    assert code == 0
    return out.read_text()


def few_rows(dataset: str) -> list[str]:
    """The five runs of the published fit: four small models, and the smallest over-trained."""
    models = ("d=96_l=8_h=4", "d=512_l=8_h=4", "d=576_l=24_h=8", "d=1024_l=24_h=8")
    return [*(f"{dataset}-{model}-1.0" for model in models), f"{dataset}-{models[0]}-16.0"]


def quoted(names: list[str]) -> str:
    return "[" + ",".join(f"'{name}'" for name in names) + "]"


@pytest.mark.parametrize(
    ("entry", "dataset"), [("c4", "c4_original"), ("rpj", "rpj"), ("rw", "rw_original")]
)
def test_over_training_and_its_two_extrapolations(entry: str, dataset: str, tmp_path: Path) -> None:
    wanted = expected(f"gadre/{entry}")
    text = fit(
        tmp_path, PUBLISHED / "gadre/runs.csv", "law=gadre", "columns.params=N",
        "columns.tokens=D", "columns.flops=flops_6ND", "columns.loss=loss_c4_val",
        f"filter.run={quoted(few_rows(dataset))}", "fit.loss=squares", "fit.residual=plain",
        f"test.run={quoted([f'{dataset}-open_lm_1b-32.0', f'{dataset}-open_lm_7b-1.0'])}"
        if entry == "rpj" else "test={}",
    )  # fmt: skip
    study = LawStudy.from_json(text)
    for name, value in zip(("E", "a", "b", "eta"), study.fit.law.parameters, strict=True):
        assert value == pytest.approx(wanted["published"][name], rel=wanted["tol"]), name
    if entry == "rpj":
        errors = [abs(point.error) for point in study.tests]
        places = wanted["extrapolation"]
        assert errors == pytest.approx([place["published_rel_err"] for place in places.values()],
                                       rel=1e-3)  # fmt: skip
        assert len(study.exclusions) == 99


@pytest.mark.parametrize(
    ("entry", "dataset"), [("c4", "c4_original"), ("rpj", "rpj"), ("rw", "rw_original")]
)
def test_downstream_error(entry: str, dataset: str, tmp_path: Path) -> None:
    """The mean error over 17 tasks against the loss, with the large run beside the five."""
    runs = pd.read_csv(PUBLISHED / "gadre/runs.csv").merge(
        pd.read_csv(PUBLISHED / "gadre/downstream_accuracy.csv"), on="run"
    )
    runs["err"] = 1 - runs[[f"acc_{task}" for task in TASKS]].mean(axis=1)
    table = tmp_path / "joined.csv"
    runs[runs["run"].isin([*few_rows(dataset), f"{dataset}-open_lm_1b-1.0"])].to_csv(table)
    text = fit(tmp_path, table, "law=downstream", "columns.loss=err",
               "variables.pretraining_loss=loss_c4_val")  # fmt: skip
    own = expected(f"gadre/{entry}")["own"]
    law = LawStudy.from_json(text).fit.law
    assert law.parameters == pytest.approx([own["eps"], own["k"], own["gamma"]], rel=2e-4)


@pytest.mark.parametrize(
    ("entry", "router", "count"),
    [("hash", "Hash", 56), ("rl-r", "RL-R", 59), ("s-base", "S-Base", 58)],
)
def test_routed(entry: str, router: str, count: int, tmp_path: Path) -> None:
    text = fit(
        tmp_path, PUBLISHED / "clark_routing/curves.csv.gz", "law=clark", "table.last_of=hyper_id",
        "table.last_by=step", "columns.params=dense_parameter_count",
        "variables.num_experts=num_experts", "columns.loss=loss_validation", "filter.seed=42",
        "filter.k=1", "filter.routing_frequency=0.5", f"filter.router_type=[{router},Dense]",
    )  # fmt: skip
    study = LawStudy.from_json(text)
    assert len(study.points) == count
    assert isinstance(study.fit.law, RoutedLaw)
    own = expected(f"clark/{entry}")["own_global"]
    for name, value in study.fit.law.base_10().items():
        assert value == pytest.approx(own[name], abs=1e-4), name


def test_dense_power_law_of_means_over_seeds(tmp_path: Path) -> None:
    text = fit(
        tmp_path, PUBLISHED / "clark_routing/curves.csv.gz", "law=power", "table.last_of=hyper_id",
        "table.last_by=step", "columns.loss=loss_validation", "filter.k=1",
        "variables.x=dense_parameter_count", "filter.routing_frequency=0.5",
        "filter.router_type=Dense", "fit.loss=squares", "table.mean_over_seeds=true",
    )  # fmt: skip
    law: Any = LawStudy.from_json(text).fit.law
    own = expected("clark/dense")["own"]
    assert -law.b == pytest.approx(own["alpha"], rel=1e-3)
    assert law.inverse(1.0) == pytest.approx(own["Nc"], rel=1e-3)


def test_isoflop_minima_and_the_forecast_that_was_checked(tmp_path: Path) -> None:
    table = PUBLISHED / "marin_moe_v16/v16_isoflop.csv"
    rows = ["columns.tokens=tokens", "columns.flops=budget_flops", "exclude.budget_flops=1e21",
            "exclude.hidden_dim=[640,896]", "law=isoflop", "fit.loss=squares"]  # fmt: skip
    study = OptimaStudy.from_json(
        fit(tmp_path, table, *rows, "columns.params=active_params_with_lmhead",
            "columns.loss=paloma_macro_loss", "fit.held.E=1.6", "at.flops=1e21")
    )  # fmt: skip
    own = expected("marin_moe_v16")["own"]
    loss = study.fits["loss at the minimum"]
    assert loss.law.parameters == pytest.approx([own["A"], -own["alpha"]], rel=1e-3)
    assert study.forecasts["loss at the minimum"].value == pytest.approx(2.606, abs=5e-4)
    best = OptimaStudy.from_json(
        fit(tmp_path, table, *rows, "columns.params=active_params_noembed_nolmhead",
            "columns.loss=c4_en_bpb")
    )  # fmt: skip
    for what, name in (("N*, lowest run", "N*"), ("D*, lowest run", "T*")):
        assert best.fits[what].law.parameters == pytest.approx(own[name], rel=5e-3)
