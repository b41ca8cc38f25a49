"""Where every tensor of a published BailingMoeV2 checkpoint lies in a tensor of ours. Torch-free.

The published layout names each expert's projections apart and keeps gate and up apart; ours joins
them. Nothing is computed on the way, so export and import are one table read in two directions.
Names: ``BailingMoeV2ForCausalLM`` of github.com/inclusionAI/Ling-V2 at af8837e677a1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from model.config import AttentionConfig, ModelConfig, MoEConfig

Index = tuple[int | slice, ...]
WHOLE: Index = (slice(None),)

# Shapes: D model width, W inner width of a feed-forward, E experts.


@dataclass(frozen=True, kw_only=True)
class Piece:
    """One published tensor."""

    published: str
    shape: tuple[int, ...]
    """Its published shape."""
    index: Index = WHOLE
    """The part of our tensor it is; parts of one tensor are listed in memory order."""
    transposed: bool = False
    """Whether the published tensor is the transpose of that part."""


@dataclass(frozen=True, kw_only=True)
class OurTensor:
    """One tensor of our state dict and the published tensors it is made of."""

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    """None of a tensor that the published layout has no name for; no such model is exported."""
    always_float32: bool = False
    """The selection bias, whose steps of 1e-3 would vanish in bfloat16."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def layout(config: ModelConfig) -> tuple[OurTensor, ...]:
    """Every tensor of a model's state dict, with the published tensors it consists of."""
    table = (config.vocab_size, config.hidden_size)
    tensors = [
        _whole("embedding.weight", "model.word_embeddings.weight", *table),
        _whole("norm.weight", "model.norm.weight", config.hidden_size),
        _whole("output.weight", "lm_head.weight", *table),
    ]
    for layer in range(config.num_layers):
        tensors += _block(config, layer, f"blocks.{layer}", f"model.layers.{layer}")
    if config.mtp_depth:
        # The prediction block is published as one more layer.
        layer = config.num_layers
        ours, published, width = "mtp", f"model.layers.{layer}", config.hidden_size
        tensors += _block(config, layer, f"{ours}.block", published)
        tensors += [
            _whole(f"{ours}.embedding_norm.weight", f"{published}.enorm.weight", width),
            _whole(f"{ours}.hidden_norm.weight", f"{published}.hnorm.weight", width),
            _whole(f"{ours}.projection.weight", f"{published}.eh_proj.weight", width, 2 * width),
            _whole(f"{ours}.norm.weight", f"{published}.final_layernorm.weight", width),
        ]
    return tuple(tensors)


def _block(config: ModelConfig, layer: int, ours: str, published: str) -> list[OurTensor]:
    width = config.hidden_size
    tensors = [
        _whole(f"{ours}.attention_norm.weight", f"{published}.input_layernorm.weight", width),
        *_attention(config.attention, width, f"{ours}.attention", f"{published}.attention"),
        _whole(
            f"{ours}.feed_forward_norm.weight",
            f"{published}.post_attention_layernorm.weight",
            width,
        ),
    ]
    if config.moe is not None and config.is_moe_layer(layer):
        tensors += _moe(config.moe, width, f"{ours}.feed_forward", f"{published}.mlp")
    else:
        tensors += _swiglu(width, config.dense_width, f"{ours}.feed_forward", f"{published}.mlp")
    return tensors


def _attention(config: AttentionConfig, width: int, ours: str, published: str) -> list[OurTensor]:
    query_width = config.num_heads * config.head_dim
    qkv_width = query_width + 2 * config.num_kv_heads * config.head_dim
    tensors = [
        _whole(f"{ours}.qkv.weight", f"{published}.query_key_value.weight", qkv_width, width),
        _whole(f"{ours}.out.weight", f"{published}.dense.weight", width, query_width),
    ]
    if config.qk_norm:
        head = config.head_dim
        tensors += [
            _whole(f"{ours}.q_norm.weight", f"{published}.query_layernorm.weight", head),
            _whole(f"{ours}.k_norm.weight", f"{published}.key_layernorm.weight", head),
        ]
    if config.gate_width:
        shape = (config.gate_width, width)
        tensors.append(OurTensor(name=f"{ours}.output_gate.weight", shape=shape, pieces=()))
    return tensors


def _moe(config: MoEConfig, width: int, ours: str, published: str) -> list[OurTensor]:
    e, w = config.num_experts, config.expert_width
    gate, up = slice(0, w), slice(w, 2 * w)
    expert = f"{published}.experts"
    tensors = [_whole(f"{ours}.router.weight", f"{published}.gate.weight", e, width)]
    if config.selection_bias:
        bias = Piece(published=f"{published}.gate.expert_bias", shape=(e,))
        tensors.append(
            OurTensor(
                name=f"{ours}.router.selection_bias",
                shape=(e,),
                pieces=(bias,),
                always_float32=True,
            )
        )
    tensors.append(
        OurTensor(
            name=f"{ours}.experts.w_gate_up",
            shape=(e, 2 * w, width),
            pieces=tuple(
                Piece(
                    published=f"{expert}.{i}.{name}_proj.weight", shape=(w, width), index=(i, rows)
                )
                for i in range(e)
                for name, rows in (("gate", gate), ("up", up))
            ),
        )
    )
    tensors.append(
        OurTensor(
            name=f"{ours}.experts.w_down",
            shape=(e, w, width),
            pieces=tuple(
                Piece(
                    published=f"{expert}.{i}.down_proj.weight",
                    shape=(width, w),
                    index=(i,),
                    transposed=True,
                )
                for i in range(e)
            ),
        )
    )
    if config.num_shared_experts:
        shared_width = config.num_shared_experts * w
        tensors += _swiglu(width, shared_width, f"{ours}.shared", f"{published}.shared_experts")
    return tensors


def _swiglu(width: int, inner: int, ours: str, published: str) -> list[OurTensor]:
    gate_up = OurTensor(
        name=f"{ours}.gate_up.weight",
        shape=(2 * inner, width),
        pieces=(
            Piece(
                published=f"{published}.gate_proj.weight",
                shape=(inner, width),
                index=(slice(0, inner),),
            ),
            Piece(
                published=f"{published}.up_proj.weight",
                shape=(inner, width),
                index=(slice(inner, 2 * inner),),
            ),
        ),
    )
    return [
        gate_up,
        _whole(f"{ours}.down.weight", f"{published}.down_proj.weight", width, inner),
    ]


def _whole(ours: str, published: str, *shape: int) -> OurTensor:
    return OurTensor(name=ours, shape=shape, pieces=(Piece(published=published, shape=shape),))
