"""Seconds of one micro-batch in each block of a model, on one GPU of its group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    """Seconds of one micro-batch in one kind of pass."""

    layers: tuple[float, ...]
    """Blocks in order, without the prediction block."""
    mtp: float
    """The prediction block with its projection and its own pass through the output layer."""
    output: float
    """Final norm, output layer and cross-entropy."""


class Part(NamedTuple):
    """Forward seconds of a token, by how the backward pass goes about them."""

    products: float = 0.0
    """As long again for the inputs' gradients, and as long for the weights'."""
    weightless: float = 0.0
    """Attention and exchanges: twice as long, all of it for the inputs."""
    joined: float = 0.0
    """One operation that makes both gradients, twice as long; whoever asks for one gets both."""

    def and_also(self, other: Part) -> Part:
        """Both, one after the other."""
        return Part(*(one + more for one, more in zip(self, other, strict=True)))

    @property
    def forward(self) -> float:
        """Of the forward pass."""
        return sum(self)

    @property
    def inputs(self) -> float:
        """Of a backward pass that makes the inputs' gradients alone."""
        return self.products + BACKWARD * (self.weightless + self.joined)

    @property
    def weights(self) -> float:
        """Of the pass after it for the weights'."""
        return self.products + BACKWARD * self.joined


class Parts(NamedTuple):
    """A token in every kind of block."""

    dense: Part
    mixture: Part
    mtp: Part
    output: Part


def block_costs(
    model: ModelConfig, hardware: Hardware, parallel: ParallelConfig, sequence_length: int
) -> BlockCosts:
    """Of the forward pass, see :func:`token_parts`."""
    parts = token_parts(model, hardware, parallel, sequence_length)
    return _of_micro_batch(model, parallel, sequence_length, [part.forward for part in parts])


def split_costs(
    model: ModelConfig, hardware: Hardware, parallel: ParallelConfig, sequence_length: int
) -> tuple[BlockCosts, BlockCosts]:
    """Of a zero-bubble pipeline's two backward passes: for the inputs, and for the weights."""
    parts = token_parts(model, hardware, parallel, sequence_length)
    passes = ([part.inputs for part in parts], [part.weights for part in parts])
    inputs, weights = (_of_micro_batch(model, parallel, sequence_length, p) for p in passes)
    return inputs, weights


def _of_micro_batch(
    model: ModelConfig, parallel: ParallelConfig, sequence_length: int, of_token: list[float]
) -> BlockCosts:
    # Of the ranks that share a sequence each has an equal part of it, and of the causal pairs.
    tokens = parallel.micro_batch * sequence_length / parallel.context
    dense, mixture, mtp, output = (tokens * seconds for seconds in of_token)
    layers = tuple(
        mixture if counts.kind == "moe" else dense
        for counts in layer_counts(model)[: model.num_layers]
    )
    return BlockCosts(layers=layers, mtp=mtp, output=output)


def token_parts(
    model: ModelConfig, hardware: Hardware, parallel: ParallelConfig, sequence_length: int
) -> Parts:
    """By FLOPs over assumed rates, and bytes over the link, which nothing hides.

    The bytes are those of all-to-alls and of gathered keys and values. Ling found little to gain in
    overlapping the all-to-all (arXiv:2510.22115, 5.1).
    """
    refuse_own(model.own, "the machine plan")
    width, attention = model.hidden_size, model.attention
    dense_rate = hardware.peak_flops_per_s * hardware.matmul_efficiency
    # 2 FLOPs a weight and token.
    mixing = Part(
        products=2 * attention_params(attention, width) / dense_rate,
        weightless=attention_core_s(model, hardware, sequence_length)
        + gather_s(model, hardware, parallel),
    )
    dense = mixing.and_also(Part(products=2 * swiglu_params(width, model.dense_width) / dense_rate))
    mixture = dense
    if model.moe is not None:
        moe, expert = model.moe, swiglu_params(width, model.moe.expert_width)
        routed = 2 * moe.experts_per_token * expert
        beside = 2 * (moe.num_shared_experts * expert + moe.num_experts * width)
        grouped_rate = hardware.peak_flops_per_s * hardware.grouped_efficiency
        away = (parallel.expert - 1) / parallel.expert
        sent = 2 * moe.experts_per_token * width * PRODUCT_BYTES * away
        mixture = mixing.and_also(
            Part(
                products=beside / dense_rate,
                weightless=sent / hardware.link_bytes_per_s(parallel.expert),
                joined=routed / grouped_rate,
            )
        )
    output_rate = hardware.peak_flops_per_s * hardware.output_efficiency
    output = Part(joined=2 * model.vocab_size * width / output_rate)
    mtp = Part()
    if model.mtp_depth:
        projection = Part(products=2 * 2 * width * width / dense_rate)
        mtp = mixture.and_also(projection).and_also(output)
    return Parts(dense, mixture, mtp, output)


def attention_core_s(model: ModelConfig, hardware: Hardware, sequence_length: int) -> float:
    """Seconds a token's scores and weighted values take, the causal half of the keys."""
    flops = 2 * model.attention.num_heads * model.attention.head_dim * sequence_length
    return flops / (hardware.peak_flops_per_s * hardware.matmul_efficiency)


def gather_s(model: ModelConfig, hardware: Hardware, parallel: ParallelConfig) -> float:
    """Seconds a token costs for keys and values of a sequence that ranks share, gathered.

    A rank receives those of the others, ``context - 1`` for each token of its own.
    """
    attention = model.attention
    own = 2 * attention.num_kv_heads * attention.head_dim * PRODUCT_BYTES
    return (parallel.context - 1) * own / hardware.link_bytes_per_s(parallel.context)


def ring_s(
    model: ModelConfig, hardware: Hardware, parallel: ParallelConfig, sequence_length: int
) -> float:
    """The same in a ring, which sends one rank's part a step behind attention to the one before.

    What is left to wait for; launched runs gather.
    """
    core = attention_core_s(model, hardware, sequence_length) / parallel.context
    others = parallel.context - 1
    return max(0.0, gather_s(model, hardware, parallel) - others * core)
