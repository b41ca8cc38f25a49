"""Judgement by hold-out: fit without the largest budgets, forecast them; laws compared by that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.catalogue import LAWS, AnyLaw, the_law
from analysis.fitting import fit_points
from analysis.holdout import HeldOutPoint, Holdout, miss_rate
from analysis.laws import LossSurface
from analysis.points import Points, take
from analysis.results import FitError
from analysis.settings import FitSettings
from model.errors import ConfigError

LEAST_LEFT = 2
"""Points per parameter that must be left for the fit."""
MOST_STARTS, MOST_REPLICATES = 500, 300
"""Of each hold-out's fit: its forecasts are judged, its coefficients are not reported."""
NO_BETTER = 1.1
"""A law whose error is within this factor of the best one's is as good; the simplest one wins."""


@dataclass(frozen=True, kw_only=True)
class LawScore:
    """How one law forecast the held-out budgets."""

    name: str
    num_parameters: int
    errors: tuple[float, ...] = ()
    """Mean |forecast / measured - 1|, one for each number of budgets left out, fewest first."""
    num_inside: int = 0
    num_points: int = 0
    """Held-out points over all hold-outs, and how many lay in their intervals."""
    note: str = ""
    """Why it could not be judged."""

    @property
    def error(self) -> float:
        """Mean over the hold-outs: each number of budgets left out counts once."""
        return sum(self.errors) / len(self.errors) if self.errors else float("inf")


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Laws by their hold-out error, the best first, and which to use."""

    scores: tuple[LawScore, ...]
    picked: str
    reason: str


def hold_out(
    points: Points, settings: FitSettings, law: type[AnyLaw] = LossSurface
) -> tuple[Holdout, ...]:
    """The largest budget left out, then the two largest, ... while enough is left to fit.

    One entry per number of budgets, fewest first; empty where not even one can be spared.
    """
    quick = replace(
        settings,
        starts=min(settings.starts, MOST_STARTS),
        replicates=min(settings.replicates, MOST_REPLICATES),
    )
    ranks = np.asarray(points.budget)
    distinct = np.unique(ranks)
    columns = [points.column(name, the_law(law)) for name in law.VARIABLES]
    losses = points.array("loss")
    found: list[Holdout] = []
    for count in range(1, min(settings.holdout_budgets, len(distinct) - 2) + 1):
        left_out = np.flatnonzero(ranks >= distinct[-count])
        rest = take(points, np.flatnonzero(ranks < distinct[-count]).tolist())
        if len(rest) < LEAST_LEFT * len(law.PARAMETERS):
            break
        kept = ranks < distinct[-count]
        if any(len(set(column[kept])) < 2 <= len(set(column)) for column in columns):
            break  # a variable that no longer varies
        fit = fit_points(law, rest, quick)
        forecasts = [
            fit.predict(*(float(column[row]) for column in columns), level=settings.level)
            for row in left_out
        ]
        rate, rate_sd = miss_rate(fit, [column[left_out] for column in columns], losses[left_out])
        found.append(
            Holdout(
                budgets=count,
                rate=rate,
                rate_sd=rate_sd,
                points=tuple(
                    HeldOutPoint(
                        label=points.label[row],
                        size=_at(points.size, row),
                        tokens=_at(points.tokens, row),
                        flops=_at(points.flops, row),
                        measured=points.loss[row],
                        forecast=forecast,
                    )
                    for row, forecast in zip(left_out, forecasts, strict=True)
                ),
            )
        )
    return tuple(found)


def _at(column: tuple[float, ...], row: np.intp) -> float:
    """0 where the table has no such column."""
    return column[int(row)] if column else 0.0


def compare_laws(points: Points, names: Sequence[str], settings: FitSettings) -> Comparison:
    """Forecast the same held-out budgets by every law, and pick one with a reason.

    Raises:
        ConfigError: no such law, or a law needs a variable the points lack.
        FitError: no law could be judged.
    """
    for name in names:
        if name not in LAWS:
            raise ConfigError(f"laws: no law {name!r}. There are: {', '.join(LAWS)}")
    scores = sorted((_score(points, name, settings) for name in names), key=lambda s: s.error)
    best = scores[0]
    if not best.errors:
        notes = "; ".join(f"{score.name}: {score.note}" for score in scores)
        raise FitError(f"no law can be judged by hold-out ({notes})")
    as_good = [score for score in scores if score.error <= NO_BETTER * best.error]
    picked = min(as_good, key=lambda score: (score.num_parameters, score.error))
    if picked is best:
        reason = f"the smallest hold-out error, {best.error:.2%}"
    else:
        reason = (
            f"{picked.error:.2%} is within {NO_BETTER - 1:.0%} of {best.name}'s {best.error:.2%}, "
            f"with {picked.num_parameters} parameters instead of {best.num_parameters}"
        )
    return Comparison(scores=tuple(scores), picked=picked.name, reason=reason)


def _score(points: Points, name: str, settings: FitSettings) -> LawScore:
    law = LAWS[name]
    holdouts = hold_out(points, settings, law)
    count = len(law.PARAMETERS)
    if not holdouts:
        note = f"{len(points)} points leave too few for {count} parameters without a budget"
        return LawScore(name=name, num_parameters=count, note=note)
    return LawScore(
        name=name,
        num_parameters=count,
        errors=tuple(holdout.mean_abs_error for holdout in holdouts),
        num_inside=sum(holdout.num_inside for holdout in holdouts),
        num_points=sum(len(holdout.points) for holdout in holdouts),
    )
