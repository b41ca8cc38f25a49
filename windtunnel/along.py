"""The loss along the run, forecast from the same moments of the sweep's runs.

The law of final losses does not speak of the losses on the way: before the decay of the learning
rate they lie well above it. But every run of a sweep is evaluated at the same shares of its length
under the same schedule, so the losses at one share are a surface of their own in size and tokens.
Each is fitted and predicted as the final one is, interval and all. What two surfaces say of one run
need not agree: where the sweep's runs fell from one moment to the next and the forecasts rise, the
two are drawn level between them, their interval holding both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from analysis.fitting import fit_surface
from analysis.results import FitError, Prediction
from analysis.study import Study
from analysis.wording import joined
from model.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Waypoint:
    """One evaluation on the way: on fewer held-out tokens than the final one."""

    step: int
    forecast: Prediction
    """Nats per token, as that evaluation will measure it."""


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What an evaluation on the way measured."""

    step: int
    loss_nats: float


MOST_FELL = 0.9
"""Share of the sweep's runs that fell, from which on the promoted one is taken to fall, too."""


def falling(waypoints: Sequence[Waypoint], by_run: Sequence[Sequence[Evaluated]]) -> list[Waypoint]:
    """Forecasts that don't rise where the runs fell: least squares in the log under that order.

    Neighbours that rise are pooled, each weighted by the square of its interval's width (pool
    adjacent violators; Barlow et al. 1972).

    Args:
        waypoints: in the order of their steps.
        by_run: of each run of the sweep its evaluations at the same moments.
    """
    blocks: list[list[Waypoint]] = []
    for index, waypoint in enumerate(waypoints):
        blocks.append([waypoint])
        while len(blocks) > 1 and _pooled(blocks[-1]).value > _pooled(blocks[-2]).value:
            first = index + 1 - len(blocks[-1])
            fell = [found[first].loss_nats <= found[first - 1].loss_nats for found in by_run]
            if np.mean(fell) < MOST_FELL:
                break
            last = blocks.pop()
            blocks[-1] += last
    return [
        replace(waypoint, forecast=_pooled(block)) if len(block) > 1 else waypoint
        for block in blocks
        for waypoint in block
    ]


def _pooled(block: Sequence[Waypoint]) -> Prediction:
    """One forecast for several moments: their weighted mean, an interval that holds all."""
    forecasts = [waypoint.forecast for waypoint in block]
    widths = [max(np.log(found.high / found.low), 1e-12) for found in forecasts]
    logs = [np.log(found.value) for found in forecasts]
    return replace(
        forecasts[0],
        value=float(np.exp(np.average(logs, weights=1 / np.square(widths)))),
        low=min(found.low for found in forecasts),
        high=max(found.high for found in forecasts),
    )


def evaluations_in(metrics: Path) -> tuple[Evaluated, ...]:
    """The evaluations on the way in a ``metrics.jsonl``; a line torn by a crash is its end."""
    found = []
    try:
        text = metrics.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    for line in text.splitlines():
        try:
            mapping: dict[str, Any] = json.loads(line)
        except json.JSONDecodeError:
            break
        if mapping.get("kind") == "eval" and not mapping.get("final"):
            found.append(Evaluated(step=mapping["step"], loss_nats=mapping["loss_nats"]))
    return tuple(found)


def in_flight(
    waypoints: Iterable[Waypoint], measured: Iterable[Evaluated]
) -> Iterator[tuple[Waypoint, Evaluated]]:
    """Each waypoint the run has passed, with what was measured there."""
    by_step = {found.step: found for found in measured}
    for waypoint in waypoints:
        if waypoint.step in by_step:
            yield waypoint, by_step[waypoint.step]


def forecast_along(
    study: Study,
    evaluations: Mapping[str, tuple[Evaluated, ...]],
    flops_per_token: float,
    train: TrainConfig,
    level: float,
) -> tuple[tuple[Waypoint, ...], str]:
    """The waypoints of a run of that size, and a sentence on how they were made or why none is.

    Args:
        study: the fit of the final losses; its points and settings are used again.
        evaluations: by run id, what was measured on the way.
        flops_per_token: M of the run.
        train: how the run is trained.
        level: of the intervals.
    """
    none = "no forecast along the run: "
    final = f"the law of final losses, each after a full {train.schedule.kind} schedule, does not"
    asked = train.evaluation.num_intermediate
    if asked == 0:
        return (), f"{none}the protocol evaluates no run on the way, and {final} hold there"
    by_run = [evaluations.get(label, ()) for label in study.points.label]
    lacking = sum(len(found) != asked for found in by_run)
    if lacking:
        return (), f"{none}{lacking} of {len(by_run)} runs lack evaluations, and {final} hold there"
    waypoints = []
    for index in range(asked):
        losses = tuple(found[index].loss_nats for found in by_run)
        try:
            fit = fit_surface(replace(study.points, loss=losses), study.settings)
        except FitError as error:
            return (), f"{none}{error}"
        waypoints.append(
            Waypoint(
                step=round(train.num_steps * (index + 1) / (asked + 1)),
                forecast=replace(fit, drift=study.surface.drift).predict(
                    flops_per_token, train.tokens, level=level
                ),
            )
        )
    waypoints = falling(waypoints, by_run)
    return tuple(waypoints), (
        f"along the run each evaluation is forecast by a surface of its own, fitted to the same "
        f"moment of the {len(by_run)} runs; {final} speak of them{level_text(waypoints)}"
    )


def level_text(waypoints: Sequence[Waypoint]) -> str:
    """Why several moments have one forecast; empty where none do."""
    level: dict[float, list[int]] = {}
    for waypoint in waypoints:
        level.setdefault(waypoint.forecast.value, []).append(waypoint.step)
    blocks = [steps for steps in level.values() if len(steps) > 1]
    if not blocks:
        return ""
    listed = "; ".join(joined([str(step) for step in steps]) for steps in blocks)
    return (
        f". At steps {listed} the surfaces would rise where the runs fell: they know too little to "
        "tell these moments apart, and are drawn level, with an interval that holds them all"
    )
