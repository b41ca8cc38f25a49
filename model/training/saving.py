"""Where a run stands on disk: found again, written, and cut back where the run goes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.files import step_folder
from model.training.checkpoint import Checkpoint, checkpoint_paths
from model.training.learner import Learner
from model.training.rewind import RewindPoints
from model.training.trackers import Metrics
from model.training.trunk import Snapshots


def find_checkpoint(
    learner: Learner, checkpoints: Path, identity: str, metrics_path: Path
) -> Checkpoint | None:
    """The newest checkpoint that the run of ``identity`` can go on from.

    Raises:
        ConfigError: what lies there belongs to another run.
    """
    return learner.find(checkpoints, lambda c: why_unusable(c.state, identity, metrics_path))


def why_unusable(saved: Mapping[str, Any], identity: str, metrics_path: Path) -> str:
    """Why a whole checkpoint, of which ``saved`` is the plain part, is not one to go on from.

    Empty if it is.

    Raises:
        ConfigError: it belongs to another run.
    """
    if saved["identity"] != identity:
        raise ConfigError(
            f"{metrics_path.parent}: holds checkpoints of a run with another model, training "
            "config or corpus; use a new folder, or delete its checkpoints/ to begin again"
        )
    length = metrics_path.stat().st_size if metrics_path.exists() else 0
    if length < saved["metrics_offset"]:
        return f"metrics.jsonl has {length} bytes, it was saved with more"
    return ""


@dataclass
class Saver:
    """Writes the checkpoints of one run, and the snapshots of one that is a trunk."""

    folder: Path
    identity: str
    keep_newest: int
    learner: Learner
    metrics: Metrics
    snapshots: Snapshots
    states_at: frozenset[int]
    """Steps whose snapshot is the whole state; the others hold weights alone."""
    points: RewindPoints | None
    is_merged: bool = False
    """The weights are an average by now, and nothing trains on from them."""

    def save(self) -> None:
        """Write a checkpoint."""
        state = self.learner.state
        plain = {
            "identity": self.identity,
            "metrics_offset": self.metrics.synced_offset(),
            "run": state.to_plain(),
        }
        if self.is_merged:
            tensors = {**self.learner.weights(), **state.use.to_tensors()}
        else:
            tensors = self.learner.tensors()
        if self.points is not None:
            point_tensors, plain["rewind_points"] = self.points.to_checkpoint()
            tensors |= point_tensors
        contents = Checkpoint(state.step, tensors, plain)
        self.learner.write(self.folder, contents, keep=self.keep_newest)

    def keep_snapshot(self) -> None:
        """Keep the state or the weights of this step for the runs that share this trunk."""
        state = self.learner.state
        whole = state.step in self.states_at
        tensors = self.learner.tensors() if whole else self.learner.weights()
        plain = {"identity": self.snapshots.identity, "run": state.to_plain()}
        contents = Checkpoint(state.step, tensors, plain)
        self.learner.write(self.snapshots.own, contents, keep=None)

    def drop_after(self, step: int) -> None:
        """Remove what was written after ``step``: the run went back to it."""
        for folder in (self.folder, self.snapshots.own):
            later = [p for p in checkpoint_paths(folder) if p > step_folder(folder, step)]
            self.learner.remove(later)
