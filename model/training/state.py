"""What a run carries from step to step besides its weights and its optimizer."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from model.training.health import HealthState
from model.training.routing_use import RoutingUse


@dataclass
class RunState:
    """Everything about a run in progress besides its weights and its optimizer."""

    health: HealthState
    use: RoutingUse
    step: int = 0
    """Optimizer steps done."""
    first_step: int = 0
    """Of these, steps that a trunk did, or that were done elsewhere."""
    line_step: int = 0
    """Step of the last line of metrics."""
    line_nats: float = 0.0
    """Sum of the losses since then, like the two that follow."""
    line_mtp_nats: float = 0.0
    line_grad_norm: float = 0.0
    """Largest since then."""
    tail_steps: int = 0
    tail_nats: float = 0.0
    """Sum of the losses of the run's last tenth."""
    tails: dict[str, float] = field(default_factory=dict)
    """The same for the runs that end on this trunk, by the step of their end."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Time by activity."""
    mirror_id: str = ""
    skipped_steps: int = 0
    """Steps whose text was left out after going back."""
    fp8_fallen: list[str] = field(default_factory=list)
    """Layers that went back from FP8 to bfloat16."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """What the stages that are over measured."""
    rewinds: list[dict[str, Any]] = field(default_factory=list)
    """Where from and to the run went back, and why."""
    computed_by: list[dict[str, Any]] = field(default_factory=list)
    """``from_step`` on, under what ``numerics``; several where it was resumed under others."""

    def go_on_under(self, numerics: Mapping[str, Any]) -> None:
        """Say under what the steps from here on are computed."""
        if not self.computed_by or self.computed_by[-1]["numerics"] != numerics:
            self.computed_by.append({"from_step": self.step, "numerics": dict(numerics)})

    def count(self, loss_nats: float, mtp_nats: float, grad_norm: float) -> None:
        """One more step is done."""
        self.step += 1
        self.line_nats += loss_nats
        self.line_mtp_nats += mtp_nats
        self.line_grad_norm = max(self.line_grad_norm, grad_norm)

    def begin_line(self) -> None:
        """A line was written; begin the sums anew."""
        self.line_step = self.step
        self.line_nats = self.line_mtp_nats = self.line_grad_norm = 0.0
        self.use.begin_line()

    def count_tails(self, loss_nats: float, ends: Iterable[int]) -> None:
        """The step just done lies in the last tenth of the runs that end at some of ``ends``."""
        for end in ends:
            if tail_begins(end) < self.step <= end:
                self.tails[str(end)] = self.tails.get(str(end), 0.0) + loss_nats

    def begin_from_trunk(self, trunk: Mapping[str, Any], num_steps: int) -> None:
        """Go on where a trunk's plain state stands, as a run of ``num_steps`` of one's own."""
        vars(self.health).update(trunk["health"])
        self.fp8_fallen = list(trunk["fp8_fallen"])
        self.computed_by = list(trunk.get("computed_by", ()))  # none in one of an earlier version
        self.step = self.first_step = self.line_step = trunk["step"]
        self.tail_steps = max(0, self.step - tail_begins(num_steps))
        self.tail_nats = trunk["tails"].get(str(num_steps), 0.0)

    def begin_at(self, step: int) -> None:
        """Begin after steps that were done elsewhere, and of which nothing is known."""
        self.step = self.first_step = self.line_step = step

    @property
    def tail_loss_nats(self) -> float:
        """Mean of the last tenth; a run that diverged before it has its smoothed loss."""
        if self.tail_steps == 0:
            return self.health.smoothed_nats
        return self.tail_nats / self.tail_steps

    def to_plain(self) -> dict[str, Any]:
        """All but the use of the experts, for a checkpoint."""
        plain = {name: value for name, value in vars(self).items() if name != "use"}
        return copy.deepcopy({**plain, "health": vars(self.health)})

    def become(self, plain: Mapping[str, Any]) -> None:
        """Take the values of :meth:`to_plain`; whoever holds this state or its health keeps it."""
        values = copy.deepcopy(dict(plain))
        vars(self.health).update(values.pop("health"))
        vars(self).update(values)


def tail_begins(num_steps: int) -> int:
    """The step after which a run's last tenth begins."""
    return num_steps - max(1, num_steps // 10)
