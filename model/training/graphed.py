"""The forward and backward pass of a small model on a GPU as one CUDA graph.

A small model's step on a GPU is Python and launches, not arithmetic: the device waits for the
host. So the second pass of a shape is captured, and from then on one launch starts the same kernels
on the same memory, for other tokens and the weights as they are by then. Their order and so their
bits are those of a pass through autograd.

A capture refuses whatever waits for the device; such a model goes through autograd for good. It
does not see Python that depends on more than the tensors, so a user's own part of the block is not
captured, nor FP8, whose safeguards look at single steps.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.training.batch import batch_loss, gone_back_by_the_caller
from model.training.config import TrainConfig
from model.training.learner import Gradients, hand_out
from model.training.optim import global_norm
from model.transformer import Transformer

logger = logging.getLogger(__name__)

# Shapes: B sequences, T positions.

MOST_NUMBERS = 1 << 24
"""Tokens times width from which a pass is left to autograd. A layer's Python and launches took 5 to
7 ms on an H200's host (2026-11-27), which is about what its products take at this size; a graph
keeps the memory of every intermediate. Reckoned, not measured: the largest measured is 2^18."""


@dataclass(frozen=True)
class _Graph:
    """One shape's pass, and the memory it reads and writes."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    """Windows [B, T + 1] on the host, pinned, so that they are copied without waiting."""
    windows: Tensor
    grads: Sequence[Tensor | None]
    loads: list[Tensor]
    numbers: Tensor
    """Loss, loss of multi-token prediction and norm of all gradients [3]: one copy to the host."""


class Graphed:
    """Leaves the gradients of a batch's training loss on the weights of a model."""

    def __init__(self, model: Transformer, train: TrainConfig) -> None:
        self.model, self._train = model, train
        self._weights = list(model.parameters())
        self._held = [*self._weights, *model.buffers()]
        self._seen: dict[torch.Size, object] = {}
        self._graphs: dict[torch.Size, _Graph | None] = {}

    @staticmethod
    def serves(model: Transformer, train: TrainConfig, device: torch.device) -> bool:
        """Whether passes of such a run may be captured."""
        return device.type == "cuda" and train.precision != "fp8" and not model.config.own

    def forward_backward(self, windows: Tensor) -> Gradients | None:
        """The loss and loads of windows [B, T + 1], or None where autograd has to be gone through.

        The memory of gradients and loads is written again by the next call.
        """
        shape = windows.shape
        if windows.numel() * self.model.config.hidden_size > MOST_NUMBERS:
            return None
        # Autograd first: its pass compiles kernels and makes tables, which a capture cannot.
        held = (self.model.rotary, [t.data_ptr() for t in self._held])
        if self._seen.get(shape) != held:
            self._seen[shape] = held
            self._graphs.pop(shape, None)
            return None
        if shape not in self._graphs:
            self._graphs[shape] = self._capture(windows)
        graph = self._graphs[shape]
        return None if graph is None else self._replay(graph, windows)

    def _capture(self, windows: Tensor) -> _Graph | None:
        device = self._weights[0].device
        given = windows.cpu().contiguous().pin_memory()
        held = given.to(device)
        graph = torch.cuda.CUDAGraph()
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(graph), gone_back_by_the_caller():
                found = batch_loss(self.model, held, self._train)
                grads = [*torch.autograd.grad(found.total, self._weights, allow_unused=True)]
                norm = global_norm([grad for grad in grads if grad is not None])
                mtp_nats = torch.zeros_like(norm) if found.mtp_nats is None else found.mtp_nats
                numbers = torch.stack([found.loss_nats.detach(), mtp_nats.detach(), norm])
        except RuntimeError as refusal:
            torch.cuda.synchronize()
            reason = str(_first_of(refusal)).strip().splitlines()[0]
            logger.warning(f"this model's pass is no CUDA graph, its steps take longer: {reason}")
            return None
        return _Graph(graph, given, held, grads, found.loads, numbers)

    def _replay(self, known: _Graph, windows: Tensor) -> Gradients:
        known.given.copy_(windows)
        known.windows.copy_(known.given, non_blocking=True)
        known.graph.replay()
        hand_out(self._weights, known.grads)
        loss_nats, mtp_nats, norm = known.numbers.tolist()
        return Gradients(loss_nats, mtp_nats, known.loads, norm)


def _first_of(error: BaseException) -> BaseException:
    """The one that the others came from: what ends a capture hides what broke it."""
    while error.__context__ is not None:
        error = error.__context__
    return error
