"""Cells whose optimum lies at the edge of what they tried or beyond, held against a law.

They enter no law: counting them as bounds (a censored likelihood) is right where a law is true, but
made no better forecasts on published sweeps, where the law bends at such cells (LOG.md). What they
are good for is a test: a law that puts their optimum inside what they tried is wrong there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from analysis.hyperparam_laws import PlaneFit
from analysis.hyperparams import CellOptimum, Setting
from analysis.results import Fit, Prediction
from analysis.wording import counted

Forecast = Callable[[CellOptimum], Prediction]
"""Of a cell's optimum, by some law."""
HELD_CONTRADICTED, HELD_OTHERS = 0.59, 0.82
"""Measured optima inside 90 % intervals of laws that a cell at the edge contradicts, and of those
that agree with theirs; published sweeps, most with grids cut short (`benchmarks/edges.py`)."""


def contradicting(
    cells: Sequence[CellOptimum],
    setting: Setting,
    forecast: Forecast,
) -> list[CellOptimum]:
    """The cells at the edge whose side of it the forecast's interval does not reach."""
    found = []
    for cell in cells:
        side, edge = cell.beyond(setting), getattr(cell, setting)
        if (side > 0 and forecast(cell).high < edge) or (side < 0 and forecast(cell).low > edge):
            found.append(cell)
    return found


def edge_warnings(
    cells: Sequence[CellOptimum],
    fits: Mapping[str, Fit],
    planes: Mapping[str, PlaneFit],
    level: float,
) -> tuple[str, ...]:
    """A sentence for each law that cells at the edge contradict; the cells have their bowls.

    Of a setting with a law of size and tokens that one is held against them: forecasts are its.
    """
    crossed = {_setting(what) for what in planes}
    forecasts: dict[str, Forecast] = {}
    for what, plane in planes.items():
        forecasts[what] = partial(_of_plane, plane, level)
    for what, fit in fits.items():
        if _setting(what) not in crossed:
            forecasts[what] = partial(_of_fit, fit, level)
    found = []
    for what, forecast in forecasts.items():
        setting = _setting(what)
        at_edge = sum(cell.beyond(setting) != 0 for cell in cells)
        wrong = contradicting(cells, setting, forecast)
        if not wrong:
            continue
        first = wrong[0]
        side = "above" if first.beyond(setting) > 0 else "below"
        said = forecast(first)
        found.append(
            f"{what}: contradicted by {len(wrong)} of "
            f"{counted(at_edge, 'cell', 'cells')} at the edge of what was tried, which are in no "
            f"law: at size {first.size:.3g} and {first.tokens:.3g} tokens the best lies at "
            f"{getattr(first, setting):.3g} or {side}, the law says {said.low:.3g} to "
            f"{said.high:.3g}. On published sweeps laws contradicted so held "
            f"{HELD_CONTRADICTED:.0%} of new cells in their 90% intervals, laws that agreed with "
            f"their edges {HELD_OTHERS:.0%}; widen the grid there before you rely on a forecast"
        )
    return tuple(found)


def _of_plane(plane: PlaneFit, level: float, cell: CellOptimum) -> Prediction:
    return plane.predict(cell.size, cell.tokens, level)


def _of_fit(fit: Fit, level: float, cell: CellOptimum) -> Prediction:
    return fit.predict(cell.flops, level=level)


def _setting(what: str) -> Setting:
    return "batch_tokens" if what.startswith("batch_tokens") else "peak_lr"
