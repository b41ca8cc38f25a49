"""Bytes on every rank of a plan, as the distributed engine keeps them."""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import count_params, layer_counts
from model.config import ModelConfig
from model.memory import PrecisionPlan, activation_memory
from model.training.distributed.config import ParallelConfig

FLOAT32 = 4
MASTER_AND_MOMENTS = 12
"""Float32 weight and both AdamW moments of a parameter."""

LOSS_BLOCK_SCORES = 2**28
"""Of a GPU, ``model.loss.BLOCK_SCORES_GPU``: more positions' scores are computed in blocks, and
none kept."""
LOSS_BYTES_A_SCORE = 10
"""Of a block: scores in bfloat16 and float32, and their exponentials."""

BF16 = PrecisionPlan(
    weight_bytes=4,
    gradient_bytes=4,
    master_bytes=0,
    moment_bytes=8,
    stream_bytes=4,
    product_bytes=2,
)
"""Autocast: products in bfloat16, the residual stream and the norms in float32."""
FP32 = PrecisionPlan(
    weight_bytes=4,
    gradient_bytes=4,
    master_bytes=0,
    moment_bytes=8,
    stream_bytes=4,
    product_bytes=4,
)


@dataclass(frozen=True, kw_only=True)
class RankParams:
    """Parameters of one pipeline rank, before sharding."""

    routed: int
    """Of the routed experts, all ranks of the expert dimension together."""
    others: int
    lookups: int
    """Of the others, embeddings: they enter no product, so autocast makes no copy of them."""


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Bytes of one rank (the ranks of one place in the pipeline are alike)."""

    pipeline_rank: int
    params: int
    """Parameters that this rank keeps and updates, its share of the sharded ones."""
    states: int
    """Its share of weights, moments and reduced gradients, float32."""
    gathered: int
    """Weights of its stages, whole, in the type they are used in."""
    gradients: int
    """Float32 gradients of its stages, whole, summed over micro-batches."""
    activations: int
    """Kept for backward passes at the fullest moment, and the block being computed again."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.states + self.gathered + self.gradients + self.activations


def blocks_of(model: ModelConfig, counts: tuple[int, ...], stage: int) -> list[int]:
    """The blocks of one stage, of which there are ``counts``; the last has the prediction block."""
    first = sum(counts[:stage])
    blocks = list(range(first, first + counts[stage]))
    if stage == len(counts) - 1:
        blocks += range(model.num_layers, model.num_layers + model.mtp_depth)
    return blocks


def rank_params(
    model: ModelConfig, parallel: ParallelConfig, counts: tuple[int, ...], rank: int
) -> RankParams:
    """What the stages of ``rank`` hold; the embedding's copy for the prediction block included."""
    layers = layer_counts(model)
    routed = others = lookups = 0
    table = model.vocab_size * model.hidden_size
    for stage in range(rank, parallel.num_stages, parallel.pipeline):
        held = [layers[block] for block in blocks_of(model, counts, stage)]
        if stage == 0:
            lookups += table
        if stage == parallel.num_stages - 1:
            others += table + model.hidden_size
            if model.mtp_depth and stage != 0:
                lookups += table
        routed += sum(layer.by_group.get("routed_experts", 0) for layer in held)
        others += sum(layer.total for layer in held)
    return RankParams(routed=routed, others=others - routed + lookups, lookups=lookups)


def mean_weights(model: ModelConfig, parallel: ParallelConfig) -> float:
    """Bytes of states, gathered weights and gradients of the mean rank, whatever the split.

    The fullest rank holds no less, so this spares splitting layers for sizes that do not fit.
    """
    counts = count_params(model)
    routed = sum(layer.by_group.get("routed_experts", 0) for layer in layer_counts(model))
    others = counts.total - routed
    lookups = counts.embedding // 2
    whole = routed / parallel.expert + others
    states = counts.total / parallel.shard * (MASTER_AND_MOMENTS + FLOAT32)
    # Gathered in the type of the products at least: 2 bytes, and FLOAT32 of the gradients.
    gathered = (whole - lookups) * 2 + lookups * FLOAT32
    return (states + gathered + whole * FLOAT32) / parallel.pipeline


