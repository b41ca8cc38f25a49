"""The output layer and its cross-entropy in one, without ever holding the scores of all positions.

With a vocabulary of 150,000 the scores of 64,000 positions are 38 GB, more than the rest of a small
model's step together. Computed a block of positions at a time they are never larger than a block,
which also stays in the cache; the backward pass computes each block again, a third more arithmetic
for this layer.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import loss
from model.layers import at_least_float32

# Shapes: N positions, D model width, V vocabulary, B positions of a block.

BLOCK_SCORES = 2**20
"""Scores held at once; what fits into one block is computed the plain way and kept."""
BLOCK_SCORES_GPU = 2**28
"""The same on a GPU, 1 GB of float32: a block of six positions, as the vocabulary of 157,184 would
leave of the former, would read all the output layer's weights for next to no arithmetic."""


def token_nats(hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
    """Cross-entropy of each position's target in nats, [N], at least float32.

    Args:
        hidden_ND: last hidden states.
        weight_VD: of the output layer.
        target_N: the right tokens, int64.
    """
    if loss.serves(hidden_ND, weight_VD):
        return loss.token_nats(hidden_ND, weight_VD, target_N)
    device = hidden_ND.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        hidden_ND, weight_VD = hidden_ND.to(dtype), weight_VD.to(dtype)
    if hidden_ND.shape[0] * weight_VD.shape[0] <= _block_scores(hidden_ND):
        scores_NV = at_least_float32(F.linear(hidden_ND, weight_VD))
        return F.cross_entropy(scores_NV, target_N, reduction="none")
    nats_N: Tensor = _BlockedCrossEntropy.apply(hidden_ND, weight_VD, target_N)
    return nats_N


class _BlockedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        normalizers, nats = [], []
        for hidden_BD, target_B in _blocks(weight_VD, hidden_ND, target_N):
            scores_BV = at_least_float32(hidden_BD @ weight_VD.T)
            normalizers.append(scores_BV.logsumexp(-1))
            nats.append(normalizers[-1] - scores_BV.gather(1, target_B[:, None])[:, 0])
        ctx.save_for_backward(hidden_ND, weight_VD, target_N, torch.cat(normalizers))
        return torch.cat(nats)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden_ND, weight_VD, target_N, normalizer_N = ctx.saved_tensors
        d_hidden = []
        d_weight = torch.zeros_like(at_least_float32(weight_VD))
        blocks = _blocks(weight_VD, hidden_ND, target_N, normalizer_N, grad_N)
        for hidden_BD, target_B, normalizer_B, grad_B in blocks:
            # d nats / d scores = softmax(scores) - 1 at the target.
            scores_BV = at_least_float32(hidden_BD @ weight_VD.T)
            d_scores = scores_BV.sub_(normalizer_B[:, None]).exp_().mul_(grad_B[:, None])
            # Not scatter_add_, which on a GPU waits for the device where nothing is left to chance.
            position_B = torch.arange(len(target_B), device=target_B.device)
            d_scores.index_put_((position_B, target_B), -grad_B, accumulate=True)
            d_scores = d_scores.to(hidden_BD.dtype)
            d_hidden.append(d_scores @ weight_VD)
            if d_weight.dtype == hidden_BD.dtype:
                d_weight.addmm_(d_scores.T, hidden_BD)
            else:
                d_weight += d_scores.T @ hidden_BD
        return torch.cat(d_hidden), d_weight.to(weight_VD.dtype), None


def _blocks(weight_VD: Tensor, *tensors_N: Tensor) -> zip[tuple[Tensor, ...]]:
    """The positions' tensors cut into blocks of about so many scores."""
    rows = max(1, _block_scores(weight_VD) // weight_VD.shape[0])
    return zip(*(tensor.split(rows) for tensor in tensors_N), strict=True)


def _block_scores(tensor: Tensor) -> int:
    return BLOCK_SCORES if tensor.device.type == "cpu" else BLOCK_SCORES_GPU
