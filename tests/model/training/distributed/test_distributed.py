"""Real processes: any parallel sizes train one process's run, each goes on from another's."""

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import CORPUS, HELDOUT_TOKENS, MODEL, MUON, TRAIN, corpus_in, job_in, step_alone

from model.accounting import count_params
from model.errors import ConfigError, RunFailed
from model.hf import ExportOptions, export_checkpoint, open_checkpoint
from model.training.checkpoint import read_checkpoint
from model.training.config import HealthConfig, RuntimeConfig, ScheduleConfig, StageConfig
from model.training.data import prepare_corpus
from model.training.distributed.config import ParallelConfig
from model.training.distributed.job import Failure, Job, RankLost, run_job
from model.training.evaluate import plain_forward
from model.training.optim import build_optimizer
from model.training.schedules import learning_rate
from model.training.sources import DataStage
from model.training.trainer import train as run_training
from model.transformer import build_model
from model.weights import open_checkpoint_weights

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[3]
STEPS, HALF = 20, 10
LOSS_TOLERANCE = 1e-5
"""Relative; only the order of float32 sums differs."""
MUON_TOLERANCE = 1e-5


def process(arguments, **options):
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests:{HERE}",
    }
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def seen(folder):
    """What every rank of every plan saw."""
    ranks = process([HERE / "ranks.py", folder], stdout=subprocess.PIPE, text=True)
    output, _ = ranks.communicate(timeout=1700)
    assert ranks.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def single(folder):
    return in_one_process(folder, TRAIN)


def in_one_process(folder, train):
    """The same steps by the plain model in one process: loss, prediction block's loss, norm."""
    corpus = corpus_in(folder)
    model = build_model(MODEL, seed=train.seed)
    optimizer = build_optimizer(model, train.optimizer)
    count = train.batch_tokens // train.sequence_length
    lines = []
    for step in range(STEPS):
        windows = torch.from_numpy(corpus.windows(step * count, count, train.sequence_length))
        lines.append(step_alone(model, optimizer, train, windows, learning_rate(train, step)))
    domain = next(iter(corpus.domains))
    held = torch.from_numpy(corpus.heldout(domain, train.sequence_length, HELDOUT_TOKENS))
    with torch.no_grad():
        nats_WT, counts = plain_forward(model, "fp32", torch.device("cpu"))(held, LOOKED_AT)
    return lines, nats_WT.double().sum(1).tolist(), counts


