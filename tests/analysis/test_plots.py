"""Figures: their data are the records and the law, what can't be drawn is said, files are whole."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest

from analysis import plots, plots_style
from analysis.curves import read_curve, thin
from analysis.plots import FIGURES, Evidence, Promoted, draw_all
from analysis.plots_balance import expert_balance
from analysis.plots_evidence import PALE, HeldForecast, OnTheWay
from analysis.plots_experts import expert_load, expert_training
from analysis.plots_forecasts import forecasts
from analysis.plots_loss import loss_compute, loss_tokens
from analysis.plots_recipe import recipe
from analysis.plots_runs import flight, residuals, training_curves
from analysis.plots_style import PAPER
from analysis.plots_surface import contours, isoflop
from analysis.plots_variants import feature_trials, leverage
from analysis.records import RunRecord
from analysis.results import Prediction

HOSTILE = '<script>alert("1")</script> $x^{2$ \\frac{&\'\n' + "長" * 5 + "a" * 10_000


@pytest.fixture(scope="module")
def evidence(finished: Any) -> Evidence:
    promotion = finished.promotion
    return Evidence(
        records=tuple(finished.records),
        study=finished.study,
        promoted=Promoted(
            label=promotion.id,
            flops=promotion.train_flops,
            sizes={"flops_per_token": promotion.flops_per_token},
            tokens=promotion.spec.train.tokens,
            forecast=promotion.forecast,
            measured=finished.outcome.loss_nats,
        ),
        curves={
            record.run_id: curve
            for record in finished.records
            if (curve := read_curve(finished.root / "runs" / record.run_id / "metrics.jsonl"))
        },
    )


def grid_over(record: RunRecord, rates: list[float], batches: list[int], best: float) -> Evidence:
    """One cell tried at several learning rates and batches, a parabola with its optimum at best."""
    records = [
        replace(
            record,
            run_id=f"lr{rate:g}-b{batch}",
            peak_lr=rate,
            batch_tokens=batch,
            loss_nats=3.0 + 0.01 * np.log(rate / best) ** 2 + 1e-6 * batch,
        )
        for rate in rates
        for batch in batches
    ]
    return Evidence(records=tuple(records))


def test_loss_figures_hold_every_record_once(evidence: Evidence) -> None:
    expected = {r.run_id: (r.train_flops, r.tokens, r.loss_nats) for r in evidence.records}
    for draw in (loss_compute, loss_tokens):
        runs = draw(evidence).data.query("series == 'run'")
        found = {
            row.label: (row.train_flops, row.tokens, row.loss_nats) for row in runs.itertuples()
        }
        assert found == expected
        assert len(runs) == len(expected)


def test_the_drawn_law_is_the_cheapest_split_with_the_fits_own_band(evidence: Evidence) -> None:
    assert evidence.study is not None
    law = loss_compute(evidence).data.query("series == 'law along the optimum'")
    surface = evidence.study.surface
    for row in law.iloc[::24].itertuples():
        sizes = row.flops_per_token * np.geomspace(0.2, 5, 401)
        split = surface.law(sizes, row.train_flops / sizes)
        assert row.loss_nats == pytest.approx(split.min(), rel=1e-5)
        forecast = surface.predict(row.flops_per_token, row.tokens)
        assert (row.loss_nats_low, row.loss_nats_high) == pytest.approx(
            (forecast.low, forecast.high)
        )
    assert law["train_flops"].max() > evidence.promoted.flops  # type: ignore[union-attr]


def test_forecast_measurement_and_holdout_stand_in_the_data(
    evidence: Evidence, finished: Any
) -> None:
    data = loss_compute(evidence).data
    forecast = data.query("series == 'forecast'").iloc[0]
    assert forecast["loss_nats"] == finished.promotion.forecast.value
    assert forecast["loss_nats_low"] == finished.promotion.forecast.low
    measured = data.query("series == 'measured'").iloc[0]
    assert measured["loss_nats"] == finished.outcome.loss_nats
    held = data.query("series == 'held-out forecast'")
    hardest = finished.study.holdouts[-1].points
    assert dict(zip(held["label"], held["loss_nats"], strict=True)) == {
        point.label: point.forecast.value for point in hardest
    }


def test_an_isoflop_optimum_is_the_lowest_point_of_its_curve(evidence: Evidence) -> None:
    assert evidence.study is not None
    data = isoflop(evidence).data
    optima = data.query("series == 'optimum'")
    assert len(optima) >= 3
    for best in optima.itertuples():
        sizes = np.geomspace(best.flops_per_token / 30, best.flops_per_token * 30, 20_001)
        loss = evidence.study.surface.law(sizes, best.train_flops / sizes)
        assert sizes[loss.argmin()] == pytest.approx(best.flops_per_token, rel=1e-3)
        assert best.flops_per_token_low <= best.flops_per_token <= best.flops_per_token_high
    runs = data.query("series == 'run'")
    level = np.array([optima["train_flops"]]).T
    off = np.abs(np.log(runs["train_flops"].to_numpy() / level)).min(axis=0)
    assert np.all(off <= np.log(1.26))


def test_no_step_off_the_drawn_path_at_equal_compute_is_cheaper(evidence: Evidence) -> None:
    assert evidence.study is not None
    law = evidence.study.surface.law
    path = contours(evidence).data.query("series == 'optimal path'")
    assert len(path) > 10
    for factor in (0.9, 1.1):
        beside = law(path["flops_per_token"] * factor, path["tokens"] / factor)
        assert np.all(beside > path["loss_nats"])


def test_labels_of_contours_are_whole_and_clear_of_the_runs(evidence: Evidence) -> None:
    drawing = contours(evidence)
    figure = drawing.figure
    assert figure is not None
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [text.get_window_extent() for text in axes.texts]
    assert len(labels) >= 4
    frame = axes.get_window_extent()
    runs_XY = axes.transData.transform(
        drawing.data.query("series == 'run'")[["flops_per_token", "tokens"]].to_numpy()
    )
    for label in labels:
        assert frame.x0 <= label.x0
        assert label.x1 <= frame.x1
        assert frame.y0 <= label.y0
        assert label.y1 <= frame.y1
        assert not any(label.contains(*point) for point in runs_XY)
        assert sum(label.overlaps(other) for other in labels) == 1  # itself


def test_variants_are_listed_in_the_order_of_their_numbers(evidence: Evidence) -> None:
    values = (0.05, 1, 16, 2)
    records, names = [], {}
    for value in values:
        for record in evidence.records:
            twin = replace(record, run_id=f"{value}-{record.run_id}")
            records.append(twin)
            names[twin.run_id] = f"factor={value}"
    drawing = feature_trials(Evidence(records=tuple(records), variants=names))
    assert drawing.figure is not None
    (legend,) = drawing.figure.legends
    shown = [text.get_text() for text in legend.get_texts()]
    assert shown == ["factor=1", "factor=2", "factor=16"]
    assert "`factor=0.05`" in drawing.how_to_read


def test_residuals_are_measured_over_law(evidence: Evidence) -> None:
    study = evidence.study
    assert study is not None
    data = residuals(evidence).data
    fitted = data.query("series == 'fitted'").set_index("run_id")["residual_percent"]
    for record in evidence.records:
        law = float(study.surface.law(record.flops_per_token, record.tokens))
        assert fitted[record.run_id] == pytest.approx(100 * (record.loss_nats / law - 1), abs=1e-9)
    held = data.query("series == 'held out'").set_index("run_id")["residual_percent"]
    for point in study.holdouts[-1].points:
        error = 100 * (point.measured / point.forecast.value - 1)
        assert held[point.label] == pytest.approx(error)


def test_training_curves_end_in_the_held_out_loss_of_every_run(evidence: Evidence) -> None:
    data = training_curves(evidence).data
    ends = data.query("series == 'held-out loss'").set_index("run_id")
    assert set(ends.index) == {record.run_id for record in evidence.records}
    for record in evidence.records:
        assert ends.loc[record.run_id, "loss_nats"] == record.loss_nats
        curve = data.query("series == 'training loss' and run_id == @record.run_id")
        assert len(curve) == len(evidence.curves[record.run_id].tokens)


def test_too_many_curves_are_thinned_to_the_longest_and_it_is_said(evidence: Evidence) -> None:
    extra = tuple(replace(evidence.records[0], run_id=f"copy{i}") for i in range(60))
    curves = {**evidence.curves, **{r.run_id: next(iter(evidence.curves.values())) for r in extra}}
    many = replace(evidence, records=evidence.records + extra, curves=curves)
    drawing = training_curves(many)
    assert drawing.data["run_id"].nunique() == len(many.rungs)
    assert "the longest of each size" in drawing.how_to_read


def test_expert_figures_repeat_the_records(evidence: Evidence) -> None:
    load = expert_load(evidence).data
    for (run_id, layer), rows in load.groupby(["run_id", "layer"]):
        record = next(r for r in evidence.records if r.run_id == run_id)
        kept = next(item for item in record.load_by_layer if item.layer == layer)
        shares = sorted(kept.load, reverse=True)
        assert rows["load_over_mean"].to_numpy() == pytest.approx(np.array(shares) * len(shares))
    balance = expert_balance(evidence).data.query("series == 'run' and measure == 'max_vio'")
    assert len(balance) == len(evidence.records)
    for record in evidence.records:
        mean = np.mean([item.max_vio for item in record.load_by_layer])
        assert balance.set_index("run_id").loc[record.run_id, "mean"] == pytest.approx(mean)


def test_overload_during_training_is_that_of_the_logged_steps(
    tmp_path: Path, evidence: Evidence
) -> None:
    record = evidence.records[0]
    path = tmp_path / "metrics.jsonl"
    steps = [
        {
            "kind": "train",
            "tokens": record.tokens * step / 200,
            "train_loss_nats": 3.0,
            "layers": [1, 4],
            "max_vio": [8.0 / step, 0.5],
        }
        for step in range(1, 201)
    ]
    path.write_text("".join(json.dumps(step) + "\n" for step in steps))
    curve = read_curve(path)
    assert curve is not None
    assert curve.layers == (1, 4)
    drawing = expert_training(Evidence(records=(record,), curves={record.run_id: curve}))
    falling, even = (drawing.data.query("layer == @layer")["max_vio"] for layer in (1, 4))
    assert np.all(np.diff(falling) < 0)
    assert falling.iloc[0] == 8.0
    assert np.allclose(even, 0.5)
    assert "no routed experts" in expert_training(Evidence(records=(record,))).missing


def test_the_forecast_of_the_load_stands_beside_the_runs(evidence: Evidence) -> None:
    assert evidence.promoted is not None
    forecast = evidence.promoted.forecast
    loads = {"max_vio": (forecast, 0.7)}
    data = expert_balance(replace(evidence, promoted=replace(evidence.promoted, loads=loads))).data
    row = data.query("series == 'forecast'").iloc[0]
    assert (row["mean"], row["low"]) == (forecast.value, forecast.low)
    assert data.query("series == 'measured'")["mean"].item() == 0.7


def test_the_flight_holds_every_waypoint_and_counts_the_hits(evidence: Evidence) -> None:
    promoted = evidence.promoted
    assert promoted is not None
    band = promoted.forecast
    waypoints = (
        OnTheWay(tokens=0.3 * promoted.tokens, forecast=band, measured=band.high * 1.01),
        OnTheWay(tokens=0.6 * promoted.tokens, forecast=band, measured=band.value),
        OnTheWay(tokens=0.8 * promoted.tokens, forecast=band, measured=None),
    )
    ongoing = replace(promoted, waypoints=waypoints, measured=None)
    drawing = flight(replace(evidence, promoted=ongoing))
    assert "So far the interval holds 1 of 2 measurements." in drawing.how_to_read
    assert list(drawing.data["tokens"]) == [w.tokens for w in waypoints] + [promoted.tokens]
    assert list(drawing.data["loss_nats"].dropna()) == [band.high * 1.01, band.value]
    assert "Only the end was forecast" in flight(evidence).how_to_read
    assert "Nothing has been promoted" in flight(replace(evidence, promoted=None)).missing


def test_a_dead_expert_is_named(evidence: Evidence) -> None:
    record = evidence.records[0]
    dead = tuple(replace(layer, dead_frac=0.25) for layer in record.load_by_layer)
    drawing = expert_balance(Evidence(records=(replace(record, load_by_layer=dead),)))
    assert "25.0% of the experts were never chosen" in drawing.how_to_read
    assert "never chosen" not in expert_balance(evidence).how_to_read


@pytest.mark.parametrize("batches", [[1024], [512, 1024, 2048]])
def test_a_learning_rate_optimum_at_the_edge_is_a_bound(
    evidence: Evidence, batches: list[int]
) -> None:
    record, rates = evidence.records[0], [0.25e-2, 0.5e-2, 1e-2, 2e-2]
    inner = recipe(grid_over(record, rates, batches, best=0.9e-2))
    outer = recipe(grid_over(record, rates, batches, best=5e-2))
    assert inner.figure is not None
    assert len(inner.data.query("series == 'run'")) == len(rates) * len(batches)
    assert "at the edge" in outer.distrust
    (optimum,) = inner.data.query("series.str.startswith('optimum')").itertuples()
    assert optimum.peak_lr == pytest.approx(0.9e-2, rel=1e-2)
    if len(batches) == 1:
        assert "at the edge" not in inner.distrust
        assert optimum.series.endswith("inside")
    else:
        assert optimum.series.endswith("at_edge")  # the loss only rises with the batch


def test_a_law_is_drawn_through_the_fitted_optima(evidence: Evidence) -> None:
    rates = [0.25e-2, 0.5e-2, 1e-2, 2e-2, 4e-2]
    records = tuple(
        replace(cell, run_id=f"{rung}-{cell.run_id}", rung=rung, tokens=tokens, train_flops=flops)
        for rung, tokens, flops in (("a", 1_000, 1e9), ("b", 10_000, 1e10), ("c", 100_000, 1e11))
        for cell in grid_over(
            evidence.records[0], rates, [512], best=1e-2 * (flops / 1e10) ** -0.15
        ).records
    )
    drawing = recipe(Evidence(records=records))
    law = drawing.data.query("series == 'law of the learning rate'")
    slope = np.polyfit(np.log(law["train_flops"]), np.log(law["peak_lr"]), 1)[0]
    assert slope == pytest.approx(-0.15, abs=0.01)
    assert "C^-0.15" in drawing.how_to_read


@pytest.mark.parametrize(("of_size", "of_tokens"), [(-0.4, 0.1), (-0.2, -0.2)])
def test_a_law_of_compute_is_said_to_mislead_where_size_and_tokens_act_apart(
    evidence: Evidence, of_size: float, of_tokens: float
) -> None:
    """Three sizes by three token counts, each cell's best rate an exact law of both."""
    record, rates = evidence.records[0], [0.1e-2, 0.25e-2, 0.5e-2, 1e-2, 2e-2, 4e-2, 8e-2]
    records = tuple(
        replace(
            cell,
            run_id=f"{size}-{tokens}-{cell.run_id}",
            rung=f"r{size}",
            flops_per_token=size,
            tokens=tokens,
            train_flops=size * tokens,
        )
        for size in (2e5, 4e5, 8e5)
        for tokens in (10_000, 20_000, 40_000)
        for cell in grid_over(
            record, rates, [512], best=1e-2 * (size / 4e5) ** of_size * (tokens / 2e4) ** of_tokens
        ).records
    )
    drawing = recipe(Evidence(records=records))
    assert drawing.figure is not None
    (law,) = [line for line in drawing.figure.axes[1].lines if len(line.get_xdata()) > 2]
    if of_size == of_tokens:
        assert law.get_linestyle() == "-"
        assert "compute alone" not in drawing.how_to_read
        return
    assert law.get_linestyle() == "--"
    assert "compute alone does not say it" in drawing.how_to_read
    assert f"N^{of_size:.2f} (" in drawing.how_to_read
    assert f"D^{of_tokens:.2f} (" in drawing.how_to_read
    assert "law=learning_rate" in drawing.how_to_read


