"""Real processes: any parallel sizes train one process's run, each goes on from another's."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_run import CORPUS, MODEL, TRAIN, corpus_in

from model.accounting import count_params
from model.balance import RoutingRequest, update_biases
from model.errors import ConfigError
from model.training.config import (
    CheckpointConfig,
    HealthConfig,
    RuntimeConfig,
    ScheduleConfig,
    StageConfig,
)
from model.training.distributed.config import ParallelConfig
from model.training.distributed.job import run_job
from model.training.distributed.worker import JOB, RESULT, Job
from model.training.optim import build_optimizer, clip_gradients, set_learning_rate
from model.training.schedules import learning_rate
from model.training.sources import DataStage
from model.training.trainer import train as train_alone
from model.transformer import build_model
from model.typed import to_plain

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[3]
STEPS, HALF = 20, 10
LOSS_TOLERANCE = 1e-5
"""Relative; only the order of float32 sums differs."""


def process(arguments, **options):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{PROJECT}:{HERE}"}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def seen(folder):
    """What every rank of every plan saw."""
    ranks = process([HERE / "ranks.py", folder], stdout=subprocess.PIPE, text=True)
    output, _ = ranks.communicate(timeout=550)
    assert ranks.returncode == 0
    return json.loads(output.splitlines()[-1])


@pytest.fixture(scope="module")
def single(folder):
    """The same steps by the plain model in one process: loss, prediction block's loss, norm."""
    corpus = corpus_in(folder)
    model = build_model(MODEL, seed=TRAIN.seed)
    optimizer = build_optimizer(model, TRAIN.optimizer)
    count = TRAIN.batch_tokens // TRAIN.sequence_length
    lines = []
    for step in range(STEPS):
        windows = torch.from_numpy(corpus.windows(step * count, count, TRAIN.sequence_length))
        optimizer.zero_grad()
        result = model(windows[:, :-1], windows[:, 1:], request=RoutingRequest(losses=True))
        total = result.loss_nats + TRAIN.mtp_loss_weight * result.mtp_loss_nats
        for stats in result.routing:
            total = total + TRAIN.balance.z_loss_weight * stats.z_loss
        total.backward()
        norm = clip_gradients(model, TRAIN.optimizer.clip_norm)
        set_learning_rate(optimizer, learning_rate(TRAIN, step))
        optimizer.step()
        update_biases(model, [stats.load_E for stats in result.routing], TRAIN.balance)
        lines.append([result.loss_nats.item(), result.mtp_loss_nats.item(), norm])
    held = torch.from_numpy(corpus.heldout(next(iter(corpus.domains)), TRAIN.sequence_length, 640))
    with torch.no_grad():
        result = model(held[:, :-1], held[:, 1:])
    load = torch.stack([stats.load_E for stats in result.routing])
    return lines, result.token_nats_BT.double().sum().item(), load


