"""Memory of a training step in closed form: model state, and activations kept for the backward.

Torch-free. The activation formulas follow what the modules of this package save, tensor by tensor,
and the tests measure the built module's saved tensors against them. They are for one device that
holds the whole model and keeps every activation. Left out: temporaries of a running operation,
gradients of activations, buffers of communication, and the allocator's own losses, which together
have to fit beside what is counted here.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import count_params, layer_counts
from model.config import AttentionConfig, ModelConfig, MoEConfig, require
from model.own.parts import refuse_own

_INT64, _FLOAT32 = 8, 4


@dataclass(frozen=True, kw_only=True)
class PrecisionPlan:
    """Bytes of one number, by what it is for."""

    weight_bytes: int
    """A parameter as the forward pass reads it."""
    gradient_bytes: int
    master_bytes: int
    """A float32 copy that the optimizer updates; 0 where the weights are float32 themselves."""
    moment_bytes: int
    """Both AdamW moments of a parameter together."""
    stream_bytes: int
    """An element of the residual stream and of what the norms keep."""
    product_bytes: int
    """An element that goes into a matrix product. Where it is smaller than a weight (autocast), a
    copy of the weights in this size is kept as well."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name == "master_bytes" else 1
            require(value >= least, f"{name} must be >= {least}, got {value}")


@dataclass(frozen=True, kw_only=True)
class StateMemory:
    """Bytes that stay from step to step."""

    weights: int
    gradients: int
    master_weights: int
    moments: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.gradients + self.master_weights + self.moments


@dataclass(frozen=True, kw_only=True)
class ActivationMemory:
    """Bytes kept from the forward to the backward pass, for one micro-batch."""

    layers: tuple[int, ...]
    """Each block, multi-token-prediction blocks last."""
    ends: int
    """Token ids, last norm, the scores of the vocabulary (float32), the rotary tables."""
    weight_copies: int
    """Weights in the type of the products or of the router, where they are stored in another."""

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.layers) + self.ends + self.weight_copies


def state_memory(config: ModelConfig, plan: PrecisionPlan) -> StateMemory:
    """Bytes of weights, gradients and optimizer: so many a parameter, all parameters alike."""
    params = count_params(config).total
    return StateMemory(
        weights=params * plan.weight_bytes,
        gradients=params * plan.gradient_bytes,
        master_weights=params * plan.master_bytes,
        moments=params * plan.moment_bytes,
    )


def activation_memory(
    config: ModelConfig,
    plan: PrecisionPlan,
    *,
    sequence_length: int,
    sequences: int,
    fused: bool = False,
) -> ActivationMemory:
    """Bytes kept by one forward pass over ``sequences`` of ``sequence_length`` tokens.

    With d the width, s and p the plan's stream and product bytes, a token costs:

    - a norm: (s + p)·d + 4, the normalised input, the weighted one that the next product reads,
      and one float32 scale;
    - attention with H query and K key-value heads of width h: p·h·(H+K) + 4·(H+K) for the QK-norm,
      p·h·(H+K) for rotated queries and keys, p·h·(H+2K) for the joint projection, which the values
      are a part of, p·h·H for its output and 4·H for the softmax sums; no sequence² scores, which
      fused attention computes again; with an output gate p·h·H for the gated output, p·H or p·h·H
      for the sigmoids, and under autocast another copy of the input, p·d;
    - a SwiGLU of inner width w: 3·p·w, gate, up and their product;
    - E experts, k a token, each of width w: 2·p·w·k for gate and up, 4·E for the scores, and
      indices and gates (8-byte and 4-byte numbers); the product and the experts' answers are
      computed again in the backward pass;
    - the router's float32 input, 4·d, under autocast, where the other products read a copy;
    - the vocabulary's scores: 4 bytes each, once more for a prediction block. That is the plain
      way; what ``model.loss`` computes in blocks, and the compiled operations of
      ``model.kernels.step``, keep less.

    Copies of the weights do not grow with the tokens: p bytes for each that enters a product, where
    weights are stored in more.

    Args:
        config: the model.
        plan: bytes of a number.
        sequence_length: of every sequence.
        sequences: in the micro-batch.
        fused: by the operations of ``model.kernels.triton_step``, as on a GPU: a norm keeps its
            input for the normalised one and no scale, the heads' norm and rotation nothing besides
            the joint projection and what they hand on.
    """
    refuse_own(config.own, "the estimate of activation memory")
    tokens = sequences * sequence_length
    a = config.attention
    layers = [
        tokens * _block_bytes(config, plan, layer, fused)
        for layer in range(config.num_layers + config.mtp_depth)
    ]
    rotary_tables = 2 * sequence_length * (a.num_heads + a.num_kv_heads) * a.head_dim
    scores = (1 + config.mtp_depth) * config.vocab_size * _FLOAT32
    ends = (1 + config.mtp_depth) * (_INT64 + _norm_bytes(config.hidden_size, plan, fused)) + scores
    return ActivationMemory(
        layers=tuple(layers),
        ends=tokens * ends + rotary_tables * plan.stream_bytes,
        weight_copies=_weight_copies(config, plan),
    )


