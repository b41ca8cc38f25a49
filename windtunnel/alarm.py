"""When a launched run has left its forecast: early, and without crying wolf.

At each evaluation on the way the measured loss is put on the scale of its own interval: its
distance from the forecast, in standard deviations of the logarithm. A run is looked at several
times, so a band that a good run leaves once in ten is no alarm; the limit is set so that all looks
together ring once in ``1 / false_alarms`` good runs, however the looks depend on each other
(Bonferroni). Measured on simulated and on real runs: LOG.md, 2026-11-23.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from analysis.results import Prediction
from model.config import require
from windtunnel.along import Evaluated, Waypoint

Position = Literal["below", "inside", "above"]


@dataclass(frozen=True, kw_only=True)
class AlarmConfig:
    """How soon a launch complains, and whether it stops."""

    false_alarms: float
    """Share of good runs that may ring, over all looks and both directions."""
    stop: bool
    """End the run, saved, when it is worse than forecast; one better than forecast only rings."""

    def __post_init__(self) -> None:
        require(
            0 < self.false_alarms < 1,
            f"false_alarms must be between 0 and 1, got {self.false_alarms:g}",
        )


@dataclass(frozen=True, kw_only=True)
class Look:
    """One evaluation held against its forecast."""

    step: int
    position: Position
    """Of the measured loss to the interval."""
    deviations: float
    """Standard deviations above the forecast."""
    rings: bool


def limit_of(false_alarms: float, looks: int) -> float:
    """Deviations beyond which one of ``looks`` rings."""
    return NormalDist().inv_cdf(1 - false_alarms / (2 * looks))


def look(waypoint: Waypoint, found: Evaluated, limit: float) -> Look:
    """Hold ``found`` against ``waypoint``; a loss that is no number rings."""
    forecast = waypoint.forecast
    if not math.isfinite(found.loss_nats):
        return Look(step=found.step, position="above", deviations=math.inf, rings=True)
    deviations = deviations_above(forecast, found.loss_nats)
    position: Position = "inside"
    if found.loss_nats > forecast.high:
        position = "above"
    elif found.loss_nats < forecast.low:
        position = "below"
    return Look(
        step=found.step, position=position, deviations=deviations, rings=abs(deviations) > limit
    )


def deviations_above(forecast: Prediction, loss_nats: float) -> float:
    """Distance from the forecast over the spread that the interval's end on that side implies.

    The ends are at their own distances: an interval of a loss above a floor is lopsided.
    """
    quantile = NormalDist().inv_cdf((1 + forecast.level) / 2)
    end = forecast.high if loss_nats > forecast.value else forecast.low
    spread = abs(math.log(end / forecast.value)) / quantile
    distance = math.log(loss_nats / forecast.value)
    return distance / spread if spread else math.copysign(math.inf, distance) if distance else 0.0


def looks_of(
    waypoints: Sequence[Waypoint], measured: Sequence[Evaluated], false_alarms: float
) -> tuple[Look, ...]:
    """Every look there has been, in order; the limit knows how many there will be."""
    by_step = {found.step: found for found in measured}
    limit = limit_of(false_alarms, max(1, len(waypoints)))
    return tuple(look(w, by_step[w.step], limit) for w in waypoints if w.step in by_step)


def alarm_sentence(found: Look) -> str:
    """What rang, and what to do about it."""
    distance = f"{abs(found.deviations):.1f} standard deviations"
    if found.deviations > 0:
        return (
            f"ALARM at step {found.step}: the loss is {distance} above its forecast; look at the "
            "data, the learning rate and the experts' load before paying for more"
        )
    return (
        f"ALARM at step {found.step}: the loss is {distance} below its forecast; check that no "
        "held-out text is trained on before rejoicing"
    )
