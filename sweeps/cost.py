"""How long a run will take: a price for starting, one for each step and layer, one for each FLOP.

At ladder sizes a step is mostly overhead (Python, dispatch), so FLOPs over a rate would be wrong by
several times. The prices shipped here were measured on one laptop-class core; where the store holds
finished runs of this machine, :func:`calibrated` moves them to what those runs took.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass

from model.config import ModelConfig
from model.muon_rule import update_flops
from model.training.config import TrainConfig
from model.training.schedules import trunk_steps
from sweeps.shape import sizes_of

# Weight of the shipped prices against one finished run, in relative errors. Low: five runs of
# different shapes decide all four prices, one run still scales them together.
PRIOR_WEIGHT = 0.03


@dataclass(frozen=True, kw_only=True)
class RunCost:
    """What one run is made of and takes: a row of the plan's table."""

    total_params: int
    active_params: int
    flops_per_token: float
    """M of the shape that was found, not of the ladder's target."""
    train_flops: float
    """C = M · tokens, whoever trains them."""
    own_flops: float
    """What this run trains itself: less than C where it shares a trunk."""
    wall_s: float
    """Estimated seconds on one worker."""


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Prices in seconds; a run's estimate is their sum over what it uses."""

    start_s: float
    """Once a run: start the worker, load the corpus, build the model."""
    step_s: float
    """Once an optimizer step."""
    layer_step_s: float
    """Once a step and layer."""
    flop_s: float
    """Once a FLOP of matrix products, training and evaluation."""
    num_runs: int = 0
    """Finished runs the prices were calibrated on."""


# One thread of a Sapphire Rapids server, fp32, compiled kernels: 41 runs (the quickstart's, and 18
# of widths 16 to 48) took half of these prices' sum; 2026-11-27. Twice as much for slower cores and
# for what runs beside it; without a compiler it is more.
SHIPPED = CostModel(start_s=0.15, step_s=0.4e-3, layer_step_s=0.4e-3, flop_s=1 / 50e9)


EMULATED_PRODUCT = 0.65
"""Layer steps that an FP8 product costs with both its gradients where it is emulated: 0.32 ms
(width 48, 32 experts, 2026-11-26)."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A finished run: what it used and how long it took."""

    usage: tuple[float, float, float, float]
    """Counts in the order of the prices; see :func:`usage_of`."""
    wall_s: float


def own_steps(train: TrainConfig, *, shares_trunk: bool) -> int:
    """Steps a run trains itself."""
    return train.num_steps - trunk_steps(train) if shares_trunk else train.num_steps


def usage_of(
    model: ModelConfig, train: TrainConfig, num_domains: int, *, shares_trunk: bool = False
) -> tuple[float, float, float, float]:
    """(starts, steps, layer steps, FLOPs) of one run, evaluation included.

    A forward pass is a third of a training step's FLOPs.
    """
    _, flops = sizes_of(model, train.sequence_length)
    evaluated_tokens = train.evaluation.read_tokens * num_domains
    layers = model.num_layers + model.mtp_depth
    steps = own_steps(train, shares_trunk=shares_trunk)
    return (
        1.0,
        float(steps),
        steps * (layers + EMULATED_PRODUCT * _fp8_products(model, train)),
        flops.others["all_matmuls"] * (steps * train.batch_tokens + evaluated_tokens / 3)
        + steps * _update_flops(model, train),
    )


def _update_flops(model: ModelConfig, train: TrainConfig) -> float:
    muon = train.optimizer.muon
    return 0.0 if muon is None else update_flops(model, per_head=muon.per_head).total


def _fp8_products(model: ModelConfig, train: TrainConfig) -> int:
    """Two of attention, or three, and two of every feed-forward and expert, if they are in FP8.

    As if each expert were visited in each step: a batch of a ladder has more choices than experts.
    """
    if train.precision != "fp8":
        return 0
    layers = model.num_layers + model.mtp_depth
    mixtures = sum(model.is_moe_layer(layer) for layer in range(layers))
    experts = (model.moe.num_experts + bool(model.moe.num_shared_experts)) if model.moe else 0
    gates = layers if model.attention.gate_width else 0
    return 2 * (layers + (layers - mixtures) + mixtures * experts) + gates


def cost_of(
    prices: CostModel,
    model: ModelConfig,
    train: TrainConfig,
    num_domains: int,
    *,
    shares_trunk: bool = False,
) -> RunCost:
    """The row of the plan's table for one run."""
    params, flops = sizes_of(model, train.sequence_length)
    usage = usage_of(model, train, num_domains, shares_trunk=shares_trunk)
    own = own_steps(train, shares_trunk=shares_trunk)
    return RunCost(
        total_params=params.total,
        active_params=params.active,
        flops_per_token=flops.house,
        train_flops=flops.house * train.tokens,
        own_flops=flops.house * own * train.batch_tokens,
        wall_s=sum(map(operator.mul, usage, _prices(prices))),
    )


def calibrated(prices: CostModel, samples: Sequence[Sample]) -> CostModel:
    """Prices that reproduce what finished runs took, as far from ``prices`` as those runs demand.

    Minimises the relative errors of the runs plus PRIOR_WEIGHT times the relative change of each
    price, with no price below zero.
    """
    if not samples:
        return prices
    import numpy as np  # here, like the next: half a second that only a calibration needs
    from scipy.optimize import nnls

    prior = np.asarray(_prices(prices))
    wall_s = np.array([sample.wall_s for sample in samples])
    runs = np.array([sample.usage for sample in samples]) * prior / wall_s[:, None]
    matrix = np.vstack([runs, PRIOR_WEIGHT * np.eye(len(prior))])
    target = np.concatenate([np.ones(len(samples)), PRIOR_WEIGHT * np.ones(len(prior))])
    factors, _ = nnls(matrix, target)
    start_s, step_s, layer_step_s, flop_s = (float(price) for price in factors * prior)
    return CostModel(
        start_s=start_s,
        step_s=step_s,
        layer_step_s=layer_step_s,
        flop_s=flop_s,
        num_runs=len(samples),
    )


def _prices(model: CostModel) -> tuple[float, ...]:
    return model.start_s, model.step_s, model.layer_step_s, model.flop_s
