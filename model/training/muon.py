"""Muon for the hidden matrices, AdamW for all else.

An update is the momentum with all its singular values brought near 1: a matrix moves about as far
in every direction, where Adam's updates follow a few. Five Newton-Schulz steps do that with
products alone (kellerjordan.github.io/posts/muon).

As in Moonlight (arXiv:2502.16982, section 2.2) an update is scaled by 0.2·sqrt(the longer side), so
that its root mean square is that of AdamW's updates, and weight decay is AdamW's: one learning rate
serves both, and the laws of an AdamW sweep can be used as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from model.kernels import muon
from model.kernels.muon import Slot, Stack
from model.training.adamw import AdamW

# Shapes: M matrices of one size, R rows, C columns.

STEPS = 5
QUINTIC = 3.4445, -4.7750, 2.0315
"""Of Jordan's iteration: singular values end near 1, between 0.7 and 1.2, which trains as well."""
UPDATE_RMS = 0.2
"""Of an update relative to the rate, as AdamW's usually has it."""
_TINY = 1e-7


class Muon:
    """Updates like an optimizer of the framework: ``param_groups``, ``state``, ``step``.

    ``state`` of a hidden matrix is its ``momentum``, of all else what AdamW has.
    """

    def __init__(
        self,
        matrices: Mapping[nn.Parameter, Sequence[Stack]],
        adamw: AdamW,
        *,
        lr: float,
        weight_decay: float,
        momentum: float,
    ) -> None:
        """``matrices``: of the parameters that ``adamw`` does not have."""
        self.matrices, self.adamw = matrices, adamw
        own: dict[str, Any] = {
            "params": list(matrices),
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": momentum,
        }
        self._own = own
        self.param_groups: list[dict[str, Any]] = [own, *adamw.param_groups]
        self.state = adamw.state

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.adamw.step()
        own = self._own
        slots = [
            Slot(stack, parameter, parameter.grad, self._momentum(parameter))
            for parameter, stacks in self.matrices.items()
            if parameter.grad is not None
            for stack in stacks
        ]
        numbers = {
            "momentum": own["momentum"],
            "decay": own["lr"] * own["weight_decay"],
            "rate": own["lr"],
        }
        if muon.serves(slots):
            muon.update(slots, **numbers)
        else:
            for slot in slots:
                _update(slot, **numbers)

    def _momentum(self, parameter: nn.Parameter) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        momentum: Tensor = state["momentum"]
        return momentum


def orthogonalise(x_MRC: Tensor) -> Tensor:
    """The nearest matrices with orthonormal rows (or columns, the shorter side), roughly.

    With X = UΣVᵀ it is UΣ'Vᵀ, Σ' between about 0.7 and 1.2 for all but the smallest singular
    values: in float32 those from some 1e-3 of the norm on.
    """
    a, b, c = QUINTIC
    is_tall = x_MRC.shape[-2] > x_MRC.shape[-1]
    x = x_MRC.mT if is_tall else x_MRC
    x = x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True).clamp(min=_TINY)
    for _ in range(STEPS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if is_tall else x


def _update(slot: Slot, *, momentum: float, decay: float, rate: float) -> None:
    """The plain way, a stack at a time: the truth that the compiled step is held against."""
    w_MRC, grad_MRC, mean_MRC = (_matrices(t, slot.stack) for t in slot[1:])
    mean_MRC.lerp_(grad_MRC, 1 - momentum)
    ahead_MRC = grad_MRC.lerp(mean_MRC, momentum)
    # On a GPU in bfloat16, as its authors do: a matrix with values near 1 needs no more.
    working = torch.bfloat16 if ahead_MRC.is_cuda else ahead_MRC.dtype
    along_MRC = orthogonalise(ahead_MRC.to(working)).to(w_MRC.dtype)
    longer = max(slot.stack.rows, slot.stack.cols)
    w_MRC.mul_(1 - decay).add_(along_MRC, alpha=-UPDATE_RMS * math.sqrt(longer) * rate)


def _matrices(whole: Tensor, stack: Stack) -> Tensor:
    """The stack [M, R, C], a view where ``whole`` is contiguous."""
    end = stack.start + stack.num * stack.rows * stack.cols
    return whole.reshape(-1)[stack.start : end].view(stack.num, stack.rows, stack.cols)
