"""Where the mirror of a sweep, a launch or a report lies, and how it is looked at or uploaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from model.errors import ConfigError
from model.training.config import JsonlTracker, TensorboardTracker, TrackerConfig, WandbTracker
from windtunnel.console import say


def located(tracker: TrackerConfig, root: Path, group: str) -> TrackerConfig:
    """``tracker`` with its folder and group filled in where the user left them open."""
    if isinstance(tracker, JsonlTracker):
        return tracker
    return replace(tracker, dir=tracker.dir or root, group=tracker.group or group)


def require_login(tracker: TrackerConfig) -> None:
    """ConfigError where runs were to be uploaded as they train and W&B would refuse them all."""
    if not isinstance(tracker, WandbTracker) or tracker.mode != "online":
        return
    from model.training.wandb_mirror import is_logged_in  # here: few commands upload

    if not is_logged_in():
        raise ConfigError(
            "tracker.mode=online: not logged in to W&B, which would get nothing; run `wandb login` "
            "first, or leave tracker.mode out: then all is kept on disk, to be uploaded later"
        )


def tell_mirror(console: Console, tracker: TrackerConfig) -> None:
    """Print the one command that uploads what W&B kept offline, or shows it in TensorBoard."""
    if isinstance(tracker, WandbTracker) and tracker.mode == "offline":
        say(console, f"Kept for W&B; to upload it: wandb sync {(tracker.dir or Path()) / 'wandb'}")
    if isinstance(tracker, TensorboardTracker):
        folder = (tracker.dir or Path()) / "tensorboard"
        say(console, f"Kept for TensorBoard; to look at it: tensorboard --logdir {folder}")