PLANS = (
    "shard2",
    "expert2",
    "pipeline2",
    "shard2-expert2-pipeline2",
    "shard2-pipeline2-virtual2",
    "replicate2-pipeline2-uneven",
    "expert2-pipeline2-zero-bubble",
    "context2",
    "context2-expert2-pipeline2",
    "shard2-context2-expert4",
)
LOOKED_AT = slice(1, None, 3)
"""Windows whose tokens' routing is looked at, in `ranks.py` too."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_is_the_single_process(seen, single, plan):
    lines, heldout_nats, counts = single
    load = torch.stack([of_layer.load_E for of_layer in counts])
    assert lines[0][0] - lines[-1][0] > 0.2, "a loss that does not fall shows nothing"
    for rank in seen[plan]:
        torch.testing.assert_close(rank["lines"], lines, rtol=LOSS_TOLERANCE, atol=0)
        assert rank["heldout_nats"] == pytest.approx(heldout_nats, rel=LOSS_TOLERANCE)
        # A token on the edge between two experts may fall to the other one.
        assert (torch.tensor(rank["load"]) - load).abs().sum() <= 4
        for found, of_layer in zip(rank["looked_at"], counts, strict=True):
            choices, gate_entropy, top_k_mass = found
            assert choices == pytest.approx(of_layer.expert_TK.sum().item(), abs=20)
            assert gate_entropy == pytest.approx(of_layer.gate_entropy, rel=1e-3)
            assert top_k_mass == pytest.approx(of_layer.top_k_mass, rel=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_muon_puts_matrices_together_and_goes_on_from_pieces_elsewhere(seen, folder):
    """Momenta saved by four ranks with half an expert each, and read by others with whole ones."""
    lines, heldout_nats, _ = in_one_process(folder, MUON)
    assert lines[0][0] - lines[-1][0] > 0.2
    halves = zip(("expert-halves", "whole-experts"), (lines[:HALF], lines[HALF:]), strict=True)
    for name, expected in halves:
        for rank in seen[f"muon-{name}"]:
            found = torch.tensor(rank["lines"])[:, :2]
            torch.testing.assert_close(
                found, torch.tensor(expected)[:, :2], rtol=MUON_TOLERANCE, atol=0
            )
    assert rank["heldout_nats"] == pytest.approx(heldout_nats, rel=MUON_TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("plan", PLANS)
def test_ranks_hold_each_parameter_once_in_every_copy(seen, plan):
    held = sum(rank["parameters"] for rank in seen[plan])
    copies = 2 if "replicate2" in plan else 1
    assert held == copies * count_params(MODEL).total


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("reader", ["one", "four"])
def test_a_checkpoint_of_two_goes_on_elsewhere(seen, single, reader):
    lines, heldout_nats, _ = single
    for rank in seen[f"reads-{reader}"]:
        torch.testing.assert_close(rank["lines"], lines[HALF:], rtol=LOSS_TOLERANCE, atol=0)
        assert rank["heldout_nats"] == pytest.approx(heldout_nats, rel=LOSS_TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_four_ranks_take_given_weights_to_the_bit(seen, folder):
    found = read_checkpoint(folder / "begun" / "step-00000001").tensors
    given = build_model(MODEL, seed=9).state_dict()
    assert {name.removeprefix("model.") for name in found} == set(given)
    for name, tensor in given.items():
        assert torch.equal(found[f"model.{name}"], tensor), name


class Stopped(Exception):
    """Somebody asked the run to stop."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_killed_stopped_and_moved_is_the_run_of_one_process(tmp_path):
    """Two ranks, one killed; two others, stopped; one process to the end: no line differs."""
    train = replace(TRAIN, tokens=512 * 300, checkpoint=replace(TRAIN.checkpoint, every_s=0.5))
    corpus = corpus_in(tmp_path)
    runtime = RuntimeConfig(data_dir=tmp_path / "data", device="cpu")
    run_dir = tmp_path / "run"

    def job(parallel):
        return Job(
            name="run",
            model=MODEL,
            train=train,
            corpus_fingerprint=corpus.fingerprint,
            runtime=runtime,
            parallel=parallel,
            snapshots_dir=run_dir / "snapshots",
        )

    def saved():
        return max((int(p.name[5:]) for p in (run_dir / "checkpoints").glob("step-*")), default=0)

    killed = []

    def kill_when_saved(step, num_steps, tokens_per_s):
        if saved() and not killed:
            killed.append(int((run_dir / "rank-1.pid").read_text()))
            os.kill(killed[0], signal.SIGKILL)

    lost = r"rank 1 of 2 \(process \d+\) was killed by SIGKILL"
    with pytest.raises(RankLost, match=lost):
        run_job(job(ParallelConfig(shard=2, expert=2, micro_batch=8)), run_dir, kill_when_saved)
    first = saved()

    def stop_when_further(step, num_steps, tokens_per_s):
        if step > first:
            raise Stopped

    with pytest.raises(Stopped):
        run_job(job(ParallelConfig(pipeline=2, micro_batch=4)), run_dir, stop_when_further)
    assert first < saved() < train.num_steps, "it was to stop, saved, on the way"
    ended = run_training(MODEL, train, corpus, runtime, run_dir)
    alone = run_training(MODEL, train, corpus, runtime, tmp_path / "alone")

    assert ended.loss_nats == pytest.approx(alone.loss_nats, rel=0.01)
    assert ended.tokens == alone.tokens == train.tokens
    one, other = (lines_of(folder) for folder in (run_dir, tmp_path / "alone"))
    assert [sorted(line) for line in one] == [sorted(line) for line in other]
    for line, expected in zip(one, other, strict=True):
        assert (line["kind"], line["step"]) == (expected["kind"], expected["step"])
        # 1e-7 for 110 steps; then a token on the edge falls to another expert, and from there on
        # the two are as alike as two seeds (LOG.md, 2026-11-26).
        close = 1e-5 if line["step"] <= 60 else 0.02
        for name in ("train_loss_nats", "loss_nats", "lr"):
            if name in expected:
                assert line[name] == pytest.approx(expected[name], rel=close), (name, line["step"])


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_checkpoint_of_many_is_exported_a_part_at_a_time(seen, folder, tmp_path):
    (path,) = (folder / "checkpoints").iterdir()
    whole = {
        name: t for name, t in read_checkpoint(path).tensors.items() if name.startswith("model.")
    }
    weights = open_checkpoint_weights(path)
    assert weights.keys() == {name.removeprefix("model.") for name in whole}
    options = ExportOptions(dtype=torch.float32, max_positions=32, eos_token_id=256)
    export_checkpoint(MODEL, weights, tmp_path / "published", options)
    back = open_checkpoint(tmp_path / "published").load().state_dict()
    for name, tensor in whole.items():
        assert back[name.removeprefix("model.")].equal(tensor), name

    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    piece = copy / "__1_0.distcp"
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(ConfigError, match=r"__1_0\.distcp is missing or cut short; choose another"):
        open_checkpoint_weights(copy)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_rank_that_fails_says_why(tmp_path):
    """The corpus is gone: the first rank's own words, not those of the ranks it took along."""
    job = job_in(tmp_path, ParallelConfig(shard=2, micro_batch=8))
    with pytest.raises(RunFailed, match=r"rank \d of 2 \(process \d+\) failed: .*0000000000000000"):
        run_job(job, tmp_path / "run", lambda step, num_steps, tokens_per_s: None)