def test_a_variant_of_another_shape_is_no_trial_of_the_learning_rate(evidence: Evidence) -> None:
    record = evidence.records[0]
    wider = replace(
        record, run_id="wider", peak_lr=0.9 * record.peak_lr, total_params=2 * record.total_params
    )
    assert "neither learning rate" in recipe(Evidence(records=(record, wider))).missing


def test_what_was_not_varied_is_said_instead_of_drawn(evidence: Evidence) -> None:
    drawing = recipe(evidence)
    assert drawing.figure is None
    assert "neither learning rate nor batch" in drawing.missing


def test_nothing_to_draw_always_comes_with_a_sentence() -> None:
    for drawing in draw_all(Evidence(records=())):
        assert drawing.figure is None
        assert drawing.missing.endswith(".")


def test_without_a_fit_the_runs_are_drawn_and_the_surface_is_explained(evidence: Evidence) -> None:
    drawings = {d.name: d for d in draw_all(replace(evidence, study=None, promoted=None))}
    assert drawings["loss_compute"].figure is not None
    assert set(drawings["loss_compute"].data["series"]) == {"run"}
    for name in ("isoflop", "contours", "residuals"):
        assert "windtunnel fit" in drawings[name].missing


def test_a_single_run_draws_without_complaint(evidence: Evidence) -> None:
    for draw in FIGURES:
        draw(Evidence(records=evidence.records[:1]))


