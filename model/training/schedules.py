"""Learning rate over a run, as a factor on its peak, and the shapes of a decay."""

from __future__ import annotations

import math
from typing import Literal

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


def lr_factor(schedule: ScheduleConfig, frac: float) -> float:
    """Learning rate over its peak when ``frac`` (0 to 1) of the run's tokens have been seen."""
    if frac < schedule.warmup_frac:
        return frac / schedule.warmup_frac
    match schedule.kind:
        case "constant":
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
    return config.optimizer.peak_lr * lr_factor(config.schedule, frac)
