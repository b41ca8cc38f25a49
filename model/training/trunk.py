"""What runs of one rung and seed have in common, trained once: the constant-rate trunk.

A trunk keeps its state or its weights at the steps other runs will ask for, in a folder of its own:

    snapshots/step-00000120/    a checkpoint, whole or with the weights alone

A run that shares the trunk goes on from the last state before its own rate falls (a decay branch),
or averages weights (a merge) and trains nothing. What it measures is what it would have measured by
itself, to the bit: the trunk's steps are the run's own first steps. So a snapshot that is missing
costs time, never a number; the run then trains those steps itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.errors import ConfigError
from model.files import step_folder
from model.training.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    checkpoint_paths,
    read_checkpoint,
)
from model.training.config import TrainConfig
from model.training.learner import model_weights
from model.training.merge import merge_coefficients, merge_weights
from model.training.schedules import merged_steps, trunk_steps

STATE = "optimizer."
"""Tensors a snapshot has only if a run can go on from it."""


@dataclass(frozen=True)
class Snapshots:
    """The snapshots a run may read: its own, and those of the trunk it shares."""

    own: Path
    identity: str
    """Of the trunk; a snapshot of another one is refused."""
    shared: Path | None = None
    read_from: Callable[[Path], Checkpoint] = read_checkpoint
    """How a process reads a checkpoint: the whole of it, or its share."""

    def has(self, step: int) -> bool:
        """Whether there is one of that step."""
        return self._where(step) is not None

    def read(self, step: int) -> Checkpoint:
        """The one of that step.

        Raises:
            ConfigError: it is broken or another trunk's.
        """
        path = self._where(step)
        if path is None:
            raise ConfigError(f"{self.own}: no snapshot of step {step}; measure the run again")
        try:
            found = self.read_from(path)
        except BrokenCheckpoint as error:
            raise ConfigError(f"{path}: {error}; remove the folder and run again") from None
        if found.state["identity"] != self.identity:
            raise ConfigError(f"{path}: belongs to another trunk; remove the folder and run again")
        return found

    def start_for(self, config: TrainConfig) -> Checkpoint | None:
        """What a run without a checkpoint of its own begins with: the last state it can use."""
        if self.shared is None:
            return None
        needed = trunk_steps(config)
        if config.schedule.kind == "wsm":
            missing = [step for step in merged_steps(config) if not self.has(step)]
            if not missing:
                return self.read(config.num_steps)
            needed = min(needed, min(missing) - 1)
        for path in checkpoint_paths(self.shared):
            if int(path.name.removeprefix("step-")) > needed:
                continue
            found = self.read(int(path.name.removeprefix("step-")))
            if any(name.startswith(STATE) for name in found.tensors):
                return found
        return None

    def merged(self, config: TrainConfig) -> dict[str, Tensor]:
        """The average of the run's checkpoints that stands for its decay, as weights alone."""
        shape, steps = config.schedule.decay_shape, merged_steps(config)
        weights = [model_weights(self.read(step).tensors) for step in steps]
        merged = merge_weights(weights, merge_coefficients(shape, len(steps)))
        return {f"model.{name}": tensor for name, tensor in merged.items()}

    def _where(self, step: int) -> Path | None:
        for folder in (self.own, self.shared):
            if folder is not None and (path := step_folder(folder, step)).exists():
                return path
        return None
