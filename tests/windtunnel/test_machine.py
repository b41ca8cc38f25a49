"""The machine plan against ideal pipelines, Ling-1T's published sizes, and stages really built."""

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from model.accounting import count_params
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from model.training.distributed.config import ParallelConfig
from model.training.schedules import learning_rate
from windtunnel.commands.machine import Config, _training
from windtunnel.composition import load
from windtunnel.machine.costs import BlockCosts
from windtunnel.machine.dry_run import dry_run
from windtunnel.machine.handover import (
    megatron_options,
    pipeline_layout,
    torchtitan_options,
    write_handover,
)
from windtunnel.machine.memory_plan import mean_weights, rank_params
from windtunnel.machine.pipeline import balanced, play, stage_seconds, uniform
from windtunnel.machine.plan import _first_to_last_s, _least_s, best_plan, plan_for
from windtunnel.machine.sizes import _require_room
from windtunnel.yaml_folders import CONF_DIR

LING_1T = ParallelConfig(shard=96, expert=8, pipeline=21, virtual=2, micro_batch=1, recompute=True)
SMALL = ModelConfig(
    vocab_size=256,
    hidden_size=128,
    num_layers=6,
    dense_width=256,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=32, rotary_dim=16),
    moe=MoEConfig(num_experts=16, experts_per_token=2, expert_width=64),
)
TRAIN = TrainConfig(
    tokens=64 * 128 * 10,
    batch_tokens=64 * 128,
    sequence_length=128,
    seed=0,
    optimizer=OptimizerConfig(peak_lr=1e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(),
    checkpoint=CheckpointConfig(),
    precision="bf16",
)


@pytest.fixture(scope="module")
def published():
    """`windtunnel machine` as it stands: Ling-1T on 2,016 H800."""
    return load("machine", Config, ["parallel=ling_1t"], (CONF_DIR,))


@pytest.fixture(scope="module")
def plan(published):
    return plan_for(published.model, _training(published), published.hardware, LING_1T)


@pytest.mark.parametrize(
    ("pipeline", "virtual", "num_micro"),
    [(4, 1, 16), (4, 2, 16), (21, 2, 189), (21, 1, 42), (4, 2, 400)],
)
def test_equal_stages_wait_as_long_as_the_papers_formula_says(pipeline, virtual, num_micro):
    sizes = ParallelConfig(pipeline=pipeline, virtual=virtual)
    flow = play([1.0] * sizes.num_stages, sizes, num_micro, backward_ratio=2.0)
    # arXiv:2104.04473, 2.2: (p - 1) / v of m micro-batches' time are spent waiting.
    waiting = (pipeline - 1) / virtual
    assert flow.bubble == pytest.approx(waiting / (num_micro + waiting))
    assert flow.imbalance == pytest.approx(0)
    # 1F1B holds one micro-batch a rank behind it, interleaved 2 and a round for each more chunk.
    held = [sum(per_rank) for per_rank in flow.held]
    warm_up = [(virtual - 1) * pipeline + virtual * (pipeline - 1 - r) for r in range(pipeline)]
    assert held == [min(before + 1, num_micro * virtual) for before in warm_up]


def test_ling_1t_fits_its_published_machine(plan):
    assert plan.gpus == 2016
    assert plan.micro_batches == 189  # 18,144 sequences over 96 data ranks
    assert plan.memory_bytes < 80e9
    assert sum(plan.split.layers) == 80
    # Report, 5.1: a dense layer costs half a mixture layer; the block about 1.7 of one.
    assert plan.layer_costs["dense"] == pytest.approx(0.5, abs=0.05)
    assert plan.layer_costs["prediction block"] == pytest.approx(1.7, abs=0.05)
    # Report, 5.1: the uneven split gained 40% end to end; Megatron's own reached 16.9 to 23.8%.
    assert 1.3 < plan.uniform.step_s / plan.split.step_s < 1.55
    assert plan.split.imbalance < 0.1 < plan.uniform.imbalance
    assert 0.1 < plan.utilisation < 0.24


def test_ranks_hold_the_whole_model_and_one_more_embedding(published, plan):
    model, counts = published.model, plan.split.layers
    held = [rank_params(model, LING_1T, counts, rank) for rank in range(21)]
    copy = model.vocab_size * model.hidden_size
    assert sum(p.routed + p.others for p in held) == count_params(model).total + copy
    # 32 experts over 12 ranks: the fullest keeps 3, an eighth more than its share.
    kept = sum(rank.params for rank in plan.memory) * 96
    assert 1.0 < kept / (count_params(model).total + copy) < 1.126


def test_stages_built_for_48_ranks_are_as_planned():
    sizes = ParallelConfig(shard=16, expert=8, pipeline=3, virtual=2, micro_batch=1)
    train = replace(TRAIN, batch_tokens=48 * 128, tokens=48 * 128)
    planned = plan_for(SMALL, train, hardware(), sizes)
    built = dry_run(SMALL, train, planned)
    assert [rank.layers for rank in built.ranks] == [
        planned.split.layers[rank::3] for rank in range(3)
    ]
    for rank, of_plan in zip(built.ranks, planned.memory, strict=True):
        assert rank.params == pytest.approx(of_plan.params, rel=0.01)


@pytest.mark.slow
def test_memory_is_within_a_tenth_of_what_is_measured():
    script = Path(__file__).with_name("measured_memory.py")
    project = Path(__file__).resolve().parents[2]
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{project}:{project}/tests"},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert ran.returncode == 0, ran.stderr
    for name, ranks in json.loads(ran.stdout).items():
        for rank in ranks:
            assert rank["planned"] == pytest.approx(rank["measured"], rel=0.1), name
            assert rank["kept"] > 0.1 * rank["measured"], "activations must weigh in it"


def test_a_plan_that_the_stages_contradict_is_refused():
    sizes = ParallelConfig(shard=4, expert=2)
    planned = plan_for(SMALL, TRAIN, hardware(), sizes)
    wrong = replace(planned, memory=(replace(planned.memory[0], params=1),))
    with pytest.raises(ConfigError, match="the plan says 1"):
        dry_run(SMALL, TRAIN, wrong)


def test_the_fastest_that_fits_is_taken():
    best = best_plan(SMALL, TRAIN, hardware(), 8)
    assert best.fits
    other = plan_for(SMALL, TRAIN, hardware(), ParallelConfig(shard=1, pipeline=8, recompute=True))
    assert best.step_s <= other.step_s


def test_ling_1t_is_searched_with_few_plays(published, monkeypatch):
    plays = []
    monkeypatch.setattr(
        "windtunnel.machine.plan.play", lambda *args: plays.append(args) or play(*args)
    )
    model, train = published.model, _training(published)
    best = best_plan(model, train, published.hardware, 2016)
    # 400 sizes; bounds on memory and time leave three, each played by time and split evenly.
    assert len(plays) <= 8, len(plays)
    assert best.step_s < 69.0
    assert best.parallel.context == 1, "4K sequences are short"
    assert best.memory_bytes < 0.92 * 80e9


@pytest.mark.parametrize(
    "order", [{}, {"recompute": True}, {"schedule": "zero_bubble"}, {"context": 2}]
)
@pytest.mark.parametrize(
    ("pipeline", "virtual", "expert"), [(1, 1, 2), (2, 1, 1), (2, 2, 2), (4, 1, 2)]
)
def test_bounds_of_the_search_hold(pipeline, virtual, expert, order):
    sizes = ParallelConfig(
        shard=8 // pipeline, expert=expert, pipeline=pipeline, virtual=virtual, **order
    )
    planned = plan_for(SMALL, TRAIN, hardware(), sizes)
    assert mean_weights(SMALL, sizes) <= planned.memory_bytes
    assert _least_s(SMALL, TRAIN, hardware(), sizes) <= planned.step_s
    split = planned.parallel
    assert _first_to_last_s(SMALL, TRAIN, hardware(), split) <= planned.step_s * (1 + 1e-9)


@pytest.mark.parametrize(("pipeline", "virtual"), [(4, 1), (3, 2), (2, 3)])
def test_no_move_of_a_block_makes_the_split_more_even(pipeline, virtual):
    sizes = ParallelConfig(pipeline=pipeline, virtual=virtual)
    costs = BlockCosts(layers=(1.0, 1.0, *[2.0] * 12), mtp=4.0, output=2.0)
    ranks = range(pipeline)

    def unevenness(counts):
        seconds = stage_seconds(costs, counts)
        work = [sum(seconds[rank::pipeline]) for rank in ranks]
        return sum(w * w for w in work) + sum(s * s for s in seconds)

    counts = balanced(costs, sizes)
    even = uniform(14, sizes.num_stages)
    most = max(sum(even[rank::pipeline]) for rank in ranks)
    assert sum(counts) == 14
    assert unevenness(counts) < unevenness(even)
    for source, to in itertools.permutations(range(sizes.num_stages), 2):
        moved = list(counts)
        moved[source] -= 1
        moved[to] += 1
        if min(moved) >= 0 and max(sum(moved[rank::pipeline]) for rank in ranks) <= most:
            assert unevenness(moved) >= unevenness(counts) * (1 - 1e-9)


def test_too_small_a_machine_is_refused_with_what_it_lacks():
    tiny = replace(hardware(), memory_bytes=1_000_000)
    with pytest.raises(ConfigError, match=r"2 h100 are too few: .* GB a GPU at least"):
        best_plan(SMALL, TRAIN, tiny, 2)
    with pytest.raises(ConfigError, match="no parallel sizes of 67"):
        best_plan(SMALL, TRAIN, hardware(), 67)


def hardware():
    return load("machine", Config, ["hardware=h100"], (CONF_DIR,)).hardware


# The names these engines know, checked at the versions in `windtunnel.machine.handover`.
MEGATRON_NAMES = """
num-layers hidden-size ffn-hidden-size num-attention-heads group-query-attention num-query-groups
kv-channels max-position-embeddings seq-length normalization norm-epsilon qk-layernorm
disable-bias-linear swiglu untie-embeddings-and-output-weights position-embedding-type rotary-base
rotary-percent init-method-std attention-dropout hidden-dropout num-experts moe-layer-freq
moe-ffn-hidden-size moe-shared-expert-intermediate-size moe-router-topk moe-router-num-groups
moe-router-group-topk moe-router-score-function moe-router-topk-scaling-factor
moe-router-enable-expert-bias moe-router-bias-update-rate moe-router-load-balancing-type
moe-router-dtype moe-aux-loss-coeff moe-z-loss-coeff moe-grouped-gemm moe-token-dispatcher-type
mtp-num-layers mtp-loss-scaling-factor tensor-model-parallel-size pipeline-model-parallel-size
expert-model-parallel-size expert-tensor-parallel-size context-parallel-size
pipeline-model-parallel-layout use-distributed-optimizer recompute-granularity recompute-method
recompute-num-layers micro-batch-size global-batch-size train-samples lr min-lr lr-decay-style
lr-warmup-samples lr-decay-samples lr-wsd-decay-samples lr-wsd-decay-style weight-decay adam-beta1
adam-beta2 adam-eps clip-grad bf16 seed make-vocab-size-divisible-by cp-comm-type
"""
TORCHTITAN_NAMES = """
training.max_context_length training.num_tokens_per_microbatch_per_dp_rank
training.num_tokens_per_train_step training.steps training.max_norm training.mixed_precision_param
training.mixed_precision_reduce debug.seed lr_scheduler.warmup_steps lr_scheduler.decay_ratio
lr_scheduler.decay_type lr_scheduler.min_lr_factor parallelism.data_parallel_replicate_degree
parallelism.data_parallel_shard_degree parallelism.expert_parallel_degree
parallelism.tensor_parallel_degree parallelism.context_parallel_degree
parallelism.pipeline_parallel_degree parallelism.pipeline_parallel_schedule
parallelism.num_pp_microbatches parallelism.context_parallel_load_balancer
"""


def test_only_options_those_engines_know_are_handed_over(published):
    train = replace(_training(published), balance=BalanceConfig(z_loss_weight=3.5e-6))
    train = replace(train, schedule=ScheduleConfig(kind="wsd"))
    shared = replace(LING_1T, context=2)
    asked = megatron_options(published.model, train, shared)
    assert {name.removeprefix("--") for name in asked} == set(MEGATRON_NAMES.split())
    asked = torchtitan_options(train, shared)
    assert {name.removeprefix("--") for name in asked} == set(TORCHTITAN_NAMES.split())


def test_muon_is_handed_over_as_it_is_computed_here(tmp_path):
    """Jordan's coefficients are called simple there, and "quintic" another set; the update's size
    is sqrt(longer side) times a factor."""
    muon = MuonConfig(momentum=0.9, per_head=True)
    optimizer = OptimizerConfig(kind="muon", muon=muon, peak_lr=1e-3)
    train = replace(TRAIN, optimizer=optimizer)
    options = megatron_options(SMALL, train, ParallelConfig())
    plain = megatron_options(SMALL, TRAIN, ParallelConfig())
    assert {name: options[name] for name in options.keys() - plain.keys()} == {
        "--optimizer": "muon",
        "--muon-momentum": "0.9",
        "--muon-nesterov": "",
        "--muon-num-ns-steps": "5",
        "--muon-coefficient-type": "simple",
        "--muon-scale-mode": "spectral",
        "--muon-extra-scale-factor": "0.2",
        "--muon-scalar-optimizer": "adam",
    }
    megatron, torchtitan = write_handover(tmp_path, SMALL, train, ParallelConfig())
    assert "gate and up projections as one matrix" in megatron.read_text()
    assert "not into heads as here" in megatron.read_text()
    assert "optimizer (muon:" in torchtitan.read_text()


def test_what_ling_1t_says_to_megatron(published, tmp_path):
    options = megatron_options(published.model, _training(published), LING_1T)
    said = {
        "--num-layers": "80",
        "--num-query-groups": "8",
        "--rotary-percent": "0.5",
        "--num-experts": "256",
        "--moe-layer-freq": "([0]*4+[1]*76)",
        "--moe-router-topk-scaling-factor": "2.5",
        "--global-batch-size": "18144",
        "--expert-model-parallel-size": "8",
        "--pipeline-model-parallel-size": "21",
        "--mtp-num-layers": "1",
        "--lr": "0.000186",
    }
    assert said.items() <= options.items()
    layout = options["--pipeline-model-parallel-layout"].split("|")
    assert len(layout) == 42
    assert (layout[0][0], layout[-1][-2:]) == ("E", "mL")
    assert sum(stage.count("t") for stage in layout) == 80

    first, second = write_handover(tmp_path, published.model, _training(published), LING_1T)
    lines = first.read_text().splitlines()
    assert "--swiglu" in lines
    assert "--num-layers 80" in lines
    assert lines[0].startswith("# For Megatron-LM core 0.20.0")
    assert second.read_text().startswith("# For torchtitan 0.2.2")
    for place in (first, first / "below"):
        with pytest.raises(ConfigError, match=r"can't be a folder, .* is a file"):
            write_handover(place, published.model, _training(published), LING_1T)


def megatron_rate(options, steps_done):
    """Over its peak, by the rule of the engine's scheduler; it counts sequences."""
    done = steps_done * int(options["--global-batch-size"])
    warm_up, end = int(options["--lr-warmup-samples"]), int(options["--lr-decay-samples"])
    least = float(options["--min-lr"]) / float(options["--lr"])
    if done <= warm_up:
        return done / warm_up
    match options["--lr-decay-style"]:
        case "constant":
            return 1.0
        case "cosine":
            left = (1 + math.cos(math.pi * (done - warm_up) / (end - warm_up))) / 2
        case "WSD":
            fall = int(options["--lr-wsd-decay-samples"])
            assert options["--lr-wsd-decay-style"] == "minus_sqrt"
            left = 1 - math.sqrt(max(0.0, (done - (end - fall)) / fall))
    return least + (1 - least) * left


def torchtitan_rate(options, steps_done):
    """The same of the other engine, which counts steps."""
    said = {name.removeprefix("--lr_scheduler."): value for name, value in options.items()}
    steps, warm_up = int(options["--training.steps"]), int(said["warmup_steps"])
    fall = min(round(steps * float(said["decay_ratio"])), steps - warm_up)
    least = float(said["min_lr_factor"])
    if steps_done < warm_up:
        return steps_done / warm_up
    if steps_done <= steps - fall:
        return 1.0
    progress = (steps_done - (steps - fall)) / fall
    match said["decay_type"]:
        case "sqrt":
            left = 1 - math.sqrt(progress)
        case "cosine":
            left = (1 + math.cos(math.pi * progress)) / 2
    return least + (1 - least) * left


@pytest.mark.parametrize("kind", ["wsd", "cosine", "constant"])
@pytest.mark.parametrize("warmup_steps", [None, 100])
def test_other_engines_are_told_the_run_s_own_rates(kind, warmup_steps):
    """A warm-up in tokens, as a shared trunk or a second stage has it, counts for its share."""
    tokens = None if warmup_steps is None else warmup_steps * 64 * 128
    schedule = ScheduleConfig(
        kind=kind, warmup_frac=0.05, decay_frac=0.3, final_frac=0.1, warmup_tokens=tokens
    )
    if kind == "cosine" and tokens is not None:
        schedule = replace(schedule, warmup_frac=0.1)  # where its fall begins
    train = replace(TRAIN, tokens=64 * 128 * 1000, schedule=schedule)
    options = megatron_options(SMALL, train, ParallelConfig())
    theirs = torchtitan_options(train, ParallelConfig())
    assert (options["--train-samples"], theirs["--training.steps"]) == ("64000", "1000")
    for step in (20, 45, 75, 300, 600, 750, 900, 990):
        ours = learning_rate(train, step) / 1e-3
        # Half a step of the steepest part: the rates here are those of a step's middle.
        assert megatron_rate(options, step + 0.5) == pytest.approx(ours, abs=2e-3), step
        assert torchtitan_rate(theirs, step + 0.5) == pytest.approx(ours, abs=2e-3), step


def test_what_an_engine_cannot_be_told_is_written_beside_its_options(tmp_path):
    schedule = ScheduleConfig(kind="wsm", num_merged=4)
    train = replace(TRAIN, schedule=schedule, stages=(StageConfig(name="long", rope_base=6e5),))
    for number, path in enumerate(write_handover(tmp_path, SMALL, train, ParallelConfig())):
        notes = [line for line in path.read_text().splitlines() if line.startswith("# Note")]
        assert sum("the average of 4 checkpoints of its last 20%" in note for note in notes) == 1, (
            number
        )
        assert sum("stage long" in note for note in notes) == 1, number
        assert not any("a group's score" in note for note in notes), "it has one group"
    groups = replace(SMALL, moe=replace(SMALL.moe, num_groups=4, groups_per_token=2))
    megatron, _ = write_handover(tmp_path / "groups", groups, TRAIN, ParallelConfig())
    assert "a group's score there" in megatron.read_text()
    dense = replace(SMALL, moe=None, num_dense_layers=0)
    megatron, _ = write_handover(tmp_path / "dense", dense, TRAIN, ParallelConfig())
    assert "expert" not in megatron.read_text()


def test_a_gate_an_element_is_handed_over_and_a_gate_a_head_refused(tmp_path):
    def gated(kind):
        return replace(SMALL, attention=replace(SMALL.attention, output_gate=kind))

    options = megatron_options(gated("elementwise"), TRAIN, ParallelConfig())
    plain = megatron_options(SMALL, TRAIN, ParallelConfig())
    assert options == plain | {"--attention-output-gate": ""}
    written = write_handover(
        tmp_path / "elementwise", gated("elementwise"), TRAIN, ParallelConfig()
    )
    megatron, torchtitan = (path.read_text() for path in written)
    assert "# Note: the published layout has no output gate: weights can't be taken" in megatron
    assert "output gate: elementwise" in torchtitan
    with pytest.raises(ConfigError, match=r"output_gate is headwise; Megatron-LM's --attention"):
        write_handover(tmp_path / "headwise", gated("headwise"), TRAIN, ParallelConfig())
    assert not (tmp_path / "headwise").exists()


def test_a_machine_without_gpus_holds_four_ranks_a_core(monkeypatch):
    monkeypatch.setattr("windtunnel.machine.sizes.usable_cores", lambda: 2)
    _require_room(8, None, "cpu")
    with pytest.raises(ConfigError, match="9 processes are more than this machine's 2 cores hold"):
        _require_room(9, None, "cpu")


def test_what_a_small_mixture_says_to_megatron():
    moe = replace(SMALL.moe, num_shared_experts=3, num_groups=4, groups_per_token=2)
    train = replace(TRAIN, balance=BalanceConfig(rule="none", aux_loss_weight=0.01))
    sizes = ParallelConfig(shard=4, expert=2, context=2, micro_batch=2, recompute=True)
    options = megatron_options(replace(SMALL, moe=moe), train, sizes)
    said = {
        "--ffn-hidden-size": "256",
        "--moe-ffn-hidden-size": "64",
        "--moe-shared-expert-intermediate-size": "192",
        "--num-experts": "16",
        "--moe-router-topk": "2",
        "--moe-router-num-groups": "4",
        "--moe-router-group-topk": "2",
        "--moe-layer-freq": "([0]*1+[1]*5)",
        "--moe-router-load-balancing-type": "aux_loss",
        "--moe-aux-loss-coeff": "0.01",
        "--moe-router-bias-update-rate": "0",
        "--num-attention-heads": "4",
        "--num-query-groups": "2",
        "--kv-channels": "32",
        "--seq-length": "128",
        "--micro-batch-size": "2",
        "--global-batch-size": "64",
        "--train-samples": "640",
        "--expert-model-parallel-size": "2",
        "--context-parallel-size": "2",
        "--recompute-granularity": "full",
    }
    assert said.items() <= options.items()
    theirs = torchtitan_options(train, sizes)
    said = {
        "--training.num_tokens_per_microbatch_per_dp_rank": "256",
        "--training.num_tokens_per_train_step": "8192",
        "--training.steps": "10",
        "--parallelism.data_parallel_shard_degree": "2",
        "--parallelism.context_parallel_degree": "2",
        "--parallelism.expert_parallel_degree": "2",
        "--parallelism.num_pp_microbatches": "16",  # of 64 sequences, 2 groups of ranks, 2 each
    }
    assert said.items() <= theirs.items()


def test_a_layout_keeps_empty_stages():
    sizes = ParallelConfig(pipeline=4, layers=(3, 0, 3, 0))
    assert pipeline_layout(SMALL, sizes) == "Ettt||ttt|mL"
    assert uniform(6, 4) == (1, 2, 1, 2)
