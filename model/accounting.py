"""Parameters and training FLOPs per token in closed form, under one versioned convention.

Torch-free, so that a plan or a fit needs no torch. The tests hold every number here against the
built module on the meta device and against ``torch.utils.flop_counter``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from model.config import AttentionConfig, ModelConfig
from model.errors import ConfigError
from model.own.parts import GROUPS, OwnCounts, part_of

CONVENTION = "ling-1"
"""Version of the rules below; stamped on every record. A change of any rule changes it."""

LayerKind = Literal["dense", "moe", "mtp"]


@dataclass(frozen=True, kw_only=True)
class ParamCounts:
    """Trained parameters of a model. The selection bias is a buffer and is not counted.

    ``active`` is what one token visits to predict the next one: the experts it is sent to, the
    embedding and the output layer whole (so Ling-mini has 1.433B), and no multi-token-prediction
    block, which only training runs.
    """

    total: int
    """Every parameter, the multi-token-prediction block included."""
    active: int
    embedding: int
    """Input embedding and output layer (untied, so twice vocabulary times width)."""
    active_non_embedding: int
    """active - embedding: the N of the house's FLOP convention."""
    by_group: dict[str, int]
    """Named groups that sum to ``total``."""


@dataclass(frozen=True, kw_only=True)
class LayerCounts:
    """One block: its parameters by group and what one token visits of it."""

    layer: int
    """Index from 0; multi-token-prediction blocks follow the last layer."""
    kind: LayerKind
    by_group: dict[str, int]
    active: int
    active_matmul: int
    """``active`` without the norm weights, which multiply no matrix."""
    matmul_flops: float
    """Training FLOPs per token of its products with weights, 6 · active_matmul; of a part of the
    user's own all its products, as measured."""

    @property
    def total(self) -> int:
        """All parameters of the block."""
        return sum(self.by_group.values())


@dataclass(frozen=True, kw_only=True)
class FlopCounts:
    """Training FLOPs per token, forward and backward, by several conventions."""

    house: float
    """M = 6 · active_non_embedding + 12 · layers · heads · head_dim · sequence_length."""
    others: dict[str, float]
    """The same training by other conventions, by name; see :func:`flops_per_token`."""


def attention_params(attention: AttentionConfig, hidden_size: int) -> int:
    """Weights of the query/key/value, the output and the output gate's projection; no biases."""
    query_width = attention.num_heads * attention.head_dim
    kv_width = attention.num_kv_heads * attention.head_dim
    inward = query_width + 2 * kv_width + attention.gate_width
    return hidden_size * inward + query_width * hidden_size


def swiglu_params(hidden_size: int, width: int) -> int:
    """Gate, up and down projection of one SwiGLU."""
    return 3 * hidden_size * width


@lru_cache(maxsize=64)
def layer_counts(config: ModelConfig) -> tuple[LayerCounts, ...]:
    """Every block in order, the multi-token-prediction blocks last."""
    return tuple(
        _count_layer(config, layer) for layer in range(config.num_layers + config.mtp_depth)
    )


def count_params(config: ModelConfig) -> ParamCounts:
    """Count the trained parameters of ``config``.

    Ling-mini, -flash and -1T give 16.26B / 1.433B / 0.789B, 102.89B / 6.152B / 4.864B and
    999.70B / 51.05B / 48.48B (total / active / active without embeddings), which are the
    published sizes (Ling 2.0 report, arXiv:2510.22115, table 1).
    """
    table = config.vocab_size * config.hidden_size
    final_norm = config.hidden_size
    by_group = {
        "embedding": table,
        "output": table,
        "attention": 0,
        "norms": final_norm,
        "dense_ffn": 0,
        "router": 0,
        "routed_experts": 0,
        "shared_experts": 0,
        "mtp": 0,
    }
    active_non_embedding = final_norm
    for counts in layer_counts(config):
        if counts.kind == "mtp":
            by_group["mtp"] += counts.total
            continue
        for group, count in counts.by_group.items():
            by_group[group] += count
        active_non_embedding += counts.active
    return ParamCounts(
        total=sum(by_group.values()),
        active=active_non_embedding + 2 * table,
        embedding=2 * table,
        active_non_embedding=active_non_embedding,
        by_group=by_group,
    )