def test_diverged_runs_are_not_drawn_as_losses(evidence: Evidence) -> None:
    broken = replace(evidence.records[0], status="diverged", loss_nats=99.0)
    mixed = Evidence(records=(broken, *evidence.records[1:]))
    assert broken.run_id not in set(loss_compute(mixed).data["label"])


def test_hostile_names_draw_well_formed_figures(evidence: Evidence) -> None:
    records = tuple(
        replace(record, rung=HOSTILE + record.rung, run_id=HOSTILE + record.run_id)
        for record in evidence.records
    )
    for drawing in draw_all(Evidence(records=records)):
        if drawing.figure is not None:
            ElementTree.fromstring(plots.to_svg(drawing))


def test_labels_from_outside_are_short_and_hold_no_formula() -> None:
    label = plots_style.safe_label(HOSTILE, limit=24)
    assert "\n" not in label
    assert len(label.replace("\\$", "$")) <= 24
    assert "\\$" in plots_style.safe_label("a$b")


def test_every_file_is_whole_and_the_same_data_give_the_same_svg(
    evidence: Evidence, tmp_path: Path
) -> None:
    drawing = loss_compute(evidence)
    written = {path.suffix: path for path in plots.save(drawing, tmp_path)}
    assert set(written) == {".csv", ".png", ".pdf", ".svg"}
    assert written[".png"].read_bytes().startswith(b"\x89PNG")
    assert written[".pdf"].read_bytes().startswith(b"%PDF")
    root = ElementTree.fromstring(written[".svg"].read_text(encoding="utf-8"))
    width = float(root.attrib["width"].removesuffix("pt")) / 72
    assert width == pytest.approx(plots_style.COLUMN_WIDTH)
    assert plots.to_svg(loss_compute(evidence)) == written[".svg"].read_text(encoding="utf-8")


