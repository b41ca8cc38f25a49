"""Averaging checkpoints of a constant-rate run in place of a decay (WSM, arXiv:2507.17634).

Checkpoints θ_n .. θ_(n+k) differ by updates g_n .. g_(n+k-1). Their weighted mean Σ c_j θ_(n+j) is
θ_n with each update g_(n+i-1) scaled by w_i = Σ_(j>=i) c_j: as if the learning rate had been w_i
times as large there. That holds for independent updates and leaves out the optimizer's state, so a
merge stands for a decay, it is not one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from model.config import require
from model.training.schedules import DecayShape, decay_shape


def decay_of(coefficients: Sequence[float]) -> tuple[float, ...]:
    """w_1 .. w_k, the scale of each update, from the checkpoints' coefficients c_0 .. c_k."""
    from_the_end = list(accumulate(reversed(coefficients)))
    return tuple(reversed(from_the_end[:-1]))


def coefficients_of(decay: Sequence[float]) -> tuple[float, ...]:
    """c_0 .. c_k from w_1 .. w_k: c_0 = 1 - w_1, c_j = w_j - w_(j+1), c_k = w_k (Theorem 3.1).

    Raises:
        ConfigError: unless 1 >= w_1 >= ... >= w_k >= 0, without which a coefficient is negative.
    """
    bounded = (1.0, *decay, 0.0)
    require(
        all(before >= after for before, after in pairwise(bounded)),
        f"a decay must fall from at most 1 to at least 0, got {tuple(decay)}",
    )
    return tuple(before - after for before, after in pairwise(bounded))


def merge_coefficients(shape: DecayShape, num_checkpoints: int) -> tuple[float, ...]:
    """Coefficients for ``num_checkpoints`` evenly spaced ones that stand for a decay of ``shape``.

    w_i is the shape at t = i / num_checkpoints; ``linear`` is then the plain mean.
    """
    require(num_checkpoints >= 1, f"num_checkpoints must be >= 1, got {num_checkpoints}")
    return coefficients_of(
        [decay_shape(shape, i / num_checkpoints) for i in range(1, num_checkpoints)]
    )


def merge_weights(
    weights: Sequence[Mapping[str, Tensor]], coefficients: Sequence[float]
) -> dict[str, Tensor]:
    """Σ c_j θ_j of every tensor, the routers' selection biases included; summed in float64.

    Args:
        weights: state of the model at each checkpoint, oldest first; all with the same names.
        coefficients: one each, summing to 1.
    """
    require(
        len(weights) == len(coefficients),
        f"{len(weights)} checkpoints but {len(coefficients)} coefficients",
    )
    total = math.fsum(coefficients)
    require(abs(total - 1) < 1e-9, f"coefficients must sum to 1, they sum to {total}")
    for other in weights[1:]:
        differing = sorted(weights[0].keys() ^ other.keys())
        require(not differing, f"the checkpoints are of different models: {differing[:3]}")
    merged = {}
    for name, first in weights[0].items():
        parts = [c * w[name].double() for c, w in zip(coefficients, weights, strict=True)]
        merged[name] = torch.stack(parts).sum(0).to(first.dtype)
    return merged
