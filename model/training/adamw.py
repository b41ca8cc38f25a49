"""AdamW with moments of four bytes: the framework's, in one compiled pass where that serves."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import chain, islice
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor
from torch.nn import Parameter

from model.kernels import adamw


class _Seen(NamedTuple):
    """A parameter, as an update has seen it. Its gradient is not kept alive: most are used once."""

    parameter: Tensor
    address: int
    grad: ref[Tensor] | None
    state: dict[str, Tensor]
    mean: Tensor | None
    square: Tensor | None
    step: Tensor | None


class AdamW(torch.optim.AdamW):
    """The framework's, whose step is one compiled pass over all parameters where that serves.

    The state is the framework's own, so a checkpoint does not tell which of the two made it.
    """

    _clip = 1.0
    """Factor of the next step on all gradients."""
    _seen: tuple[_Seen, ...] = ()
    _state_seen: Any = None
    _lined: adamw.Lined | None = None
    """Of what was seen, where that is served."""
    _grads_of_groups: tuple[int, ...] = ()
    """How many of each group's parameters were seen with a gradient."""

    def _patch_step_function(self) -> None:
        """Without the framework's hooks around a step, a hundredth of a small model's."""
        self._zero_grad_profile_name = "Optimizer.zero_grad#AdamW.zero_grad"

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Without the framework's wrapper, which imports its compiler: a second of every start."""
        plain = torch.optim.Optimizer.add_param_group.__wrapped__  # type: ignore[attr-defined]
        plain(self, param_group)
        self._seen = ()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Without the framework's bookkeeping, a twentieth of a small model's step."""
        self._clip = 1.0
        if not set_to_none:
            return super().zero_grad(set_to_none)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def clip(self, clip_norm: float) -> float | None:
        """Have the next step scale all gradients so that their joint norm is at most ``clip_norm``.

        They are scaled on their way into the update and stay as they are, so clipping is no pass
        of its own.

        Returns:
            The norm; None, and nothing was done, where the next step is left to the framework.
        """
        self._clip = 1.0
        lined = self._line_up()
        if lined is None:
            return None
        norm = adamw.norm_of_grads(lined)
        if norm > clip_norm:
            self._clip = clip_norm / norm
        return norm

    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Update all parameters that have a gradient."""
        first = self.param_groups[0]
        is_alike = all(group["lr"] == first["lr"] for group in self.param_groups)
        lined = self._line_up() if closure is None else None
        clip, self._clip = self._clip, 1.0
        if lined is None or not is_alike:
            if clip != 1.0:
                torch._foreach_mul_(
                    [g for s in self._seen if (g := s.parameter.grad) is not None], clip
                )
            if closure is None and self._is_float32_of_one_device():
                return self._step_of_framework()
            return super().step(closure)
        beta1, beta2 = first["betas"]
        decays = array("f")
        for group, count in zip(self.param_groups, self._grads_of_groups, strict=True):
            decays.extend([group["weight_decay"]] * count)
        adamw.update(lined, decays, adamw.Adam(first["lr"], beta1, beta2, first["eps"], clip))
        return None

    @torch.no_grad()
    def _step_of_framework(self) -> None:
        """The framework's fused update of what was lined up, without looking it all up again.

        On a GPU that takes longer than the update of a small model itself.
        """
        seen = iter(self._seen)
        for group in self.param_groups:
            updated = [s for s in islice(seen, len(group["params"])) if s.grad is not None]
            if not updated:
                continue
            weights, _, _, _, means, squares, steps = zip(*updated, strict=True)
            beta1, beta2 = group["betas"]
            torch._foreach_add_(steps, 1)
            torch._fused_adamw_(
                weights,
                [weight.grad for weight in weights],
                means,
                squares,
                [],
                steps,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _is_float32_of_one_device(self) -> bool:
        """Whether the framework's fused update takes all that was seen at once."""
        device = self._seen[0].parameter.device if self._seen else None
        return device is not None and all(
            t.dtype == torch.float32 and t.device == device and type(t) in (Tensor, Parameter)
            for s in self._seen
            for t in (s.parameter, s.mean, s.square, s.step)
            if t is not None
        )

    def _line_up(self) -> adamw.Lined | None:
        """All that have a gradient, with it and their state; None where that is not served.

        A pass that is played back leaves the same tensors every time. To see that they are the same
        takes a tenth of the time of looking them up, which took longer than a small model's update.
        """
        if self._is_as_seen():
            return self._lined
        by_group = [[self._look_up(p) for p in group["params"]] for group in self.param_groups]
        self._seen, self._state_seen = tuple(chain(*by_group)), self.state
        self._grads_of_groups = tuple(sum(s.grad is not None for s in of) for of in by_group)
        self._lined = None
        updated = [s for s in self._seen if s.grad is not None]
        if not updated:
            return None
        weights, _, _, _, means, squares, steps = zip(*updated, strict=True)
        grads = [weight.grad for weight in weights]
        slots = adamw.Slots(weights, grads, means, squares, steps)
        if adamw.serves([t for column in slots for t in column]):
            self._lined = adamw.line_up(slots)
        return self._lined

    def _is_as_seen(self) -> bool:
        if not self._seen or self._state_seen is not self.state or not self.state:
            return False
        for p, address, grad, state, mean, square, step in self._seen:
            if p.data_ptr() != address or (p.grad is None) != (grad is None):
                return False
            if grad is not None and not (
                grad() is p.grad
                and state["exp_avg"] is mean
                and state["exp_avg_sq"] is square
                and state["step"] is step
            ):
                return False
        return True

    def _look_up(self, p: Tensor) -> _Seen:
        if p.grad is None:
            return _Seen(p, p.data_ptr(), None, {}, None, None, None)
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state["exp_avg"] = torch.zeros_like(p)
            state["exp_avg_sq"] = torch.zeros_like(p)
        moments = (state["exp_avg"], state["exp_avg_sq"], state["step"])
        return _Seen(p, p.data_ptr(), ref(p.grad), state, *moments)