def test_columns_of_the_data_have_units_in_their_names(evidence: Evidence) -> None:
    """A loss, a size or an end of an interval says what it is of."""
    for draw in (loss_compute, loss_tokens, isoflop, contours, flight):
        columns = set(draw(evidence).data.columns)
        assert not columns & {"size", "low", "high", "size_low", "forecast", "measured"}
        ends = {c.removesuffix("_low") for c in columns if c.endswith("_low")}
        assert ends <= columns


def test_sizes_keep_their_order_without_colour_vision() -> None:
    def luminance(color: str) -> float:
        red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
        ]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light = [luminance(color) for color in plots_style.SIZES]
    assert light == sorted(light, reverse=True)
    loads = [luminance(color) for color in plots_style.LOADS]
    middle = len(loads) // 2
    assert loads[: middle + 1] == sorted(loads[: middle + 1])
    assert loads[middle:] == sorted(loads[middle:], reverse=True)


def test_ticks_are_round_and_inside() -> None:
    for low, high in ((1e10, 3e10), (2e10, 1.3e13), (1e9, 1e25), (65_536, 1e6)):
        ticks = plots_style.log_ticks(low, high)
        assert 1 <= len(ticks) <= 6
        assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)
    assert plots_style.even_ticks(1.74, 3.52) == [2.0, 2.5, 3.0, 3.5]
    for low in np.geomspace(1e4, 1e5, 40):  # a single tick gives no scale
        axis = plots_style.new_figure(1)[1][0].xaxis
        plots_style.count_axis(axis, low, 1.1 * low, "Training tokens")
        assert len(axis.get_majorticklocs()) > 1
    assert plots_style.even_ticks(2.0, 3.0, most=10) == pytest.approx(np.linspace(2, 3, 11))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (131072, "131K"), (1.45e6, "1.4M"), (16.26e9, "16B"), (0.5, "0.5")],
)
def test_counts_are_written_as_papers_write_them(value: float, text: str) -> None:
    assert plots_style.si(value) == text