def flops_per_token(config: ModelConfig, sequence_length: int) -> FlopCounts:
    """Training FLOPs per token of ``config`` on sequences of ``sequence_length`` tokens.

    The factors: a multiply-add is 2 FLOPs; the backward pass does each product twice more (for
    the input and for the weight), so a weight costs 2 · 3 = 6. Attention multiplies each query
    with ``sequence_length`` keys and the scores with as many values: 2 products · 2 · 3 = 12
    times heads · head_dim · sequence_length a layer, whether or not a mask discards half.

    The house's M counts all active parameters except embedding and output layer: the router and
    the norms are in, the multi-token-prediction block is not. With it and 20T tokens the law
    1.1576 · C^-0.1529 (arXiv:2507.17702, eq. 3) returns the three published peak learning rates
    of Ling 2.0; without the router, or with the prediction block, it does not.

    ``others`` holds, by name:

    - ``with_output``: M and the output layer, 6 · vocabulary · width;
    - ``causal_attention``: M with the attention term halved (an attention of the user's own has
      no term of its own, and stays whole);
    - ``six_active_non_embedding``, ``six_active``, ``six_total``: 6 times a parameter count, no
      attention term (Kaplan et al. and Chinchilla count this way);
    - ``all_matmuls``: every matrix product a training step does: no norms, but the output layer,
      the prediction block, and its own pass through the output layer, which a sequence's last
      position, having no token to predict, is spared.

    A part of the user's own brings the products that were measured of it.

    Raises:
        ConfigError: it was measured at another sequence length.
    """
    for part in config.own:
        if part.sequence_length != sequence_length:
            raise ConfigError(
                f"own.{part.kind}: {part.name} was measured at sequence length "
                f"{part.sequence_length}, not at {sequence_length}; plan again at that length"
            )
    params = count_params(config)
    layers = layer_counts(config)
    attention_layer = _attention_flops(config, sequence_length)
    attention_flops = config.num_layers * attention_layer
    output_flops = 6.0 * config.vocab_size * config.hidden_size
    main = layers[: config.num_layers]
    not_measured = params.active_non_embedding - sum(counts.active_matmul for counts in main)
    house = 6.0 * not_measured + sum(counts.matmul_flops for counts in main) + attention_flops
    return FlopCounts(
        house=house,
        others={
            "with_output": house + output_flops,
            "causal_attention": house - attention_flops / 2,
            "six_active_non_embedding": 6.0 * params.active_non_embedding,
            "six_active": 6.0 * params.active,
            "six_total": 6.0 * params.total,
            "all_matmuls": sum(counts.matmul_flops for counts in layers)
            + len(layers) * attention_layer
            + (1 + config.mtp_depth * (1 - 1 / sequence_length)) * output_flops,
        },
    )


def layer_flops_per_token(config: ModelConfig, counts: LayerCounts, sequence_length: int) -> float:
    """One block's part of the house's M (a prediction block's is not in M, but counted alike)."""
    beside = 6.0 * (counts.active - counts.active_matmul)
    return beside + counts.matmul_flops + _attention_flops(config, sequence_length)


def _attention_flops(config: ModelConfig, sequence_length: int) -> float:
    """Training FLOPs per token of one layer's scores and their use of the values.

    An attention of the user's own has them among its measured products.
    """
    attention = config.attention
    if part_of(config.own, "attention") is not None:
        return 0.0
    return 12.0 * attention.num_heads * attention.head_dim * sequence_length


@dataclass(frozen=True)
class _Piece:
    """Parameters of one group in one block."""

    total: int
    visited: int
    matmul: int
    """Of the visited, those in products."""
    flops: float
    """Training FLOPs per token of the products."""


def _products(total: int, unvisited: int = 0) -> _Piece:
    visited = total - unvisited
    return _Piece(total, visited, visited, 6.0 * visited)


def _vectors(total: int) -> _Piece:
    return _Piece(total, total, 0, 0.0)


def _measured(counts: OwnCounts) -> _Piece:
    matmul = counts.visited - counts.vectors
    return _Piece(counts.params, counts.visited, matmul, counts.train_flops)


def _count_layer(config: ModelConfig, layer: int) -> LayerCounts:
    width = config.hidden_size
    is_mtp = layer >= config.num_layers
    pieces = {
        "attention": _products(attention_params(config.attention, width)),
        "norms": _vectors(2 * width),
    }
    moe = config.moe if config.is_moe_layer(layer) else None
    if moe is not None:
        expert = swiglu_params(width, moe.expert_width)
        unvisited = (moe.num_experts - moe.experts_per_token) * expert
        pieces["router"] = _products(moe.num_experts * width)
        pieces["routed_experts"] = _products(moe.num_experts * expert, unvisited)
        pieces["shared_experts"] = _products(moe.num_shared_experts * expert)
    else:
        pieces["dense_ffn"] = _products(swiglu_params(width, config.dense_width))
    for part in config.own:
        if GROUPS[part.kind] in pieces:
            pieces[GROUPS[part.kind]] = _measured(part.counts[layer])
    others = []
    if config.attention.qk_norm and part_of(config.own, "attention") is None:
        others.append(("norms", _vectors(2 * config.attention.head_dim)))
    if is_mtp:
        # [embedding of the next token, hidden state] -> width, their two norms and a last one.
        others += [("mtp_projection", _products(2 * width * width)), ("norms", _vectors(3 * width))]
    by_group = {group: piece.total for group, piece in pieces.items()}
    for group, piece in others:
        by_group[group] = by_group.get(group, 0) + piece.total
    all_pieces = [*pieces.values(), *(piece for _, piece in others)]
    return LayerCounts(
        layer=layer,
        kind="mtp" if is_mtp else "dense" if moe is None else "moe",
        by_group=by_group,
        active=sum(piece.visited for piece in all_pieces),
        active_matmul=sum(piece.matmul for piece in all_pieces),
        matmul_flops=sum(piece.flops for piece in all_pieces),
    )
