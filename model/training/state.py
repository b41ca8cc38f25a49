"""What a run carries from step to step, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from model.training.health import HealthState
from model.training.optim import load_optimizer_tensors, optimizer_tensors
from model.training.routing_use import RoutingUse
from model.transformer import Transformer


@dataclass
class RunState:
    """Everything about a run in progress besides its weights and its optimizer."""

    health: HealthState
    use: RoutingUse
    step: int = 0
    """Optimizer steps done."""
    first_step: int = 0
    """Of these, steps that a trunk did."""
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

    def begin_from_trunk(self, trunk: RunState, num_steps: int) -> None:
        """Go on where ``trunk`` stands, as a run of ``num_steps`` of one's own."""
        self.health = trunk.health
        self.fp8_fallen = trunk.fp8_fallen
        self.step = self.first_step = self.line_step = trunk.step
        self.tail_steps = max(0, trunk.step - tail_begins(num_steps))
        self.tail_nats = trunk.tails.get(str(num_steps), 0.0)

    def to_plain(self) -> dict[str, Any]:
        """All but the use of the experts, for a checkpoint."""
        return {name: value for name, value in asdict(self).items() if name != "use"}

    @classmethod
    def from_plain(cls, plain: dict[str, Any], use: RoutingUse) -> RunState:
        """The inverse of :meth:`to_plain`."""
        return cls(**{**plain, "health": HealthState(**plain["health"]), "use": use})


def tail_begins(num_steps: int) -> int:
    """The step after which a run's last tenth begins."""
    return num_steps - max(1, num_steps // 10)


class Stopwatch:
    """Where the time goes: each lap ends one activity and begins the next."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.perf_counter()

    def lap(self, activity: str) -> float:
        """Charge the time since the last lap to ``activity``; the time now."""
        now = time.perf_counter()
        self.seconds[activity] = self.seconds.get(activity, 0.0) + now - self.last
        self.last = now
        return now


def collect_tensors(
    model: Transformer, optimizer: torch.optim.Optimizer, state: RunState
) -> dict[str, Tensor]:
    """Weights with the selection biases, optimizer, sums of loads, random state: all on the CPU."""
    tensors = {
        f"optimizer.{name}": value for name, value in optimizer_tensors(model, optimizer).items()
    }
    tensors |= state.use.to_tensors()
    tensors["run.rng"] = torch.get_rng_state()
    return collect_weights(model) | _on_cpu(tensors)


def collect_weights(model: Transformer) -> dict[str, Tensor]:
    """The weights with the selection biases alone: all that an average of checkpoints needs."""
    return _on_cpu({f"model.{name}": value for name, value in model.state_dict().items()})


def restore_tensors(
    tensors: dict[str, Tensor], model: Transformer, optimizer: torch.optim.Optimizer
) -> bool:
    """Put a checkpoint's weights, optimizer and random state back (the rest is the state's).

    Returns:
        Whether there were weights alone: training can't go on from them.
    """
    model.load_state_dict(model_weights(tensors))
    if "run.rng" not in tensors:
        return True
    load_optimizer_tensors(model, optimizer, _below("optimizer.", tensors))
    torch.set_rng_state(tensors["run.rng"])
    return False


def model_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a checkpoint's tensors, under the model's own names."""
    return _below("model.", tensors)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