def test_a_thinned_curve_keeps_the_mean_of_every_bin() -> None:
    tokens = np.arange(1.0, 10_001.0)
    curve = thin(tokens, 5 - np.log(tokens) / 3, bins=50)
    assert len(curve.tokens) <= 50
    assert curve.lines == 10_000
    assert np.all(np.diff(curve.loss) < 0)
    edges = np.geomspace(1, 10_000, 51)
    last = (tokens >= edges[-2]) & (tokens <= edges[-1])
    assert curve.loss[-1] == pytest.approx((5 - np.log(tokens[last]) / 3).mean(), rel=1e-6)


def test_a_torn_metrics_file_gives_the_steps_before_the_tear(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_curve(path) is None
    path.write_text('{"kind": "eval", "tokens": 5, "loss_nats": 4.0}\n')
    assert read_curve(path) is None
    line = '{"kind": "train", "tokens": %d, "train_loss_nats": %g}\n'
    path.write_text(line % (10, 4.0) + line % (20, 3.5) + '{"kind": "train", "tok')
    curve = read_curve(path)
    assert curve is not None
    assert list(curve.tokens) == [10, 20]
    assert list(curve.loss) == [4.0, 3.5]


def test_figures_leave_no_global_state(
    evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pyplot, which keeps each figure it makes, is out of reach, imported by others or not."""
    monkeypatch.delattr(matplotlib, "pyplot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    before = matplotlib.rcParams.copy()  # to look at the backend imports pyplot
    drawn = [drawing for drawing in draw_all(evidence) if drawing.figure is not None]
    assert len(drawn) > 8
    plots.save(drawn[0], tmp_path)
    assert matplotlib.rcParams.copy() == before


def with_variant(evidence: Evidence, loss_ratio: float, activation: float) -> Evidence:
    """Every run a second time, as a variant whose loss is ``loss_ratio`` of the first's."""
    twins = tuple(
        replace(
            record,
            run_id=f"twin-{record.run_id}",
            loss_nats=loss_ratio * record.loss_nats,
            activation_ratio=activation,
        )
        for record in evidence.records
    )
    names = {r.run_id: "num_experts=32" for r in evidence.records}
    names |= {r.run_id: f"num_experts=64 {HOSTILE}" for r in twins}
    return replace(evidence, records=(*evidence.records, *twins), variants=names)


def test_a_variant_is_shown_against_the_fitted_one_cell_by_cell(evidence: Evidence) -> None:
    drawing = feature_trials(with_variant(evidence, 0.98, 0.08))
    assert drawing.figure is not None
    cells = {(r.rung, r.tokens) for r in evidence.records}
    assert len(drawing.data) == len(cells)
    assert drawing.data["difference_percent"].to_numpy() == pytest.approx(-2.0, abs=1e-6)
    assert "num_experts=32" in drawing.how_to_read
    plots.to_svg(drawing)
    alone = feature_trials(evidence)
    assert "one variant" in alone.missing


def test_the_band_of_chance_has_the_noise_of_both_sides(evidence: Evidence) -> None:
    """Two more seeds of a twin's cell at +-3 s: with the first, a standard deviation of 3 s."""
    assert evidence.study is not None
    assert evidence.study.noise is not None
    own = evidence.study.noise.sd

    def half(shown: Evidence) -> float:
        figure = feature_trials(shown).figure
        assert figure is not None
        (band,) = figure.axes[0].patches
        low, high = band.get_path().get_extents(band.get_patch_transform()).get_points()[:, 1]
        assert low == pytest.approx(-high)
        return float(high)

    once = with_variant(evidence, 0.98, 0.08)
    seen = set[tuple[str, int]]()
    single = [  # one seed a cell on the twin's side
        record
        for record in once.records
        if not record.run_id.startswith("twin-")
        or not ((cell := (record.rung, record.tokens)) in seen or seen.add(cell))
    ]
    once = replace(once, records=tuple(single))
    deviation = 1.6448536 * 100 * own
    assert half(once) == pytest.approx(2**0.5 * deviation, rel=1e-6)
    assert "no variant has repeated seeds" in feature_trials(once).how_to_read
    twin = next(record for record in single if record.run_id.startswith("twin-"))
    seeds = [
        replace(twin, run_id=f"{twin.run_id}-{step}", loss_nats=twin.heldout_nats * np.exp(step))
        for step in (-3 * own, 3 * own)
    ]
    names = once.variants | dict.fromkeys(
        (seed.run_id for seed in seeds), once.variants[twin.run_id]
    )
    more = replace(once, records=(*once.records, *seeds), variants=names)
    assert half(more) == pytest.approx(10**0.5 * deviation, rel=1e-6)
    assert f"{3 * own:.2%} of the loss" in feature_trials(more).how_to_read


def test_variants_with_long_common_names_keep_labels_that_differ(evidence: Evidence) -> None:
    both = with_variant(evidence, 0.98, 0.08)
    start = "peak_lr_factor=0.0125, batch_factor="
    third = tuple(replace(r, run_id=f"third-{r.run_id}") for r in evidence.records)
    names = {
        run_id: f"{start}{1 if name == 'num_experts=32' else 2}"
        for run_id, name in both.variants.items()
    }
    names |= {record.run_id: f"{start}0.5" for record in third}
    drawing = feature_trials(replace(both, records=(*both.records, *third), variants=names))
    assert drawing.figure is not None
    (legend,) = drawing.figure.legends
    assert {text.get_text() for text in legend.get_texts()} == {f"{start}2", f"{start}0.5"}


def test_runs_of_other_variants_are_pale_beside_a_law_that_is_not_theirs(
    evidence: Evidence,
) -> None:
    both = with_variant(evidence, 0.98, 0.08)
    for draw in (loss_compute, loss_tokens):
        drawing = draw(both)
        assert drawing.figure is not None
        lines = [line for line in drawing.figure.axes[0].lines if line.get_marker() == "o"]
        pale = sum(len(line.get_xdata()) for line in lines if line.get_alpha() == PALE)
        assert pale == len(evidence.records)
        assert f"Pale dots, {pale} of them" in drawing.how_to_read
        labels = [t.get_text() for legend in drawing.figure.legends for t in legend.get_texts()]
        assert "another variant" in labels
        assert "Pale" not in draw(evidence).how_to_read


def test_one_interval_without_end_does_not_squeeze_the_others(evidence: Evidence) -> None:
    usual = Prediction(value=1.0, low=0.93, high=1.05, level=0.9, extrapolation_ratio=5.2)
    endless = replace(usual, high=40.0)
    held = [
        HeldForecast(evidence="usual", forecast=usual, measured=1.01),
        HeldForecast(evidence="far_off", forecast=usual, measured=1.2),
        HeldForecast(evidence="endless", forecast=endless, measured=1.02),
    ]
    drawing = forecasts(replace(evidence, forecasts=tuple(held)))
    assert drawing.figure is not None
    (axes,) = drawing.figure.axes
    left, right = axes.get_xlim()
    assert -40 < left < -7
    assert 20 < right < 40
    arrows = [
        (line.get_marker(), line.get_ydata()[0]) for line in axes.lines if line.get_marker() in "<>"
    ]
    assert arrows == [(">", 0)]
    assert drawing.data["forecast_high_nats"].max() == 40.0


def test_leverage_is_the_compute_the_law_needs_for_what_a_variant_reached(
    evidence: Evidence,
) -> None:
    drawing = leverage(with_variant(evidence, 0.98, 0.08))
    assert drawing.figure is not None
    data = drawing.data.set_index("run_id")
    assert evidence.study is not None
    law = evidence.study.surface.law
    record = evidence.done[0]
    row = data.loc[f"twin-{record.run_id}"]
    usual = float(law(record.flops_per_token, record.tokens))  # type: ignore[operator]
    needed, base = (law.inverse(loss) for loss in (0.98 * record.loss_nats, usual))  # type: ignore[union-attr]
    assert row["leverage"] == pytest.approx(needed / base)
    assert row["low"] <= row["leverage"] <= row["high"]
    assert data["leverage"].median() > 1
    plots.to_svg(drawing)
    assert "same in every run" in leverage(evidence).missing
    impossible = leverage(with_variant(evidence, 0.2, 0.08))
    assert "can ever reach" in impossible.how_to_read


def test_the_ledger_is_drawn_forecast_by_forecast(evidence: Evidence) -> None:
    """Beyond 24 rows the oldest are in the data alone; what lies outside is hollow."""
    assert "windtunnel launch" in forecasts(evidence).missing
    held = [
        HeldForecast(
            evidence=f"sweep_{n}",
            forecast=Prediction(value=2.0, low=1.9, high=2.2, level=0.9, extrapolation_ratio=5.2),
            measured=2.3 if n == 29 else 1.96,
        )
        for n in range(30)
    ]
    drawing = forecasts(replace(evidence, forecasts=tuple(held)))
    assert drawing.figure is not None
    assert "6 older in the data only" in drawing.how_to_read
    assert list(drawing.data["inside"]) == [True] * 29 + [False]
    (axes,) = drawing.figure.axes
    assert [tick.get_text() for tick in axes.get_yticklabels()][::23] == [
        "sweep_29, 5.2x",
        "sweep_6, 5.2x",
    ]
    diamonds = [line for line in axes.lines if line.get_marker() == "D"]
    places = [float(line.get_xdata()[0]) for line in diamonds]
    assert places == pytest.approx([15.0] + [-2.0] * 23)
    hollow = [line.get_markerfacecolor() == PAPER for line in diamonds]
    assert hollow == [True] + [False] * 23
