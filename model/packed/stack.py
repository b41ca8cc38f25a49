"""Models of one shape whose weights lie together, one tensor [M, ...] a parameter.

A member stays an ordinary model: its parameters and buffers are rows of the stack, so that what is
done to it (initial values, evaluation, checkpoints, the optimizer's step) is done to the stack, and
what the stack learns it has.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from model.transformer import Transformer

# Shapes: M models.


class Stack:
    """The weights of ``members``, which must be of one config, on one device, of one type."""

    def __init__(self, members: Sequence[Transformer]) -> None:
        configs = {member.config for member in members}
        if len(configs) != 1:
            raise ValueError(f"{len(configs)} shapes among {len(members)} models, expected 1")
        self.members = tuple(members)
        self.config = members[0].config
        self.weights: dict[str, Tensor] = {}
        """By the parameter's name in a member: leaves that require a gradient."""
        self.buffers: dict[str, Tensor] = {}
        self._rows: dict[str, list[Parameter]] = {}
        for name, _ in members[0].named_parameters():
            self._rows[name] = rows = [member.get_parameter(name) for member in members]
            self.weights[name] = _joined(rows).requires_grad_()
        for name, _ in members[0].named_buffers():
            self.buffers[name] = _joined([member.get_buffer(name) for member in members])

    def clear_gradients(self) -> None:
        """Before a backward pass."""
        for weight in self.weights.values():
            weight.grad = None

    def hand_out_gradients(self) -> None:
        """After a backward pass: each member's parameters get their rows of the gradients."""
        for name, weight in self.weights.items():
            rows = self._rows[name]
            grads = [None] * len(rows) if weight.grad is None else weight.grad.unbind()
            for row, grad in zip(rows, grads, strict=True):
                row.grad = grad


@torch.no_grad()
def _joined(rows: Sequence[Tensor]) -> Tensor:
    """A stack of the rows' values, which the rows are views of from now on."""
    stacked = torch.stack([row.detach() for row in rows])
    for row, part in zip(rows, stacked, strict=True):
        row.data = part
    return stacked