PLANS = (
    "shard2",
    "expert2",
    "pipeline2",
    "shard2-expert2-pipeline2",
    "shard2-pipeline2-virtual2",
    "replicate2-pipeline2-uneven",
)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_is_the_single_process(seen, single, plan):
    lines, heldout_nats, load = single
    assert lines[0][0] - lines[-1][0] > 0.2, "a loss that does not fall shows nothing"
    for rank in seen[plan]:
        torch.testing.assert_close(
            torch.tensor(rank["lines"])[:, :2],
            torch.tensor(lines)[:, :2],
            rtol=LOSS_TOLERANCE,
            atol=0,
        )
        assert rank["heldout_nats"] == pytest.approx(heldout_nats, rel=LOSS_TOLERANCE)
        # A token on the edge between two experts may fall to the other one.
        assert (torch.tensor(rank["load"]) - load).abs().sum() <= 4


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("plan", PLANS)
def test_ranks_hold_each_parameter_once_in_every_copy(seen, plan):
    held = sum(rank["parameters"] for rank in seen[plan])
    copies = 2 if "replicate2" in plan else 1
    assert held == copies * count_params(MODEL).total


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("reader", ["one", "four"])
def test_a_checkpoint_of_two_goes_on_elsewhere(seen, single, reader):
    lines, heldout_nats, _ = single
    for rank in seen[f"reads-{reader}"]:
        losses = torch.tensor(rank["lines"])[:, :2]
        torch.testing.assert_close(
            losses, torch.tensor(lines[HALF:])[:, :2], rtol=LOSS_TOLERANCE, atol=0
        )
        assert rank["heldout_nats"] == pytest.approx(heldout_nats, rel=LOSS_TOLERANCE)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_killed_rank_ends_the_job_by_name_and_the_job_goes_on(tmp_path):
    train = replace(TRAIN, checkpoint=replace(TRAIN.checkpoint, every_s=0.2))
    job = Job(
        model=MODEL,
        train=train,
        corpus=CORPUS,
        parallel=ParallelConfig(shard=2, expert=2, micro_batch=8),
        data_dir=tmp_path / "data",
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / JOB).write_text(json.dumps(to_plain(job)))
    arguments = ["-m", "model.training.distributed.job", run]

    first = process(arguments, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 250
    while not list((run / "checkpoints").glob("step-*")):
        assert first.poll() is None, first.stderr.read()
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.05)
    os.kill(int((run / "rank-1.pid").read_text()), signal.SIGKILL)
    _, complaint = first.communicate(timeout=150)
    assert first.returncode != 0
    assert "rank 1 of 2 (process" in complaint
    assert "was killed by SIGKILL" in complaint

    second = process(arguments, stderr=subprocess.PIPE, text=True)
    _, complaint = second.communicate(timeout=250)
    assert second.returncode == 0, complaint
    result = json.loads((run / RESULT).read_text())
    assert (result["status"], result["steps"]) == ("done", train.num_steps)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(steps), "a step was logged twice"
    assert set(steps) == set(range(1, train.num_steps + 1))
    alone = tmp_path / "alone"
    single = train_alone(MODEL, train, corpus_in(tmp_path), RuntimeConfig(), alone)
    assert result["loss_nats"] == pytest.approx(single.loss_nats, rel=LOSS_TOLERANCE)
    expected = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    for line, other in zip(map(json.loads, lines), expected, strict=True):
        assert (line["kind"], line["step"]) == (other["kind"], other["step"])
        for name in other.keys() & {"train_loss_nats", "mtp_loss_nats", "loss_nats"}:
            assert line[name] == pytest.approx(other[name], rel=LOSS_TOLERANCE), line
        if line["kind"] == "train":
            assert line.keys() == other.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": ScheduleConfig(kind="wsm")}, "does not average its checkpoints"),
        ({"stages": (StageConfig(name="long"),)}, "train each stage of the data as a run"),
        ({"precision": "fp8"}, "computes in fp32 or bf16"),
        ({"health": HealthConfig(on_spike="rewind")}, "ends at a spike"),
        ({"checkpoint": CheckpointConfig(states_at=(5,))}, "keeps no states"),
    ],
)
def test_what_many_processes_would_leave_out_is_refused(tmp_path, change, said):
    job = Job(
        model=MODEL,
        train=replace(TRAIN, **change),
        corpus=CORPUS,
        parallel=ParallelConfig(shard=2, micro_batch=8),
        data_dir=tmp_path,
    )
    with pytest.raises(ConfigError, match=said):
        run_job(job, tmp_path / "run")


def test_data_with_stages_is_refused(tmp_path):
    stages = (DataStage(name="all", frac=1.0, weights={"synthetic": 1.0}),)
    job = Job(
        model=MODEL,
        train=TRAIN,
        corpus=replace(CORPUS, stages=stages),
        parallel=ParallelConfig(shard=2, micro_batch=8),
        data_dir=tmp_path,
    )
    with pytest.raises(ConfigError, match="stages: a run over many processes has one mixture"):
        run_job(job, tmp_path / "run")


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
        ({"pipeline": 5, "shard": 2}, ""),
    ],
)
def test_sizes_that_do_not_fit_the_model_are_refused(sizes, said):
    parallel = ParallelConfig(**sizes)
    if not said:
        parallel.check(MODEL, TRAIN)  # more stages than layers: one is empty, and that is allowed
        return
    with pytest.raises(ConfigError, match=said):
        parallel.check(MODEL, TRAIN)
