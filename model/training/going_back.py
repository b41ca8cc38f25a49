"""A run that goes back to before what went wrong, and trains on without the text it was met in."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from model.training.config import TrainConfig
from model.training.learner import Learner
from model.training.lines import RunLog
from model.training.rewind import Point, RewindPoints
from model.training.saving import Saver


@dataclass(frozen=True)
class WayBack:
    """Takes points to go back to, and goes back to them."""

    points: RewindPoints
    learner: Learner
    log: RunLog
    saver: Saver
    config: TrainConfig

    def remember(self, rise: float) -> None:
        """Take a point of the state as it is, if one is due and the loss is healthy."""
        state = self.learner.state
        if not self.points.is_due(state.step, rise):
            return
        tensors = {name: tensor.clone() for name, tensor in self.learner.tensors().items()}
        offset = self.log.metrics.synced_offset()
        self.points.take(Point(state.step, tensors, state.to_plain(), offset))

    def go(self, reason: str, bad_step: int) -> bool:
        """To before what went wrong at ``bad_step``; False where that is not possible any more."""
        state = self.learner.state
        if len(state.rewinds) >= self.config.health.max_rewinds:
            return False
        point = self.points.before(bad_step)
        if point is None:
            return False
        skipped = bad_step - point.step
        told = {"step": point.step, "from_step": bad_step, "reason": reason}
        kept = copy.copy(state)
        self.learner.restore(point.tensors)
        state.use.restore(point.tensors)
        state.become(point.state)
        state.seconds = kept.seconds
        state.fp8_fallen = kept.fp8_fallen
        if kept.computed_by:  # whoever computes now computes the steps from the point on, too
            state.go_on_under(kept.computed_by[-1]["numerics"])
        state.rewinds = [*kept.rewinds, told]
        state.skipped_steps = kept.skipped_steps + skipped
        self.log.metrics.cut(point.metrics_offset)
        line = {"kind": "rewind", **told, "skipped_tokens": skipped * self.config.batch_tokens}
        self.log.write(line)
        self.saver.drop_after(point.step)
        self.saver.save()
        return True