def test_a_warning_to_every_process_ends_none_that_is_starting():
    """As Slurm sends it; what is to be done is said by the worker that started them."""
    warned = "import os, signal; os.kill(os.getpid(), signal.SIGUSR2); print('goes on')"
    lifeline = [sys.executable, "-m", "model.lifeline", str(os.getpid())]
    ran = subprocess.run(
        [*lifeline, sys.executable, "-c", warned], capture_output=True, text=True, cwd=PROJECT
    )
    assert ran.stdout.strip() == "goes on"


def test_the_cause_is_told_from_what_it_took_along():
    def ended(rank, exit_code, at):
        return Failure(rank=rank, pid=100 + rank, exit_code=exit_code, said="", at=at)

    by_agent, failed = ended(0, -signal.SIGTERM, 50.0), ended(1, 1, 50.0)
    killed = ended(2, -signal.SIGKILL, 51.0)
    assert min(by_agent, failed, key=lambda failure: failure.place) is failed
    assert min(by_agent, failed, killed, key=lambda failure: failure.place) is killed


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_stages_and_an_average_at_the_end_are_those_of_one_process(tmp_path):
    """A longer context with another rotary base, points to go back to, four checkpoints merged."""
    even = {"synthetic": 1.0}
    stages = (
        DataStage(name="short", frac=0.6, weights=even),
        DataStage(name="long", frac=0.4, weights=even, sequence_length=64),
    )
    corpus = prepare_corpus(replace(CORPUS, stages=stages), tmp_path / "data")
    train = replace(
        TRAIN,
        tokens=512 * 20,
        schedule=ScheduleConfig(kind="wsm", num_merged=4),
        stages=(StageConfig(name="long", rope_base=5e4, balance_rate=1e-4),),
        health=HealthConfig(on_spike="rewind"),
    )
    runtime = RuntimeConfig(data_dir=tmp_path / "data", device="cpu")
    job = Job(
        name="run",
        model=MODEL,
        train=train,
        corpus_fingerprint=corpus.fingerprint,
        runtime=runtime,
        parallel=ParallelConfig(shard=2, expert=2, context=2, micro_batch=4),
        snapshots_dir=tmp_path / "run" / "snapshots",
    )
    ended = run_job(job, tmp_path / "run", lambda step, num_steps, tokens_per_s: None)
    alone = run_training(MODEL, train, corpus, runtime, tmp_path / "alone")
    assert ended.loss_nats == pytest.approx(alone.loss_nats, rel=LOSS_TOLERANCE)
    for found, expected in zip(ended.load_by_layer, alone.load_by_layer, strict=True):
        assert vars(found).keys() == vars(expected).keys()
        assert found.normalized_entropy == pytest.approx(expected.normalized_entropy, rel=1e-2)
        assert found.coactivation == pytest.approx(expected.coactivation, rel=5e-2)
    one, other = (lines_of(folder) for folder in (tmp_path / "run", tmp_path / "alone"))
    for line, expected in zip(one, other, strict=True):
        assert (line["kind"], line["step"]) == (expected["kind"], expected["step"])
        for name in {"train_loss_nats", "mtp_loss_nats", "loss_nats"} & expected.keys():
            assert line[name] == pytest.approx(expected[name], rel=LOSS_TOLERANCE), line["step"]
    by_position = [[nats for _, nats in line["by_position"]] for line in one if "name" in line]
    expected = [[nats for _, nats in line["by_position"]] for line in other if "name" in line]
    assert len(by_position) == 2
    torch.testing.assert_close(by_position, expected, rtol=1e-4, atol=0)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_later_stage_that_does_not_fit_is_refused_before_the_first_step(tmp_path):
    """Of 20 sequences a rank has ten passes at a time of two; of ten twice as long, five."""
    even = {"synthetic": 1.0}
    stages = (
        DataStage(name="short", frac=0.5, weights=even),
        DataStage(name="long", frac=0.5, weights=even, sequence_length=64),
    )
    corpus = prepare_corpus(replace(CORPUS, stages=stages), tmp_path / "data")
    train = replace(TRAIN, tokens=640 * 4, batch_tokens=640)
    parallel = ParallelConfig(pipeline=2, schedule="zero_bubble", micro_batch=2)
    job = job_in(tmp_path, parallel, train=train, corpus_fingerprint=corpus.fingerprint)
    said = "5 micro-batches do not divide into 2 rounds .* sequences of 64 tokens"
    with pytest.raises(RunFailed, match=said):
        run_job(job, tmp_path / "run", lambda step, num_steps, tokens_per_s: None)
    assert not lines_of(tmp_path / "run"), "nothing was trained"