def _block_bytes(config: ModelConfig, plan: PrecisionPlan, layer: int, fused: bool) -> int:
    """Bytes a token keeps in one block."""
    width = config.hidden_size
    kept = 2 * _norm_bytes(width, plan, fused)
    kept += _attention_bytes(config.attention, plan, fused)
    kept += _gate_bytes(config.attention, width, plan)
    if config.moe is not None and config.is_moe_layer(layer):
        kept += _moe_bytes(config.moe, width, plan)
    else:
        kept += _swiglu_bytes(config.dense_width, plan)
    if layer >= config.num_layers:
        # The two norms before the joining projection keep their normalised input alone; the
        # projection keeps both, side by side. Fused ones keep the input itself, and one of the
        # two is the last norm's output, which the vocabulary's scores keep already.
        norms = 1 if fused else 2
        kept += norms * (_norm_bytes(width, plan, fused) - plan.product_bytes * width)
        kept += plan.product_bytes * 2 * width
    return kept


def _weight_copies(config: ModelConfig, plan: PrecisionPlan) -> int:
    layers = layer_counts(config)
    router = sum(counts.by_group.get("router", 0) for counts in layers)
    copies = 0
    if plan.weight_bytes > plan.product_bytes:
        products = sum(counts.total - counts.by_group["norms"] for counts in layers) - router
        copies += (products + config.vocab_size * config.hidden_size) * plan.product_bytes
    return copies


def _norm_bytes(width: int, plan: PrecisionPlan, fused: bool) -> int:
    return (plan.stream_bytes + plan.product_bytes) * width + (0 if fused else _FLOAT32)


def _attention_bytes(config: AttentionConfig, plan: PrecisionPlan, fused: bool) -> int:
    queries_and_keys = config.num_heads + config.num_kv_heads
    elements = queries_and_keys + (queries_and_keys + config.num_kv_heads) + config.num_heads
    scales = config.num_heads
    if config.qk_norm and not fused:
        elements += queries_and_keys
        scales += queries_and_keys
    return elements * config.head_dim * plan.product_bytes + scales * _FLOAT32


def _gate_bytes(config: AttentionConfig, width: int, plan: PrecisionPlan) -> int:
    if not config.gate_width:
        return 0
    elements = config.num_heads * config.head_dim + config.gate_width
    if plan.product_bytes < plan.stream_bytes:
        elements += width  # each product casts its input by itself
    return elements * plan.product_bytes


def _swiglu_bytes(inner_width: int, plan: PrecisionPlan) -> int:
    return 3 * inner_width * plan.product_bytes


def _moe_bytes(config: MoEConfig, width: int, plan: PrecisionPlan) -> int:
    k = config.experts_per_token
    scores = config.num_experts * _FLOAT32
    if plan.product_bytes < plan.stream_bytes:
        scores += width * _FLOAT32
    # The choice, the order of the visits by expert and back; gates before and after scaling.
    indices = k * (4 * _INT64 + 2 * _FLOAT32) + _FLOAT32
    routed = 2 * k * config.expert_width * plan.product_bytes
    shared = _swiglu_bytes(config.num_shared_experts * config.expert_width, plan)
    return scores + indices + routed + shared
