"""Going back to before a loss spike, and leaving out the text it was met in.

Points to go back to are taken at fixed steps while the loss is healthy and kept in memory, with the
checkpoints holding copies: where a run goes back to must not depend on when it was saved or killed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from model.training.health import SMOOTHING_STEPS, SPIKE_STEPS

LEAD_STEPS = SPIKE_STEPS + 2 * SMOOTHING_STEPS
"""A spike is noticed so many steps after its cause: the smoothing delays it, and it may heal."""
POINTS_PER_RUN = 40
HEALTHY_RISE = 0.5
"""No point is taken while the smoothed loss stands this far up towards what counts as a spike."""


@dataclass(frozen=True)
class Point:
    """A state to go back to."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    metrics_offset: int


class RewindPoints:
    """The few points that may still be needed, oldest first."""

    def __init__(self, num_steps: int) -> None:
        self._every = max(LEAD_STEPS, num_steps // POINTS_PER_RUN)
        self._points: list[Point] = []

    def is_due(self, step: int, rise: float) -> bool:
        """Whether a point is to be taken after ``step`` steps."""
        return step % self._every == 0 and rise < HEALTHY_RISE

    def take(self, point: Point) -> None:
        """Keep a point; those that a later one has made useless are dropped."""
        old = [kept for kept in self._points if kept.step <= point.step - LEAD_STEPS]
        self._points = [*old[-1:], *(p for p in self._points if p not in old), point]

    def before(self, step: int) -> Point | None:
        """The newest point from before what was noticed at ``step``; later ones are dropped."""
        usable = [point for point in self._points if point.step <= step - LEAD_STEPS]
        self._points = usable
        return usable[-1] if usable else None

    def to_checkpoint(self) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Tensors and plain values that hold all points."""
        tensors = {
            f"rewind.{number}.{name}": tensor
            for number, point in enumerate(self._points)
            for name, tensor in point.tensors.items()
        }
        plain = [
            {"step": point.step, "state": point.state, "metrics_offset": point.metrics_offset}
            for point in self._points
        ]
        return tensors, plain

    def restore(self, tensors: dict[str, Tensor], plain: list[dict[str, Any]]) -> None:
        """The inverse of :meth:`to_checkpoint`."""
        self._points = []
        for number, values in enumerate(plain):
            prefix = f"rewind.{number}."
            mine = {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }
            self._points.append(Point(tensors=mine, **values))
