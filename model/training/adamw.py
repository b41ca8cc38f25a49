"""AdamW with moments of four bytes: the framework's, in one compiled pass where that serves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from model.kernels import adamw


class AdamW(torch.optim.AdamW):
    """The framework's, whose step is one compiled pass over all parameters where that serves.

    The state is the framework's own, so a checkpoint does not tell which of the two made it.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Without the framework's wrapper, which imports its compiler: a second of every start."""
        plain = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
        plain(self, param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Without the framework's bookkeeping, a twentieth of a small model's step."""
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        first = self.param_groups[0]
        slots, decays = self._slots()
        alike = all(g["lr"] == first["lr"] for g in self.param_groups)
        if closure or not alike or not adamw.serves([t for column in slots for t in column]):
            return super().step(closure)
        beta1, beta2 = first["betas"]
        adamw.update(slots, decays, adamw.Adam(first["lr"], beta1, beta2, first["eps"]))
        return None

    def _slots(self) -> tuple[adamw.Slots, list[float]]:
        slots, decays = adamw.Slots([], [], [], [], []), []
        for group in self.param_groups:
            decay = group["weight_decay"]
            for p in group["params"]:
                grad = p.grad
                if grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                slots.weights.append(p)
                slots.grads.append(grad)
                slots.means.append(state["exp_avg"])
                slots.squares.append(state["exp_avg_sq"])
                slots.steps.append(state["step"])
                decays.append(decay)
        return slots, decays
