"""The hold-out: fit a surface without the largest budgets and forecast them."""

from __future__ import annotations

import numpy as np

from analysis.fitting import fit_surface
from analysis.holdout import HeldOutPoint, Holdout
from analysis.points import Points, take
from analysis.results import FitError
from analysis.settings import FitSettings

LEAST_LEFT = 2
"""Points per parameter that must be left for the fit."""


def hold_out(points: Points, settings: FitSettings) -> tuple[Holdout, ...]:
    """The largest budget left out, then the two largest, ... while enough is left to fit.

    One entry per number of budgets, fewest first; empty where not even one can be spared.
    """
    ranks = np.asarray(points.budget)
    distinct = np.unique(ranks)
    found = []
    for count in range(1, min(settings.holdout_budgets, len(distinct) - 2) + 1):
        kept = np.flatnonzero(ranks < distinct[-count])
        left_out = np.flatnonzero(ranks >= distinct[-count])
        rest = take(points, kept.tolist())
        sizes, tokens = len(set(rest.size)), len(set(rest.tokens))
        if len(rest) < LEAST_LEFT * 5 or min(sizes, tokens) < 2:
            break
        try:
            fit = fit_surface(rest, settings)
        except FitError:
            break
        found.append(
            Holdout(
                budgets=count,
                points=tuple(
                    HeldOutPoint(
                        label=points.label[row],
                        size=points.size[row],
                        tokens=points.tokens[row],
                        flops=points.flops[row],
                        measured=points.loss[row],
                        forecast=fit.predict(
                            points.size[row], points.tokens[row], level=settings.level
                        ),
                    )
                    for row in left_out
                ),
            )
        )
    return tuple(found)
