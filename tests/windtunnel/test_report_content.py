"""What the report gathers and says, held against the plan, the records and sums by hand."""

from __future__ import annotations

import json
import math
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.plots import draw_all
from analysis.points import points_from_records
from analysis.records import RecordSet
from model.accounting import count_params
from windtunnel.along import Waypoint
from windtunnel.ledger import ledger_of, utc_now
from windtunnel.promotion import Promotions
from windtunnel.report.content import Answer, Content, RunRow, gather, held_forecasts
from windtunnel.report.conventions import CONVENTIONS, views_of
from windtunnel.report.page import render
from windtunnel.report.publish import artifacts_of, summary_of
from windtunnel.report.sentences import outcome


@pytest.fixture(scope="module")
def content(finished: Any) -> Content:
    return gather("quickstart", finished.root, made_at="2026-11-23 10:00 UTC", version="0.1")


@pytest.fixture(scope="module")
def answer(content: Content) -> Answer:
    assert content.answer is not None
    return content.answer


def test_every_row_says_what_was_planned_and_what_was_measured(
    content: Content, finished: Any
) -> None:
    records = {record.run_id: record for record in finished.records}
    rows = {row.run_id: row for row in content.runs}
    assert rows.keys() == records.keys()
    for run in finished.plan.runs:
        row, train = rows[run.run_id], run.spec.train
        counts = count_params(run.spec.model)
        assert (row.total_params, row.active_params) == (counts.total, counts.active)
        assert row.train_flops == row.flops_per_token * row.tokens == run.cost.train_flops
        assert (row.tokens, row.batch_tokens, row.seed) == (
            train.tokens,
            train.batch_tokens,
            train.seed,
        )
        assert row.peak_lr == train.optimizer.peak_lr
        assert (row.rung, row.role, row.variant) == (run.spec.rung, run.spec.role, "")
        assert (row.status, row.reason, row.record) == ("done", "", records[run.run_id])
        loads = records[run.run_id].load_by_layer
        assert len(loads) > 1
        assert row.max_vio == pytest.approx(sum(load.max_vio for load in loads) / len(loads))
    order = [(row.flops_per_token, row.tokens, row.seed) for row in content.runs]
    assert order == sorted(order)
    assert content.counts == {"done": len(rows)}
    assert content.unfitted == 0


def test_a_row_without_loads_has_no_balance(content: Content) -> None:
    row = content.runs[0]
    assert row.record is not None
    assert replace(row, record=None).max_vio is None
    assert replace(row, record=replace(row.record, load_by_layer=())).max_vio is None


def test_the_promoted_run_has_the_sizes_a_fit_would_give_it(
    content: Content, finished: Any
) -> None:
    """Its record is of role promoted, which a fit leaves out: asked as if it were of the grid."""
    promoted = content.evidence.promoted
    assert promoted is not None
    assert set(promoted.sizes) == set(CONVENTIONS)
    measured = RecordSet(records=(replace(finished.outcome, role="grid"),), excluded=())
    for size in CONVENTIONS:
        points, _ = points_from_records(measured, size)
        assert promoted.sizes[size] == pytest.approx(points.size[0], rel=1e-12), size
    assert promoted.flops == finished.promotion.train_flops
    assert promoted.flops == pytest.approx(promoted.sizes["flops_per_token"] * promoted.tokens)
    assert promoted.forecast == finished.promotion.forecast
    assert promoted.measured == finished.outcome.loss_nats


def test_measured_loads_are_means_over_layers(
    content: Content, answer: Answer, finished: Any
) -> None:
    layers = finished.outcome.load_by_layer
    assert len(layers) > 1
    promoted = content.evidence.promoted
    assert promoted is not None
    assert set(promoted.loads) == {"max_vio", "normalized_entropy"}
    for name, (forecast, measured) in promoted.loads.items():
        values = [getattr(layer, name) for layer in layers]
        assert measured == answer.measured_load(name) == pytest.approx(sum(values) / len(values))
        assert forecast in [load.prediction for load in finished.promotion.loads]
    assert replace(answer, record=None).measured_load("max_vio") is None
    assert replace(answer, entry=None).measured is None
    assert replace(answer, entry=None).verdict == "not launched"


