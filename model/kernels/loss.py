"""The output layer's cross-entropy as single calls into ``loss.cpp``, with its backward pass.

For float32 tensors on a CPU; the plain implementation is in ``model.loss``. Gradients are computed
in the forward pass, while the logits are in cache: those of the sum over positions, of which a mean
is a multiple. A backward pass with uneven weights over positions recomputes the logits.
"""

# Shapes: N positions, D model width, V vocabulary.

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from model.kernels import rounding, step
from model.kernels.blas import hand_over_sgemm
from model.kernels.compiled import FLAG, POINTER, SIZE, Operations

operations = Operations(
    "loss.cpp",
    "the scores and losses of the output layer",
    {
        "wt_nats_forward": [SIZE, SIZE, SIZE, *[POINTER] * 6, FLAG],
        "wt_nats_backward": [SIZE, SIZE, SIZE, *[POINTER] * 8, FLAG],
    },
    results={"wt_nats_forward": FLAG},
    prepare=hand_over_sgemm,
)


def serves(*tensors: Tensor) -> bool:
    """Whether the compiled loss accepts these: plain float32 on a CPU, and under autocast only a
    type it can round to.
    """
    return (
        step.serves(*tensors)
        and (rounding.is_on() or not torch.is_autocast_enabled("cpu"))
        and all(t.is_contiguous() for t in tensors)
        and operations.library is not None
    )


def takes_panels(vocabulary: int) -> bool:
    """Whether float32 scores are made and used a panel of the vocabulary at a time."""
    library = operations.library
    return library is not None and bool(library.wt_takes_panels(ctypes.c_int64(vocabulary)))


def token_nats(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """See :func:`model.loss.token_nats`.

    Raises:
        IndexError: a target outside the vocabulary.
    """
    nats_N: Tensor = _TokenNats.apply(hidden_ND, weight_VD, target_N, torch.is_grad_enabled())
    return nats_N


class _TokenNats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, target: Tensor, with_gradients: bool
    ) -> Tensor:
        target = target.contiguous()
        shape = (*hidden.shape, len(weight))
        nats = hidden.new_empty(len(hidden))
        grads = [torch.empty_like(t) if with_gradients else None for t in (hidden, weight)]
        ctx.bf16 = rounding.is_on()
        if operations("wt_nats_forward", *shape, hidden, weight, target, nats, *grads, ctx.bf16):
            raise IndexError(f"a target lies outside the vocabulary of {len(weight)} tokens")
        ctx.save_for_backward(hidden, weight, target, *grads)
        ctx.shape = shape
        return nats

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden, weight, *_ = saved = ctx.saved_tensors
        d_hidden, d_weight = torch.empty_like(hidden), torch.empty_like(weight)
        grads = (grad_N.contiguous(), d_hidden, d_weight)
        operations("wt_nats_backward", *ctx.shape, *saved, *grads, ctx.bf16)
        return d_hidden, d_weight, None, None
