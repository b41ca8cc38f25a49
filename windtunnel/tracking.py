"""Where the mirror of a sweep, a launch or a report lies, and how it is looked at or uploaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from model.training.config import JsonlTracker, TensorboardTracker, TrackerConfig, WandbTracker
from windtunnel.console import say


def located(tracker: TrackerConfig, root: Path, group: str) -> TrackerConfig:
    """``tracker`` with its folder and group filled in where the user left them open."""
    if isinstance(tracker, JsonlTracker):
        return tracker
    return replace(tracker, dir=tracker.dir or root, group=tracker.group or group)


def tell_mirror(console: Console, tracker: TrackerConfig) -> None:
    """Print the one command that uploads what W&B kept offline, or shows it in TensorBoard."""
    if isinstance(tracker, WandbTracker) and tracker.mode == "offline":
        say(console, f"Kept for W&B; to upload it: wandb sync {(tracker.dir or Path()) / 'wandb'}")
    if isinstance(tracker, TensorboardTracker):
        folder = (tracker.dir or Path()) / "tensorboard"
        say(console, f"Kept for TensorBoard; to look at it: tensorboard --logdir {folder}")