def test_of_two_promotions_the_newer_is_the_answer(
    finished: Any, known_sweep: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    while utc_now() <= finished.promotion.created_at:  # whole seconds
        time.sleep(0.05)
    newer = known_sweep.promote(root, "target=compute", "target.train_flops=3e13")
    assert newer.created_at > finished.promotion.created_at
    found = gather("quickstart", root, made_at="", version="")
    assert found.answer is not None
    assert found.answer.promotion.id == newer.id
    assert found.answer.entry is None
    assert found.answer.record is None
    assert len(Promotions(root).ids()) == 2


def test_waypoints_stand_at_their_tokens_with_what_was_measured_there(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    first, second = (Waypoint(step=n, forecast=finished.promotion.forecast) for n in (30, 60))
    promotion = replace(finished.promotion, waypoints=(first, second))
    monkeypatch.setattr(Promotions, "find", lambda self, name: promotion)
    metrics = root / "runs" / promotion.run_id / "metrics.jsonl"
    line = {"kind": "eval", "step": 30, "loss_nats": 1.625, "by_domain": {}}
    metrics.write_text(f"{metrics.read_text()}{json.dumps(line)}\n")
    found = gather("quickstart", root, made_at="", version="")
    assert found.answer is not None
    at = {way.tokens: (way.forecast, way.measured) for way in found.answer.waypoints}
    batch = promotion.spec.train.batch_tokens
    assert at == {30 * batch: (first.forecast, 1.625), 60 * batch: (second.forecast, None)}
    assert found.evidence.promoted is not None
    assert found.evidence.promoted.waypoints == found.answer.waypoints


def test_only_forecasts_that_prove_something_are_counted_in_the_figure(content: Content) -> None:
    (entry,) = content.ledger
    (held,) = content.evidence.forecasts
    assert (held.evidence, held.forecast) == ("quickstart", entry.forecast.forecast)
    assert held.measured == entry.measured
    late = replace(entry, forecast=replace(entry.forecast, after_the_fact=True))
    open_one = replace(entry, outcome=None)
    altered = replace(entry, trouble="its row was altered")
    assert len(held_forecasts([entry, late, open_one, altered])) == 1


def test_wandb_gets_every_number_of_the_answer(
    content: Content, answer: Answer, finished: Any
) -> None:
    told = summary_of(content)
    forecast = finished.promotion.forecast
    laws = finished.study.surface.coefficients
    expected: dict[str, Any] = {"runs/done": len(finished.records)}
    for name, found in laws.items():
        expected[f"law/{name}"] = found.value
        expected[f"law/{name}_low"], expected[f"law/{name}_high"] = found.low, found.high
    expected |= {
        "forecast/loss_nats": forecast.value,
        "forecast/low": forecast.low,
        "forecast/high": forecast.high,
        "forecast/level": 0.9,
        "forecast/verdict": answer.verdict,
        "forecast/measured_nats": finished.outcome.loss_nats,
    }
    assert told == expected
    assert answer.verdict in ("inside", "OUTSIDE")
    before = replace(content, answer=replace(answer, entry=None))
    lacking = expected.keys() - summary_of(before).keys()
    assert lacking == {"forecast/measured_nats"}
    assert summary_of(before)["forecast/verdict"] == "not launched"
    bare = replace(content, answer=None, evidence=replace(content.evidence, study=None))
    assert summary_of(bare) == {"runs/done": len(finished.records)}


def test_wandb_gets_the_page_the_law_with_its_curves_and_the_promotion(
    content: Content, finished: Any, tmp_path: Path
) -> None:
    drawn = [one for one in draw_all(content.evidence) if one.figure is not None]
    page, law, promoted = artifacts_of(content, drawn, tmp_path, finished.root)
    assert (page.name, page.type) == ("quickstart-report", "report")
    assert page.files == (tmp_path / "index.html",)
    assert page.metadata == {"sweep": "quickstart", "made_at": "2026-11-23 10:00 UTC"}
    assert (law.name, law.type) == ("quickstart-law", "scaling-law")
    curves = ("loss_compute", "loss_tokens", "isoflop", "contours", "residuals")
    fit_path, *beside = law.files
    assert fit_path == finished.root / "sweeps" / "quickstart" / "fit.json"
    assert sorted(beside) == sorted(tmp_path / f"{name}.csv" for name in curves)
    assert law.metadata["size_variable"] == "flops_per_token"
    assert law.metadata["alpha"] == finished.study.surface.coefficients["alpha"].value
    promotion = finished.promotion
    assert promotion.target_name.startswith("next_rung")
    assert (promoted.name, promoted.type) == (promotion.id, "promotion")
    assert promoted.files == (finished.root / "promotions" / f"{promotion.id}.yaml",)
    assert promoted.metadata == {
        "sweep": "quickstart",
        "target": promotion.target_name,
        "train_flops": promotion.train_flops,
        "forecast_nats": promotion.forecast.value,
    }
    assert content.answer is not None
    asked = replace(promotion, id="quickstart-compute-5e+05-0123abcd")
    renamed = replace(content, answer=replace(content.answer, promotion=asked))
    *_, promoted = artifacts_of(renamed, drawn, tmp_path, finished.root)
    assert promoted.name == "quickstart-compute-5e05-0123abcd", "W&B refuses a plus"
    bare = replace(content, answer=None, evidence=replace(content.evidence, study=None))
    assert [one.type for one in artifacts_of(bare, drawn, tmp_path, finished.root)] == ["report"]


def test_every_other_way_to_count_size_is_the_fit_of_it(content: Content, finished: Any) -> None:
    views = {view.key: view for view in views_of(content.evidence)}
    assert list(views) == list(CONVENTIONS), "the fit's own first"
    assert views["flops_per_token"].surface == finished.study.surface
    records = RecordSet(records=tuple(finished.records), excluded=())
    points, _ = points_from_records(records, "total_params")
    law = fit_surface(points, finished.study.settings)
    found = views["total_params"]
    assert found.surface.coefficients == law.coefficients
    frontier, surface = found.compute_law.law, law.law
    assert isinstance(surface, LossSurface)
    b = surface.alpha * surface.beta / (surface.alpha + surface.beta)
    assert frontier.parameters[2] == pytest.approx(b)
    gone = replace(content.evidence, records=content.evidence.records[1:])
    assert [view.key for view in views_of(gone)] == ["flops_per_token"]
    assert not list(views_of(replace(content.evidence, study=None)))


ROOT = Path("tunnel")


def test_a_stated_or_late_loss_is_not_called_measured_evidence(answer: Answer) -> None:
    entry = answer.entry
    assert entry is not None
    assert entry.outcome is not None
    loss = f"{entry.outcome.loss_nats:.4f}"
    where = "inside" if entry.outcome.inside else "OUTSIDE"
    kind = "good" if entry.outcome.inside else "bad"
    assert outcome(answer, ROOT) == (f"Measured {loss}: {where} the interval.", kind)

    stated = replace(entry, outcome=replace(entry.outcome, stated_by="their paper, table 4"))
    said, colour = outcome(replace(answer, entry=stated), ROOT)
    assert said == (
        f"Stated {loss}: {where} the interval. The loss was not measured here but stated (their "
        "paper, table 4); it is no evidence on the intervals."
    )
    assert colour == ""

    late = replace(entry, forecast=replace(entry.forecast, after_the_fact=True))
    said, colour = outcome(replace(answer, entry=late), ROOT)
    assert said == (
        f"Measured {loss}: {where} the interval. The forecast was registered after the run, so it "
        "proves nothing."
    )
    assert colour == ""

    outside = replace(entry, outcome=replace(entry.outcome, inside=False))
    assert outcome(replace(answer, entry=outside), ROOT) == (
        f"Measured {loss}: OUTSIDE the interval.",
        "bad",
    )
    diverged = replace(entry.outcome, status="diverged", loss_nats=None, inside=False)
    said, colour = outcome(replace(answer, entry=replace(entry, outcome=diverged)), ROOT)
    assert (said, colour) == ("The run diverged, so the forecast is counted as missed.", "bad")
    altered = replace(entry, trouble="its row was altered")
    assert outcome(replace(answer, entry=altered), ROOT)[1] == "bad"
    launched = replace(answer, entry=replace(entry, outcome=None))
    assert outcome(launched, ROOT) == ("Launched; not measured yet.", "")


@pytest.mark.parametrize("alone", ["tokens", "size"])
def test_a_law_without_an_optimum_has_a_report_that_says_so(
    known_sweep: ModuleType, finished: Any, tmp_path: Path, alone: str
) -> None:
    """Losses that hang on one of the two: a fit may find nothing of the other."""
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan = known_sweep.make(root)
    known_sweep.finish_all(root, plan)
    study = known_sweep.fit(root, plan)
    law = study.surface.law
    law = replace(law, A=0.0) if alone == "tokens" else replace(law, B=0.0)
    without = replace(study, surface=replace(study.surface, law=law))
    found = gather("quickstart", root, made_at="", version="")
    found = replace(found, evidence=replace(found.evidence, study=without))
    drawings = {one.name: one for one in draw_all(found.evidence)}
    for name in ("loss_compute", "isoflop", "contours"):
        drawing = drawings[name]
        assert drawing.figure is not None
        said = drawing.how_to_read + drawing.distrust
        assert f"loss falls with {alone} alone, so no split of compute is the best" in said
        assert not {"optimum", "optimal path", "law along the optimum"} & set(drawing.data.series)
    text = render(found, tuple(drawings.values()))
    assert "falls with" in text


def _rows(content: Content) -> dict[str, RunRow]:
    return {row.run_id: row for row in content.runs}


def test_a_run_that_diverged_or_was_left_out_says_why(
    known_sweep: ModuleType, finished: Any, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan = known_sweep.make(root)
    gone, late = plan.runs[0], plan.runs[-1]
    for run in plan.runs[1:-1]:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    known_sweep.fit(root, plan)
    none = {"loss_nats": None, "bits_per_byte": None, "by_domain": {}, "load_by_layer": ()}
    lost = replace(known_sweep.measured(gone.spec), status="diverged", reason="loss is nan", **none)
    known_sweep.finish(root, gone.spec, lost)
    known_sweep.finish(root, late.spec, known_sweep.measured(late.spec))
    found = gather("quickstart", root, made_at="", version="")
    rows = _rows(found)
    assert (rows[gone.run_id].status, rows[gone.run_id].use) == ("diverged", "not measured")
    assert "loss is nan" in rows[gone.run_id].reason
    assert rows[late.run_id].use == "finished after the fit"
    assert found.unfitted == 1
    assert found.answer is None
    assert all(math.isfinite(row.train_flops) for row in found.runs)
    assert not ledger_of(root).read().entries
