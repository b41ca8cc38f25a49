"""The numbers of Muon's rule, and what it costs a step (:mod:`model.training.muon`). Torch-free.

No convention of training FLOPs counts it: it grows with the weights, not with the tokens. A step of
many tokens hardly sees it, a ladder's step of few does.
"""

from __future__ import annotations

from dataclasses import dataclass

from model.config import ModelConfig

STEPS = 5
QUINTIC = 3.4445, -4.7750, 2.0315
"""Of Jordan's iteration: singular values end near 1, between 0.7 and 1.2, which trains as well."""
UPDATE_RMS = 0.2
"""Of an update relative to the rate, as AdamW's usually has it (arXiv:2502.16982, section 2.2)."""


@dataclass(frozen=True, kw_only=True)
class UpdateFlops:
    """Of one step's updates, all products whole."""

    routed: float
    """Of the routed experts."""
    others: float

    @property
    def total(self) -> float:
        """Of all hidden matrices."""
        return self.routed + self.others


def matrix_flops(rows: int, cols: int) -> float:
    """X·Xᵀ, its square, and their polynomial times X, each step, with X on its side."""
    short, long = sorted((rows, cols))
    return STEPS * (4.0 * short * short * long + 2.0 * short**3)


def update_flops(config: ModelConfig, *, per_head: bool) -> UpdateFlops:
    """Of the whole model, its parts from the user's own Python taken for the built-in ones."""
    layers = [
        layer_update_flops(config, layer, per_head=per_head)
        for layer in range(config.num_layers + config.mtp_depth)
    ]
    return UpdateFlops(
        routed=sum(layer.routed for layer in layers), others=sum(layer.others for layer in layers)
    )


def layer_update_flops(config: ModelConfig, layer: int, *, per_head: bool) -> UpdateFlops:
    """Of one block; those behind the last layer are prediction blocks."""
    width, a = config.hidden_size, config.attention
    heads = [a.num_heads, a.num_kv_heads, a.num_kv_heads]
    if per_head:
        heads = [1] * sum(heads)
    others = sum(matrix_flops(count * a.head_dim, width) for count in heads)
    others += matrix_flops(width, a.num_heads * a.head_dim)
    if a.output_gate == "elementwise" and per_head:
        others += a.num_heads * matrix_flops(a.head_dim, width)
    elif a.output_gate != "none":
        others += matrix_flops(a.gate_width, width)
    if layer >= config.num_layers:
        others += matrix_flops(width, 2 * width)
    moe = config.moe if config.is_moe_layer(layer) else None
    if moe is None:
        return UpdateFlops(routed=0.0, others=others + 3 * matrix_flops(config.dense_width, width))
    others += matrix_flops(moe.num_experts, width)
    shared = moe.num_shared_experts * moe.expert_width
    if shared:
        others += 3 * matrix_flops(shared, width)
    return UpdateFlops(
        routed=moe.num_experts * 3 * matrix_flops(moe.expert_width, width), others=others
    )
