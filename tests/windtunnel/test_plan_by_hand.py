"""A small machine plan worked out by hand: every product, byte and second of it."""

from dataclasses import replace

import pytest

from model import loss
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.memory import activation_memory
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.memory_plan import BF16, LOSS_BLOCK_SCORES, mean_weights, output_memory
from windtunnel.machine.one_gpu import BF16_WEIGHTS as PLAIN_BF16
from windtunnel.machine.one_gpu import OneGpuPlan, one_gpu_plan
from windtunnel.machine.plan import plan_for
from windtunnel.machine.update_costs import ASSUMPTION

MODEL = ModelConfig(
    vocab_size=1000,
    hidden_size=64,
    num_layers=2,
    num_dense_layers=1,
    dense_width=128,
    mtp_depth=0,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=8, experts_per_token=2, expert_width=32, num_shared_experts=1),
)
LENGTH = 128
TRAIN = TrainConfig(
    tokens=8 * LENGTH * 5,
    batch_tokens=8 * LENGTH,
    sequence_length=LENGTH,
    seed=0,
    optimizer=OptimizerConfig(peak_lr=1e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(),
    checkpoint=CheckpointConfig(),
    precision="bf16",
)
NODES_OF_TWO = Hardware(
    name="made up",
    peak_flops_per_s=1e12,
    memory_bytes=10**9,
    memory_bytes_per_s=1e11,
    gpus_per_node=2,
    node_bytes_per_s=1e10,
    network_bytes_per_s=1e9,
    matmul_efficiency=0.5,
    grouped_efficiency=0.25,
    output_efficiency=0.8,
    link_efficiency=0.5,
    usable_memory_frac=0.9,
)
DENSE, GROUPED, OUTPUT = 0.5e12, 0.25e12, 0.8e12
NODE, NETWORK = 0.5e10, 0.5e9

# Weights. Queries and the output 64 x 64, keys and values 64 x 32; SwiGLU three matrices.
ATTENTION = 2 * 64 * 64 + 2 * 64 * 32
NORMS = 2 * 64 + 2 * 16  # of a block, and over the heads of queries and of keys
TABLE = 1000 * 64
ROUTED = 8 * 3 * 64 * 32
SHARED, ROUTER, WIDE = 3 * 64 * 32, 64 * 8, 3 * 64 * 128
OTHERS = 2 * TABLE + 64 + 2 * (ATTENTION + NORMS) + WIDE + SHARED + ROUTER

# Forward seconds of a token. Scores and weighted values, the causal half of 128 keys: 2 · 64 · 128.
MIXING = (2 * ATTENTION + 2 * 64 * LENGTH) / DENSE
DENSE_BLOCK = MIXING + 2 * WIDE / DENSE
# Two visits there and back, half of them to the other rank: 2 · 2 · 64 numbers of 2 bytes, halved.
SENT = 256 / NODE
MIXTURE = MIXING + 2 * (SHARED + ROUTER) / DENSE + 2 * 2 * 3 * 64 * 32 / GROUPED + SENT
HEAD = 2 * TABLE / OUTPUT


def beside(shard: int, link: float) -> float:
    """Half of what is gathered (2 bytes) and reduced (4) waits; AdamW moves 28 bytes a weight."""
    moved = ROUTED / 2 * (1 - 1 / (shard / 2)) + OTHERS * (1 - 1 / shard)
    return 0.5 * 6 * moved / link + (ROUTED + OTHERS) / shard * 28 / 1e11


@pytest.mark.parametrize(("recompute", "passes"), [(False, 3), (True, 4)])
def test_time_on_four_gpus(recompute: bool, passes: int) -> None:
    sizes = ParallelConfig(shard=4, expert=2, recompute=recompute)
    plan = plan_for(MODEL, TRAIN, NODES_OF_TWO, sizes)
    assert (plan.gpus, plan.micro_batches) == (4, 2)
    tokens = LENGTH * (DENSE_BLOCK + MIXTURE + HEAD)
    step_s = 2 * passes * tokens + beside(4, NETWORK)
    assert plan.step_s == pytest.approx(step_s, rel=1e-12)
    assert plan.days == pytest.approx(5 * step_s / 86_400)
    assert plan.gpu_hours == pytest.approx(5 * step_s * 4 / 3600)
    assert plan.tokens_per_s == pytest.approx(8 * LENGTH / step_s)
    # Six FLOPs a weight that a token meets (two of eight experts), and attention's causal half.
    met = 2 * ATTENTION + WIDE + SHARED + ROUTER + 2 * 3 * 64 * 32 + TABLE
    flops = 6 * met + 2 * 3 * 2 * 64 * LENGTH
    assert plan.utilisation == pytest.approx(flops * 8 * LENGTH / (step_s * 4 * 1e12))
    assert plan.layer_costs == pytest.approx(
        {
            "dense": DENSE_BLOCK / MIXTURE,
            "mixture": 1.0,
            "prediction block": 0.0,
            "output layer": HEAD / MIXTURE,
        }
    )


def test_muons_time_on_four_gpus() -> None:
    """X Xᵀ, its square and their polynomial times X, five times; whole matrices on every rank."""
    muon = OptimizerConfig(kind="muon", muon=MuonConfig(), peak_lr=1e-3)
    sizes = ParallelConfig(shard=4, expert=2)
    before = plan_for(MODEL, TRAIN, NODES_OF_TWO, sizes)
    plan = plan_for(MODEL, replace(TRAIN, optimizer=muon), NODES_OF_TWO, sizes)

    def flops(short: int, long: int) -> int:
        return 5 * (2 * short * short * long * 2 + 2 * short * short * short)

    # Queries, the output, keys and values, of both blocks.
    others = 2 * (2 * flops(64, 64) + 2 * flops(32, 64))
    others += 3 * flops(64, 128) + 3 * flops(32, 64) + flops(8, 64)
    products_s = others / DENSE + 8 / 2 * 3 * flops(32, 64) / GROUPED
    # Half of each of its experts and three quarters of the rest lie on other ranks.
    hidden = 2 * ATTENTION + WIDE + SHARED + ROUTER
    moved_s = 4 * (ROUTED / 2 / 2 + hidden * 3 / 4) / NETWORK
    assert plan.step_s - before.step_s == pytest.approx(products_s + moved_s)
    assert plan.memory == before.memory
    assert set(plan.assumptions) - set(before.assumptions) == {ASSUMPTION}
    heads = replace(muon, muon=MuonConfig(per_head=True))
    apart = plan_for(MODEL, replace(TRAIN, optimizer=heads), NODES_OF_TWO, sizes)
    saved = 2 * (flops(64, 64) + 2 * flops(32, 64) - 8 * flops(16, 64)) / DENSE
    assert plan.step_s - apart.step_s == pytest.approx(saved)


def test_memory_on_four_gpus() -> None:
    sizes = ParallelConfig(shard=4, expert=2)
    (rank,) = plan_for(MODEL, TRAIN, NODES_OF_TWO, sizes).memory
    # Half of the experts, over two ranks of the four; a quarter of the rest, rounded up.
    assert rank.params == ROUTED // 4 + -(-OTHERS // 4)
    assert rank.states == 16 * rank.params
    used = ROUTED // 2 + OTHERS
    # In bfloat16 the experts alone; of the rest also a copy, but of the embedding.
    assert rank.gathered == 2 * (ROUTED // 2) + 4 * OTHERS + 2 * (OTHERS - TABLE)
    assert rank.gradients == 4 * used
    kept = activation_memory(MODEL, BF16, sequence_length=LENGTH, sequences=1)
    # Two visits: what went there and what came back, three 8-byte numbers, two float32 gates.
    visits = LENGTH * 2 * (2 * 64 * 2 + 3 * 8 + 2 * 4)
    assert rank.activations == sum(kept.layers) + visits + kept.ends
    assert rank.total == 16 * rank.params + rank.gathered + 4 * used + rank.activations
    states = 16 * (ROUTED + OTHERS) / 4
    least = 2 * (used - TABLE) + 4 * TABLE
    assert mean_weights(MODEL, sizes) == pytest.approx(states + least + 4 * used)
    assert mean_weights(MODEL, sizes) < rank.total


def test_a_pipeline_holds_its_own_blocks_for_each_waiting_micro_batch() -> None:
    """Two ranks: the first holds the dense block of two micro-batches, the last one mixture."""
    sizes = ParallelConfig(pipeline=2, layers=(1, 1))
    plan = plan_for(MODEL, TRAIN, NODES_OF_TWO, sizes)
    first, last = plan.memory
    kept = activation_memory(MODEL, BF16, sequence_length=LENGTH, sequences=1)
    assert first.activations == 2 * kept.layers[0]
    assert last.activations == kept.layers[1] + kept.ends
    assert first.params == TABLE + ATTENTION + NORMS + WIDE
    assert first.params + last.params == ROUTED + OTHERS
    again = plan_for(MODEL, TRAIN, NODES_OF_TWO, replace(sizes, recompute=True))
    stream = 4 * LENGTH * 64
    assert again.memory[0].activations == 2 * stream + kept.layers[0]
    assert again.other_order is None
    # No exchange and no sharding: a rank alone holds its experts. The first does 1 + 8 passes of
    # the dense block, the last 8 of the rest, in turns: as long as the slower one, and what comes
    # before its first and after its last.
    here = MIXTURE - SENT + HEAD
    assert here > DENSE_BLOCK
    pipeline_s = LENGTH * 3 * (8 * here + DENSE_BLOCK)
    adamw_s = (ROUTED + OTHERS - first.params) * 28 / 1e11
    assert plan.step_s == pytest.approx(pipeline_s + adamw_s)
    other = plan.other_order
    assert other is not None
    assert other.schedule == "zero_bubble"


def test_ranks_that_share_a_sequence_gather_its_keys() -> None:
    sizes = ParallelConfig(shard=4, expert=2, context=2)
    plan = plan_for(MODEL, TRAIN, NODES_OF_TWO, sizes)
    assert plan.micro_batches == 4
    gather = 2 * 2 * 16 * 2 / NODE  # of the other rank: keys and values, two heads of 16, 2 bytes
    tokens = LENGTH / 2 * (DENSE_BLOCK + MIXTURE + HEAD + 2 * gather)
    assert plan.step_s == pytest.approx(4 * 3 * tokens + beside(4, NETWORK))
    shared = plan.shared
    assert shared is not None
    core = 2 * 64 * LENGTH / DENSE
    assert shared.gather_s == pytest.approx(LENGTH / 2 * gather)
    assert shared.attention_s == pytest.approx(LENGTH / 2 * core)
    # One hop, behind the half of attention that has its keys already.
    assert shared.ring_s == pytest.approx(LENGTH / 2 * max(0.0, gather - core / 2))
    assert shared.bytes == LENGTH * 2 * 2 * 16 * 2
    kept = activation_memory(MODEL, BF16, sequence_length=LENGTH // 2, sequences=1)
    visits = LENGTH // 2 * 2 * (2 * 64 * 2 + 3 * 8 + 2 * 4)
    # Both ranks' keys and values, and this one's output once more, in every block.
    joined = 2 * (LENGTH // 2) * (2 * 2 * 2 + 4) * 16 * 2
    assert plan.memory[0].activations == sum(kept.layers) + visits + joined + kept.ends


def test_scores_are_kept_until_they_are_more_than_the_loss_takes_at_once() -> None:
    assert LOSS_BLOCK_SCORES == loss.BLOCK_SCORES_GPU == 2**28
    wide = replace(MODEL, vocab_size=2**16, hidden_size=1024, mtp_depth=1)
    all_at_once = output_memory(wide, BF16, tokens=2**12, ends=10**10)
    assert (all_at_once.kept, all_at_once.working) == (10**10, 0)
    blocks = output_memory(wide, BF16, tokens=2**13, ends=10**10)
    assert blocks.kept == 10**10 - 2 * 2**29 * 4  # both heads' float32 scores are not there
    assert blocks.working == 2**28 * (2 + 4 + 4) + 2**26 * (4 + 2)


def one_gpu(model: ModelConfig, *, recompute: bool = False) -> OneGpuPlan:
    how = {"recompute": recompute, "updates_in_backward": False}
    return one_gpu_plan(model, NODES_OF_TWO, sequence_length=LENGTH, sequences=2, **how)


@pytest.mark.parametrize(("recompute", "passes"), [(False, 3), (True, 4)])
def test_a_step_on_one_gpu(recompute: bool, passes: int) -> None:
    plan = one_gpu(MODEL, recompute=recompute)
    # The scores are computed twice forward, and the optimizer moves ten bytes a weight.
    blocks = passes * 256 * (DENSE_BLOCK + MIXTURE - SENT)
    step_s = blocks + 4 * 256 * HEAD + (ROUTED + OTHERS) * 10 / 1e11
    assert plan.step_s == pytest.approx(step_s)
    assert plan.tokens_per_s == pytest.approx(256 / step_s)
    assert (plan.weights, plan.moments) == (
        2 * (ROUTED + OTHERS),
        round((ROUTED + OTHERS) * (2 + 8 / 256)),
    )
    # With so many words its fullest moment is the loss, before there is a gradient.
    kept = activation_memory(MODEL, PLAIN_BF16, sequence_length=LENGTH, sequences=2, fused=True)
    ends = kept.ends - 4 * 256 * 1000
    blocks_kept = 2 * 256 * 64 * 2 if recompute else sum(kept.layers)
    assert (plan.gradients, plan.activations) == (0, blocks_kept + ends)
    assert plan.temporaries == 256 * 1000 * 10 + TABLE * (4 + 2)


def test_with_few_words_one_gpu_is_fullest_in_the_backward_pass() -> None:
    plan = one_gpu(replace(MODEL, vocab_size=8))
    kept = activation_memory(
        replace(MODEL, vocab_size=8), PLAIN_BF16, sequence_length=LENGTH, sequences=2, fused=True
    )
    mixture = ATTENTION + NORMS + ROUTER + SHARED + ROUTED
    # At the last block: its gradients and the output layer's, and what both blocks keep; at the
    # first: all gradients but the embedding's and the last norm's.
    last = (2 * (8 * 64 + mixture), sum(kept.layers), 256 * (2 * 2 * (64 + 3 * 32) + 8 * 64))
    wide = ATTENTION + NORMS + WIDE
    first = (last[0] + 2 * wide, kept.layers[0], 256 * (8 * 128 + 8 * 64))
    assert (plan.gradients, plan.activations, plan.temporaries) == max(last, first, key=sum)
