"""Figures of a table's law: the points and the law that made them, under the table's own names."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.asked import forecast_at
from analysis.laws import LossSurface
from analysis.plots_style import save
from analysis.plots_table import FIGURES, draw_table
from analysis.points import make_points
from analysis.settings import FitSettings
from analysis.study import make_study

LAW = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28, flops_per_size_token=6.0)


def drawn(sizes, budgets, at=None):
    size, tokens = (grid.ravel() for grid in np.meshgrid(sizes, budgets))
    points = make_points(
        size_variable="Params (B)",
        label=[f"row {i + 2}" for i in range(len(size))],
        size=size,
        tokens=tokens,
        loss=LAW(size, tokens),
        flops=6 * size * tokens,
    )
    study = make_study("runs.csv", points, (), FitSettings(starts=200, replicates=100))
    if at:
        asked = forecast_at(study.surface, points, at, level=0.9)
        study = replace(study, forecasts=(asked,))
    return {drawing.name: drawing for drawing in draw_table(study)}


def test_they_show_the_rows_and_the_law_that_made_them(tmp_path):
    drawings = drawn([44e6, 180e6, 710e6], [1e9, 4e9, 16e9])
    assert len(drawings) == len(FIGURES)
    data = drawings["loss_compute"].data
    assert set(data[data.series == "run"].label) == {f"row {i}" for i in range(2, 11)}
    frontier = data[data.series == "law along the optimum"]
    truth = [LAW.optimum(flops).loss for flops in frontier.train_flops]
    assert frontier.loss_nats.to_numpy() == pytest.approx(truth, rel=1e-3)
    residuals = drawings["residuals"].data.residual_percent
    assert abs(residuals).max() < 0.1
    (legend, *_) = drawings["loss_tokens"].figure.legends
    assert legend.get_title().get_text() == "Model size, Params (B)"
    assert [text.get_text() for text in legend.get_texts()] == ["44M", "180M", "710M"]
    assert drawings["isoflop"].figure.axes[0].get_xlabel() == "Model size (Params (B))"
    save(drawings["loss_compute"], tmp_path)
    pdf = (tmp_path / "loss_compute.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf  # journals refuse such fonts


def test_the_forecast_asked_for_is_marked_with_its_interval():
    drawings = drawn([44e6, 180e6, 710e6], [1e9, 4e9, 16e9], at={"size": 3e9, "tokens": 60e9})
    for name in ("loss_compute", "loss_tokens"):
        data = drawings[name].data
        (mark,) = data[data.series == "forecast"].to_dict("records")
        assert mark["train_flops"] == pytest.approx(6 * 3e9 * 60e9)
        assert mark["loss_nats"] == pytest.approx(LAW(3e9, 60e9), rel=5e-3)
        assert mark["loss_nats_low"] < mark["loss_nats"] < mark["loss_nats_high"]
        labels = [t.get_text() for legend in drawings[name].figure.legends for t in legend.texts]
        assert "forecast, 90%" in labels
        low, high = drawings[name].figure.axes[0].get_xlim()
        assert low < mark["train_flops" if name == "loss_compute" else "tokens"] < high


def test_no_two_sizes_of_a_legend_look_alike():
    drawings = drawn([1.01e9, 1.04e9, 2e9], [1e10, 4e10, 16e10])
    (legend, *_) = drawings["loss_tokens"].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["1.01B", "1.04B", "2B"]
