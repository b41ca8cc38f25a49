"""Learning rate over a run, as a factor on its peak, and the shapes of a decay."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from model.config import require
from model.training.config import ScheduleConfig, TrainConfig

DecayShape = Literal["linear", "1-sqrt", "cosine"]


def decay_shape(shape: DecayShape, t: float) -> float:
    """From 1 at t = 0 to 0 at t = 1.

    ``1-sqrt`` is 1 - √t (Hägele et al., arXiv:2405.18392), the best of those tried there and in the
    study of checkpoint merging (arXiv:2507.17634).
    """
    match shape:
        case "linear":
            return 1 - t
        case "1-sqrt":
            return 1 - math.sqrt(t)
        case "cosine":
            return (1 + math.cos(math.pi * t)) / 2


def lr_factor(schedule: ScheduleConfig, frac: float, tokens: float = math.inf) -> float:
    """Learning rate over its peak when ``tokens``, ``frac`` (0 to 1) of the run's, have been seen.

    ``tokens`` decides only where the warm-up is given in tokens.
    """
    if schedule.warmup_tokens is not None:
        if tokens < schedule.warmup_tokens:
            return tokens / schedule.warmup_tokens
    elif frac < schedule.warmup_frac:
        return frac / schedule.warmup_frac
    match schedule.kind:
        case "constant" | "wsm":
            return 1.0
        case "cosine":
            shape: DecayShape = "cosine"
            start = schedule.warmup_frac
        case "wsd":
            shape = schedule.decay_shape
            start = 1 - schedule.decay_frac
    if frac <= start:
        return 1.0
    left = decay_shape(shape, (frac - start) / (1 - start))
    return schedule.final_frac + (1 - schedule.final_frac) * left


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of step ``step`` (from 0): the schedule at the middle of the step's tokens.

    The middle, so that the rate summed over tokens is nearly the same whatever the batch, and
    neither the first step nor the last is wasted on a rate of zero.
    """
    frac = (step + 0.5) / config.num_steps
    tokens = (step + 0.5) * config.batch_tokens
    return config.optimizer.peak_lr * lr_factor(config.schedule, frac, tokens)


def trunk_schedule(schedule: ScheduleConfig) -> ScheduleConfig:
    """The schedule of the trunk that runs of ``schedule`` are readouts of; one for all of them."""
    return ScheduleConfig(
        kind="constant",
        warmup_frac=schedule.warmup_frac,
        decay_frac=0.0,
        final_frac=1.0,
        num_merged=1,
        trunk=True,
        warmup_tokens=schedule.warmup_tokens,
    )


def trunk_steps(config: TrainConfig) -> int:
    """Steps that ``config`` has in common with its trunk: those before its rate falls."""
    if config.schedule.kind != "wsd":
        return config.num_steps
    trunk = replace(config, schedule=trunk_schedule(config.schedule))
    step = max(0, math.floor(config.num_steps * (1 - config.schedule.decay_frac)) - 2)
    while step < config.num_steps and learning_rate(config, step) == learning_rate(trunk, step):
        step += 1
    return step


def merged_steps(config: TrainConfig) -> tuple[int, ...]:
    """The steps after which the checkpoints of a wsm average are taken, the last of the run last.

    The first stands where the decay would begin, the last where it would end.
    """
    count = config.schedule.num_merged
    if count == 1:
        return (config.num_steps,)
    reach = config.schedule.decay_frac * config.num_steps
    steps = [config.num_steps - round(reach * left / (count - 1)) for left in range(count)]
    require(
        len(set(steps)) == count,
        f"schedule: {count} checkpoints do not fit into the last {reach:.3g} steps of "
        f"{config.num_steps}; lower num_merged or raise decay_frac",
    )
    return tuple(reversed(steps))
