"""How far the recommended model moves under each choice a careful person could have made.

Published fits of the same points disagree more by such choices than by their printed intervals
(Porian et al., arXiv:2406.19146; Li et al., arXiv:2502.18969). So each is made once, and the spread
is reported beside the bootstrap's interval, not mixed into it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from analysis.bootstrap import intervals, replicate_seeds
from analysis.data_laws import OverTrainingLaw
from analysis.health import OUTLIER
from analysis.isoflop import isoflop_laws, isoflop_optima
from analysis.laws import LossSurface
from analysis.noise import noise_floor
from analysis.points import Points, take
from analysis.profile import profile_intervals
from analysis.results import FitError, Interval
from analysis.robust import REFERENCE_DELTA, robust_sd
from analysis.settings import FitSettings
from analysis.solving import Solved, make_law, solve
from analysis.weighing import weigh


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One way to fit the same runs, and the model it recommends."""

    group: str
    """What was chosen differently: loss, points, law, optimum rule, size."""
    name: str
    tokens: float | None = None
    """D* at the compute."""
    flops_per_token: float | None = None
    """C / D*: the size of the model, whatever the size variable."""
    loss: float | None = None
    note: str = ""
    """Why there is no recommendation."""


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """The recommendation at one compute under every choice; the first is the one in use."""

    flops: float
    choices: tuple[Choice, ...]
    profile: dict[str, Interval] = field(default_factory=dict)
    """Profile-likelihood intervals, beside the bootstrap's."""
    seeds: dict[str, Interval] = field(default_factory=dict)
    """Of the bootstrap over seeds; empty where none was repeated."""

    @property
    def spread(self) -> float:
        """Largest over smallest recommended model."""
        sizes = [c.flops_per_token for c in self.choices if c.flops_per_token is not None]
        return max(sizes) / min(sizes) if sizes else 1.0


def examine_choices(
    points: Points,
    settings: FitSettings,
    flops: float,
    other_sizes: Mapping[str, Points] | None = None,
) -> Sensitivity:
    """Fit every alternative and ask each for its optimum at ``flops``.

    Args:
        points: as fitted.
        settings: as fitted; the first choice.
        flops: the compute to be spent.
        other_sizes: the same runs with another size variable, by its name.
    """
    used = _solve(points, settings)
    choices = [_surface("in use", "in use", points, settings, flops)]
    for name, changed in _losses(settings, used):
        choices.append(_surface("loss", name, points, changed, flops))
    for name, kept in _subsets(points, used):
        choices.append(_surface("points", name, take(points, kept), settings, flops))
    choices.append(_over_training(points, settings, flops))
    choices.append(_isoflop(points, settings, flops))
    for name, others in (other_sizes or {}).items():
        choices.append(_surface("size", f"N = {name}", others, settings, flops))
    profile = {}
    if settings.loss != "lad":  # its objective has no curvature to scale the rise by
        profile = profile_intervals(used, points.array("loss"), settings.level)
    return Sensitivity(
        flops=flops,
        choices=tuple(choices),
        profile=profile,
        seeds=_over_seeds(used, points, settings),
    )


def _over_seeds(used: Solved, points: Points, settings: FitSettings) -> dict[str, Interval]:
    noise = noise_floor(points)
    if noise is None:
        return {}
    replicates = replicate_seeds(used, noise.sd, settings.replicates, settings.seed)
    return intervals(make_law(used), replicates, settings.level, noise.degrees_of_freedom)


def _losses(settings: FitSettings, used: Solved) -> Iterator[tuple[str, FitSettings]]:
    plain = replace(settings, residual="log", huber_delta=None)
    if used.loss.kind != "huber":
        yield "huber, delta by the rule", replace(plain, loss="huber")
    if used.loss.delta != REFERENCE_DELTA:
        yield "huber, delta 1e-3", replace(plain, loss="huber", huber_delta=REFERENCE_DELTA)
    if used.loss.kind != "lad":
        yield "least absolute deviation", replace(plain, loss="lad")
    if used.loss.kind != "squares":
        yield "squares", replace(plain, loss="squares")


def _subsets(points: Points, used: Solved) -> Iterator[tuple[str, list[int]]]:
    """Row numbers kept by each defensible rule that drops something."""
    spread = max(robust_sd(used.residual_N, len(used.form.parameters)), 1e-12)
    far = np.abs(used.residual_N) > OUTLIER * spread
    ranks = np.asarray(points.budget)
    rules = {
        f"without {int(far.sum())} outliers beyond {OUTLIER:.0f} sd": ~far,
        "without the smallest budget": ranks > ranks.min(),
        "without the largest budget": ranks < ranks.max(),
    }
    for name, keep in rules.items():
        if not keep.all():
            yield name, np.flatnonzero(keep).tolist()


def _solve(points: Points, settings: FitSettings) -> Solved:
    variables = (points.array("size"), points.array("tokens"))
    values = points.array("loss")
    return weigh(solve(LossSurface, variables, values, settings), values, points.cell)[0]


def _surface(group: str, name: str, points: Points, settings: FitSettings, flops: float) -> Choice:
    if len(points) <= len(LossSurface.PARAMETERS):
        return Choice(group=group, name=name, note=f"{len(points)} points are too few")
    law = make_law(_solve(points, settings), {"flops_per_size_token": _per_pair(points)})
    assert isinstance(law, LossSurface)
    if not law.has_optimum:
        return Choice(group=group, name=name, note="no optimum: a term of the surface is nothing")
    best = law.optimum(flops)
    return _recommended(group, name, flops, best.tokens, best.loss)


def _over_training(points: Points, settings: FitSettings, flops: float) -> Choice:
    group, name = "law", "one exponent for size and tokens"
    variables = [points.column(v, "OverTrainingLaw") for v in OverTrainingLaw.VARIABLES]
    values = points.array("loss")
    solved = solve(OverTrainingLaw, variables, values, settings)
    law = make_law(weigh(solved, values, points.cell)[0])
    assert isinstance(law, OverTrainingLaw)
    if not (law.a > 0 and law.b > 0):
        return Choice(group=group, name=name, note="no optimum: a term of the law is nothing")
    ratio = law.optimal_ratio()
    tokens = float(np.sqrt(flops * ratio / _per_pair(points)))
    return _recommended(group, name, flops, tokens, float(law(flops, ratio)))


def _isoflop(points: Points, settings: FitSettings, flops: float) -> Choice:
    group, name = "optimum rule", "parabola of each budget"
    quick = replace(settings, replicates=100)
    try:
        _, law = isoflop_laws(isoflop_optima(points), _per_pair(points), quick)
    except FitError as error:
        return Choice(group=group, name=name, note=str(error))
    return _recommended(group, name, flops, law.predict(flops).value, None)


def _recommended(group: str, name: str, flops: float, tokens: float, loss: float | None) -> Choice:
    return Choice(group=group, name=name, tokens=tokens, flops_per_token=flops / tokens, loss=loss)


def _per_pair(points: Points) -> float:
    """C over N·D."""
    ratio = points.array("flops") / (points.array("size") * points.array("tokens"))
    return float(np.median(ratio))
