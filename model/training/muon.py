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
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.kernels import muon
from model.kernels.muon import Slot, Stack
from model.muon_rule import QUINTIC, STEPS, UPDATE_RMS
from model.training.adamw import AdamW

# Shapes: M matrices of one size, R rows, C columns.

_TINY = 1e-7


class Numbers(NamedTuple):
    """Of one step."""

    momentum: float
    decay: float
    """The rate times the weight decay."""
    rate: float


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
        numbers = Numbers(own["momentum"], own["lr"] * own["weight_decay"], own["lr"])
        self.move([p for p in self.matrices if p.grad is not None], numbers)

    def move(self, parameters: Sequence[nn.Parameter], numbers: Numbers) -> None:
        """Update these by their gradients."""
        slots = [
            Slot(stack, parameter, grad_of(parameter), self.momentum_of(parameter))
            for parameter in parameters
            for stack in self.matrices[parameter]
        ]
        if muon.serves(slots):
            muon.update(slots, **numbers._asdict())
            return
        for parameter in parameters:
            ahead = self.look_ahead(parameter, numbers.momentum)
            parameter.mul_(1 - numbers.decay)
            parameter.add_(direction(ahead, self.matrices[parameter]), alpha=-numbers.rate)

    def look_ahead(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        """Have the momentum take in the gradient; what it will be a step further (Nesterov)."""
        grad, mean = grad_of(parameter), self.momentum_of(parameter)
        mean.lerp_(grad, 1 - momentum)
        return grad.lerp(mean, momentum)

    def momentum_of(self, parameter: nn.Parameter) -> Tensor:
        """Kept from step to step; 0 at first."""
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter, memory_format=torch.contiguous_format)
        momentum: Tensor = state["momentum"]
        return momentum


def grad_of(parameter: nn.Parameter) -> Tensor:
    """Of one that has a gradient."""
    assert parameter.grad is not None
    return parameter.grad


def direction(ahead: Tensor, stacks: Sequence[Stack]) -> Tensor:
    """The update of a whole parameter for a rate of 1: the plain way, the truth that the compiled
    step is held against."""
    # On a GPU in bfloat16, as its authors do: a matrix with values near 1 needs no more.
    working = torch.bfloat16 if ahead.is_cuda else ahead.dtype
    along = torch.empty(ahead.shape, dtype=ahead.dtype, device=ahead.device)
    for start, num, rows, cols in stacks:
        part = slice(start, start + num * rows * cols)
        x_MRC = orthogonalise(ahead.reshape(-1)[part].view(num, rows, cols).to(working))
        scale = UPDATE_RMS * math.sqrt(max(rows, cols))
        along.view(-1)[part] = scale * x_MRC.to(along.dtype).reshape(-1)
    return along


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
