"""Seconds of one micro-batch in each block of a model, on one GPU of its group."""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import attention_params, layer_counts, swiglu_params
from model.config import ModelConfig
from model.own.parts import refuse_own
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.hardware import Hardware

PRODUCT_BYTES = 2
"""bfloat16, also on the way to the experts and back."""
BACKWARD = 2.0
"""A product's backward is two products of its size; the all-to-alls are done once more."""


@dataclass(frozen=True, kw_only=True)
class BlockCosts:
    """Forward seconds of one micro-batch."""

    layers: tuple[float, ...]
    """Blocks in order, without the prediction block."""
    mtp: float
    """The prediction block with its projection and its own pass through the output layer."""
    output: float
    """Final norm, output layer and cross-entropy."""


def block_costs(
    model: ModelConfig, hardware: Hardware, parallel: ParallelConfig, sequence_length: int
) -> BlockCosts:
    """By FLOPs over assumed rates, and all-to-all bytes over the link, which nothing hides.

    Ling found little to gain in overlapping the all-to-all (arXiv:2510.22115, 5.1).
    """
    refuse_own(model.own, "the machine plan")
    tokens = parallel.micro_batch * sequence_length
    width, attention = model.hidden_size, model.attention
    dense_rate = hardware.peak_flops_per_s * hardware.matmul_efficiency
    # 2 FLOPs a weight and token; scores and their sum over the causal half of the keys.
    core = 2 * attention.num_heads * attention.head_dim * sequence_length
    mixing = (2 * attention_params(attention, width) + core) / dense_rate
    dense = mixing + 2 * swiglu_params(width, model.dense_width) / dense_rate
    mixture = dense
    if model.moe is not None:
        moe, expert = model.moe, swiglu_params(width, model.moe.expert_width)
        routed = 2 * moe.experts_per_token * expert
        beside = 2 * (moe.num_shared_experts * expert + moe.num_experts * width)
        grouped_rate = hardware.peak_flops_per_s * hardware.grouped_efficiency
        mixture = mixing + beside / dense_rate + routed / grouped_rate
        away = (parallel.expert - 1) / parallel.expert
        sent = 2 * moe.experts_per_token * width * PRODUCT_BYTES * away
        mixture += sent / hardware.link_bytes_per_s(parallel.expert)
    output = 2 * model.vocab_size * width / dense_rate
    mtp = 0.0
    if model.mtp_depth:
        mtp = mixture + 2 * 2 * width * width / dense_rate + output
    layers = tuple(
        tokens * (mixture if counts.kind == "moe" else dense)
        for counts in layer_counts(model)[: model.num_layers]
    )
    return BlockCosts(layers=layers, mtp=tokens * mtp, output=tokens * output)
