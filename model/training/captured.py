"""The forward and backward pass of a small model as the bare calls it consists of.

Below a width of about 128 a step is Python and dispatch, not arithmetic. So the first pass of a
shape goes through autograd as always, with every call into a compiled kernel written down; all
others make the same calls again on the same memory, for other tokens and the weights as they are by
then. The calls, their order and so their bits are those of the first.

That is right only if nothing but those calls computes. So the first pass is watched: any operation
of the framework that does more than hand on a view or make room for a result (a user's own part of
the block, autocast, an auxiliary loss, multi-token prediction) refuses the shape, and it goes
through autograd for good.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.kernels.recording import Call, recorded
from model.layers import Rotary
from model.training.config import Precision
from model.training.learner import Gradients, hand_out
from model.training.precision import computing_here
from model.transformer import Transformer

# Shapes: B sequences, T positions, E experts.

MOST_NUMBERS = 1 << 17
"""Tokens times width from which a pass is left to autograd: Python is under a twentieth of it
there, and what is captured keeps the memory of every intermediate."""

_VIEWS_AND_ROOM = {
    "aten::alias",
    "aten::detach",
    "aten::empty.memory_format",
    "aten::empty_like",
    "aten::new_empty",
    "aten::slice.Tensor",
    "aten::view",
    "aten::_unsafe_view",
}


class _Watch(TorchDispatchMode):
    """Names of the framework's operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.computing: list[str] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: to have the dispatch left out of its work imports the framework's compiler, a second
        of a run's start, and nothing here is compiled by it."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if name not in _VIEWS_AND_ROOM:
            self.computing.append(name)
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True)
class _Pass:
    """One shape's calls, and the memory they read and write."""

    tokens_BT: Tensor
    targets_BT: Tensor
    rotary: Rotary
    threads: int
    addresses: list[int]
    """Of the weights and buffers."""
    calls: list[Call]
    nats_BT: Tensor
    grads: list[Tensor | None]
    loads: list[Tensor]


class Captured:
    """Leaves the gradients of a batch's mean loss on the weights of a model."""

    def __init__(self, model: Transformer, precision: Precision = "fp32") -> None:
        """``precision``: in which the first pass of a shape is gone through."""
        self.model, self._precision = model, precision
        self._weights = list(model.parameters())
        self._held = [*self._weights, *model.buffers()]
        self._passes: dict[torch.Size, _Pass | None] = {}

    def forward_backward(self, windows: Tensor) -> Gradients | None:
        """The loss and loads of windows [B, T + 1], or None where autograd has to be gone through.

        The memory of gradients and loads is written again by the next call.
        """
        if windows.numel() * self.model.config.hidden_size > MOST_NUMBERS or windows.is_cuda:
            return None
        known = self._passes.get(windows.shape)
        if known is None:
            if windows.shape in self._passes:
                return None
            known = self._passes[windows.shape] = self._first(windows)
            return None if known is None else self._gradients(known)
        if not self._is_current(known):
            del self._passes[windows.shape]
            return self.forward_backward(windows)
        known.tokens_BT.copy_(windows[:, :-1])
        known.targets_BT.copy_(windows[:, 1:])
        for call in known.calls:
            if call.again():
                raise IndexError("a token or target lies outside the vocabulary")
        return self._gradients(known)

    def _first(self, windows: Tensor) -> _Pass | None:
        model, rotary = self.model, self.model.rotary
        tokens_BT, targets_BT = windows[:, :-1].contiguous(), windows[:, 1:].contiguous()
        # Made before the watch begins: kept by the embedding, not computed anew by each pass.
        rotary.tables(tokens_BT.shape[1], windows.device, torch.float32)
        even_BT = torch.ones(tokens_BT.shape) / tokens_BT.numel()
        with _Watch() as watch, recorded() as calls:
            with computing_here(self._precision, windows.device):
                found = model(tokens_BT, targets_BT)
            if found.mtp_token_nats_BT is not None:
                return None
            grads = torch.autograd.grad(
                found.token_nats_BT, self._weights, grad_outputs=even_BT, allow_unused=True
            )
        if watch.computing:
            return None
        return _Pass(
            tokens_BT,
            targets_BT,
            rotary,
            torch.get_num_threads(),
            self._addresses(),
            [call.ready() for call in calls],
            found.token_nats_BT.detach(),
            list(grads),
            [stats.load_E for stats in found.routing],
        )

    def _is_current(self, known: _Pass) -> bool:
        return (
            known.rotary is self.model.rotary
            and known.threads == torch.get_num_threads()
            and known.addresses == self._addresses()
        )

    def _addresses(self) -> list[int]:
        return [t.data_ptr() for t in self._held]

    def _gradients(self, known: _Pass) -> Gradients:
        hand_out(self._weights, known.grads)
        loss_nats = known.nats_BT.mean().item()
        return Gradients(loss_nats, 0.0, known.loads)
