"""The lines a run writes: to its metrics file, which is the truth, and to a mirror of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from model.training.config import TrainConfig
from model.training.mirrors import Mirror
from model.training.state import RunState
from model.training.trackers import Metrics

LINES_PER_RUN = 200
"""About how often a run logs: a function of its length alone, so that no line depends on time."""


def steps_per_line(config: TrainConfig) -> int:
    """Steps between two lines of training."""
    return math.ceil(config.num_steps / LINES_PER_RUN)


class RunLog:
    """Every line says at which step and after how many tokens it was written."""

    def __init__(
        self, metrics: Metrics, mirror: Mirror, state: RunState, batch_tokens: int
    ) -> None:
        self.metrics, self.mirror = metrics, mirror
        self._state, self._batch_tokens = state, batch_tokens

    def write(self, line: Mapping[str, Any]) -> None:
        """Append ``line`` to both."""
        step = self._state.step
        line = {"step": step, "tokens": step * self._batch_tokens, **line}
        self.metrics.write(line)
        self.mirror.log(line)

    def close(self) -> None:
        """No more lines."""
        self.metrics.close()
        self.mirror.close()


def train_line(
    state: RunState, config: TrainConfig, lr: float, layers: Sequence[int]
) -> dict[str, Any]:
    """The line of training for the steps since the last one; ``layers``: those with experts."""
    num_steps = state.step - state.line_step
    line: dict[str, Any] = {
        "kind": "train",
        "train_loss_nats": state.line_nats / num_steps,
        "mtp_loss_nats": state.line_mtp_nats / num_steps,
        "lr": lr,
        "grad_norm": state.line_grad_norm,
    }
    if layers:
        line |= {"layers": layers, **state.use.metrics()}
    return line | {
        "tokens_per_s": tokens_per_s(state, config),
        "wall_s": sum(state.seconds.values()),
    }


def tokens_per_s(state: RunState, config: TrainConfig) -> float:
    """Of the run's own steps; 0 where a trunk did them all."""
    trained_s = state.seconds.get("step", 0.0) + state.seconds.get("data", 0.0)
    done = (state.step - state.first_step) * config.batch_tokens
    return done / trained_s if done else 0.0