@pytest.mark.parametrize(
    ("aux", "micro_batch", "sequence_length", "said"),
    [
        (0.0, 4, 64, ""),
        (0.0, 16, 64, "a batch of 8 sequences does not divide"),
        (0.0, 4, 31, "do not divide into the 4 pieces"),
        (0.1, 8, 64, ""),
        (0.1, 8, 32, "it needs one micro-batch, this plan has 2 with sequences of 32"),
    ],
)
def test_every_length_of_sequences_has_to_fit(aux, micro_batch, sequence_length, said):
    train = replace(TRAIN, balance=replace(TRAIN.balance, aux_loss_weight=aux))
    parallel = ParallelConfig(shard=2, context=2, micro_batch=micro_batch)
    if said:
        with pytest.raises(ConfigError, match=said):
            parallel.check_batch(train, sequence_length)
    else:
        parallel.check_batch(train, sequence_length)


@pytest.mark.parametrize(
    ("expert_width", "shard", "expert", "dimension"),
    [(6, 4, 2, 1), (5, 4, 2, 0), (6, 8, 2, 0), (8, 8, 1, 1), (5, 4, 4, 1)],
)
def test_experts_are_cut_along_their_width_where_the_ranks_of_one_divide_it(
    expert_width, shard, expert, dimension
):
    """Each copy of an expert lies on shard / expert ranks."""
    moe = replace(MODEL.moe, expert_width=expert_width)
    assert ParallelConfig(shard=shard, expert=expert).expert_shard_dim(moe) == dimension


@pytest.mark.parametrize(("expert", "is_refused"), [(8, True), (4, False)])
def test_a_rank_needs_a_piece_of_an_expert(expert, is_refused):
    """A width of 15 is not cut in two: of 8 / expert experts two ranks have to have one each."""
    model = replace(MODEL, moe=replace(MODEL.moe, expert_width=15))
    parallel = ParallelConfig(shard=2 * expert, expert=expert)
    if not is_refused:
        parallel.check(model, TRAIN)
        return
    with pytest.raises(ConfigError, match=r"shard / expert .2. must divide expert_width .15. or"):
        parallel.check(model, TRAIN)


def test_moments_in_eight_bits_are_for_one_process():
    train = replace(TRAIN, optimizer=replace(TRAIN.optimizer, kind="adamw8bit"))
    with pytest.raises(ConfigError, match=r"optimizer\.kind adamw8bit is for one process"):
        ParallelConfig(shard=2, micro_batch=8).check(MODEL, train)


def test_fp8_over_many_processes_is_refused():
    with pytest.raises(ConfigError, match="precision fp8 is trained in one process"):
        ParallelConfig(shard=2, micro_batch=8).check(MODEL, replace(TRAIN, precision="fp8"))


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"shard": 3, "expert": 2}, "expert .2. must divide shard .3."),
        ({"virtual": 2}, "virtual .2. needs a pipeline"),
        ({"pipeline": 2, "layers": (4,)}, "layers must name 2 stages"),
    ],
)
def test_contradictory_sizes_are_refused(sizes, said):
    with pytest.raises(ConfigError, match=said):
        ParallelConfig(**sizes)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"shard": 3}, "a batch of 16 sequences does not divide"),
        ({"pipeline": 2, "layers": (1, 2)}, "must sum to num_layers .4."),
        ({"shard": 16, "expert": 16}, "expert .16. must divide num_experts .8."),
        ({"shard": 64, "context": 64}, "tokens do not divide into the 128 pieces of context .64."),
        ({"pipeline": 2, "layers": (5, -1)}, "must sum to num_layers .4."),
        ({"pipeline": 5, "shard": 2}, ""),
        ({"pipeline": 2, "virtual": 2, "layers": (2, 0, 1, 1)}, ""),
        ({"pipeline": 4, "layers": (0, 2, 2, 0)}, ""),
        ({"pipeline": 4, "layers": (2, 0, 1, 1)}, "pipeline rank 1 would have no block"),
        ({"pipeline": 4, "layers": (2, 1, 0, 1)}, "rank 2 .* 4 stages of .2, 1, 0, 1. blocks"),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(sizes, said):
    parallel = ParallelConfig(**sizes)
    if not said:
        parallel.check(MODEL, TRAIN)  # a stage may be empty, if its rank has something to train
        return
    with pytest.raises(ConfigError, match=said):
        parallel.check(MODEL, TRAIN)