def rank_memory(
    model: ModelConfig,
    parallel: ParallelConfig,
    counts: tuple[int, ...],
    rank: int,
    held: tuple[int, ...],
    *,
    sequence_length: int,
    is_bf16: bool,
) -> RankMemory:
    """Bytes of the ranks at place ``rank`` of the pipeline.

    Args:
        model: the whole model.
        parallel: the sizes.
        counts: blocks of each stage.
        rank: place in the pipeline.
        held: micro-batches waiting on each of the rank's stages at the fullest moment.
        sequence_length: of every sequence.
        is_bf16: whether products are in bfloat16.
    """
    params = rank_params(model, parallel, counts, rank)
    routed = params.routed // parallel.expert
    mine = _share_of_experts(model, parallel, routed) + -(-params.others // parallel.shard)
    precision = BF16 if is_bf16 else FP32
    casts = (params.others - params.lookups) * (precision.product_bytes if is_bf16 else 0)
    positions = sequence_length // parallel.context
    tokens = parallel.micro_batch * positions
    kept = activation_memory(
        model, precision, sequence_length=positions, sequences=parallel.micro_batch
    )
    stream = tokens * model.hidden_size * precision.stream_bytes
    shared = tokens * _gathered_bytes(model, parallel, precision)
    visits = tokens * _exchanged_bytes(model, parallel, precision)
    exchanged = (shared, shared + visits)  # of a dense layer, of one with experts
    activations, largest = 0, 0
    output: OutputMemory | None = None
    for chunk, stage in enumerate(range(rank, parallel.num_stages, parallel.pipeline)):
        layers = blocks_of(model, counts, stage)
        full = [kept.layers[layer] + exchanged[model.is_moe_layer(layer)] for layer in layers]
        one = len(layers) * stream if parallel.recompute else sum(full)
        activations += held[chunk] * max(one, stream)
        largest = max(largest, *full, 0)
        if stage == parallel.num_stages - 1:
            output = output_memory(model, precision, tokens, kept.ends)
    return RankMemory(
        pipeline_rank=rank,
        params=mine,
        states=mine * (MASTER_AND_MOMENTS + FLOAT32),
        gathered=routed * precision.product_bytes + params.others * FLOAT32 + casts,
        gradients=(routed + params.others) * FLOAT32,
        activations=activations + _at_once(model, parallel, largest, output),
    )


@dataclass(frozen=True, kw_only=True)
class OutputMemory:
    """Of the output layer and its loss, both heads of prediction."""

    kept: int
    """From its forward to its backward pass; the scores only where they are not in blocks."""
    working: int
    """While its backward pass runs."""


def output_memory(
    model: ModelConfig, precision: PrecisionPlan, tokens: int, ends: int
) -> OutputMemory:
    """How :mod:`model.loss` does it on a GPU.

    Args:
        model: the whole model.
        precision: bytes of a number.
        tokens: of one forward pass.
        ends: what is kept with all scores, :attr:`ActivationMemory.ends`.
    """
    scores = tokens * model.vocab_size
    if scores <= LOSS_BLOCK_SCORES:
        return OutputMemory(kept=ends, working=0)
    # The weights' gradient is summed in float32, and a product is added to it.
    table = model.vocab_size * model.hidden_size
    return OutputMemory(
        kept=ends - (1 + model.mtp_depth) * scores * FLOAT32,
        working=LOSS_BLOCK_SCORES * LOSS_BYTES_A_SCORE
        + table * (FLOAT32 + precision.product_bytes),
    )


def _at_once(
    model: ModelConfig, parallel: ParallelConfig, largest: int, output: OutputMemory | None
) -> int:
    """The output layer's part of what is kept, and the block that is computed again.

    Backward the output layer comes first and is over when a block is computed again, but for the
    half of it that is the next token's while the prediction block is.
    """
    if output is None:
        return largest if parallel.recompute else 0
    ends = output.kept + output.working
    if not parallel.recompute:
        return ends
    return max(ends, largest + (output.kept // 2 if model.mtp_depth else 0))


def _exchanged_bytes(model: ModelConfig, parallel: ParallelConfig, precision: PrecisionPlan) -> int:
    """Bytes that a token keeps of its visits to experts elsewhere, beside those of experts here.

    Each visit's input as it arrived and the expert's answer as it came back, both in the type of
    the products; where it went and whence it came, three 8-byte numbers; two float32 gates.
    """
    if model.moe is None or parallel.expert == 1:
        return 0
    rows = 2 * model.hidden_size * precision.product_bytes
    return model.moe.experts_per_token * (rows + 3 * 8 + 2 * 4)


def _gathered_bytes(model: ModelConfig, parallel: ParallelConfig, precision: PrecisionPlan) -> int:
    """Bytes that a token keeps of a sequence's other ranks, where it is spread over several.

    Keys and values of all its ranks' tokens, and the attention's output once more: both pieces'
    outputs are joined before the next product reads them.
    """
    if parallel.context == 1:
        return 0
    attention = model.attention
    heads = parallel.context * 2 * attention.num_kv_heads + attention.num_heads
    return heads * attention.head_dim * precision.product_bytes


def _share_of_experts(model: ModelConfig, parallel: ParallelConfig, routed: int) -> int:
    """Of the experts' parameters on one rank of ``expert``, those the fullest shard keeps."""
    sharded = parallel.shard // parallel.expert
    if model.moe is None or parallel.expert_shard_dim(model.moe) == 1:
        return routed // sharded
    experts = model.moe.num_experts // parallel.expert
    return routed * -(-experts // sharded) // experts
