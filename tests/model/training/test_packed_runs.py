"""Runs trained in a stack measure what each measures by itself, and end each in its own way."""

import os
import signal
import time
from dataclasses import replace

import pytest
import toy_runs
from toy_runs import MODEL, RUNTIME, Enough, enough_at, lines, lines_without_clock, train_until

from model.errors import ConfigError
from model.files import step_folder
from model.training import progress
from model.training.alike import why_alone
from model.training.checkpoint import checkpoint_paths
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    HealthConfig,
    MuonConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    StageConfig,
    WandbTracker,
)
from model.training.packed import Member, train_packed
from model.training.stopping import Interrupted
from model.training.trainer import train

TRAIN = replace(
    toy_runs.TRAIN,
    tokens=128 * 40,
    evaluation=EvaluationConfig(heldout_tokens=2048, num_intermediate=2),
)
CONFIGS = (
    TRAIN,
    replace(TRAIN, seed=4),
    replace(TRAIN, optimizer=OptimizerConfig(peak_lr=3e-3, weight_decay=0.0, clip_norm=0.3)),
    replace(TRAIN, balance=BalanceConfig(update_rate=0.0)),
    replace(TRAIN, optimizer=OptimizerConfig(kind="muon", muon=MuonConfig(), peak_lr=1e-2)),
)

PACKED_TOLERANCE_NATS = 2e-4
"""Most that 40 steps may drift apart. The first losses agree to rounding; on a CPU they have been
the same bits to the end, but products may be summed in another order elsewhere."""


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory):
    """Each run by itself: its result and its lines."""
    root = tmp_path_factory.mktemp("alone")
    results = [
        train(MODEL, config, corpus, RUNTIME, root / str(index))
        for index, config in enumerate(CONFIGS)
    ]
    return results, [lines_without_clock(root / str(index)) for index in range(len(CONFIGS))]


def packed(corpus, root, configs=CONFIGS, on_progress=None):
    results = {}
    members = [
        Member(config=config, run_dir=root / str(index), on_progress=on_progress)
        for index, config in enumerate(configs)
    ]
    train_packed(MODEL, members, corpus, RUNTIME, results.__setitem__)
    return results


def assert_same(result, expected, curve, expected_curve):
    assert (result.status, result.steps, result.tokens) == (
        expected.status,
        expected.steps,
        expected.tokens,
    )
    for name in ("loss_nats", "bits_per_byte", "train_loss_nats"):
        found, wanted = getattr(result, name), getattr(expected, name)
        assert found == pytest.approx(wanted, abs=PACKED_TOLERANCE_NATS), name
    assert [line["step"] for line in curve] == [line["step"] for line in expected_curve]
    for line, wanted in zip(curve, expected_curve, strict=True):
        assert line.keys() == wanted.keys()
        for name in ("train_loss_nats", "mtp_loss_nats", "loss_nats", "lr"):
            if name in wanted:
                assert line[name] == pytest.approx(wanted[name], abs=PACKED_TOLERANCE_NATS), line
    first, wanted = curve[0], expected_curve[0]
    assert first["train_loss_nats"] == pytest.approx(wanted["train_loss_nats"], rel=1e-6)


def test_every_run_of_a_stack_is_the_run_by_itself(corpus, alone, tmp_path):
    begun = time.perf_counter()
    results = packed(corpus, tmp_path)
    took_s = time.perf_counter() - begun
    assert sum(sum(result.seconds.values()) for result in results.values()) <= took_s
    assert sorted(results) == list(range(len(CONFIGS)))
    for index, result in results.items():
        curve = lines_without_clock(tmp_path / str(index))
        assert_same(result, alone[0][index], curve, alone[1][index])
        assert result.numerics["packed"] == len(CONFIGS)
    losses = {result.loss_nats for result in results.values()}
    assert len(losses) == len(CONFIGS)  # they do differ
    # Killed before their records were written, all their steps done: they are measured, no more.
    again = packed(corpus, tmp_path)
    assert {i: result.loss_nats for i, result in again.items()} == {
        i: result.loss_nats for i, result in results.items()
    }


def test_one_that_diverges_ends_alone(corpus, alone, tmp_path):
    wild = replace(TRAIN, optimizer=OptimizerConfig(peak_lr=1e6))
    results = packed(corpus, tmp_path, (CONFIGS[0], wild, CONFIGS[1]))
    by_itself = train(MODEL, wild, corpus, RUNTIME, tmp_path / "wild")
    assert results[1].status == by_itself.status == "diverged"
    assert results[1].reason == by_itself.reason
    assert results[1].steps == by_itself.steps < TRAIN.num_steps
    kinds = [lines(tmp_path / name)[-1]["kind"] for name in ("1", "wild")]
    assert kinds[0] == kinds[1]
    for index, same in ((0, 0), (2, 1)):
        curve = lines_without_clock(tmp_path / str(index))
        assert_same(results[index], alone[0][same], curve, alone[1][same])


def test_stopped_in_a_stack_it_goes_on_by_itself_and_back(corpus, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)

    with pytest.raises(Enough):
        packed(corpus, tmp_path, on_progress=enough_at(7))
    train_until(19, MODEL, CONFIGS[1], corpus, tmp_path / "1")  # one gets ahead by itself
    results = packed(corpus, tmp_path)
    for index, result in results.items():
        curve = lines_without_clock(tmp_path / str(index))
        assert_same(result, alone[0][index], curve, alone[1][index])


@pytest.mark.parametrize(("every_s", "kept_at"), [(0.0, 3), (1e9, None)])
def test_a_stack_is_saved_as_often_as_its_runs_ask(corpus, tmp_path, monkeypatch, every_s, kept_at):
    """A machine that stops without a word takes no more than that: seen before any ending saves."""
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)
    found = []

    def look(step, num_steps, tokens_per_s):
        if step == 3:
            folders = [tmp_path / str(index) / "checkpoints" for index in (0, 1)]
            names = [path.name for folder in folders for path in checkpoint_paths(folder)]
            found.append(max(names, default=None))
            raise Enough

    seldom = CheckpointConfig(every_s=1e9)
    often = replace(TRAIN, seed=4, checkpoint=CheckpointConfig(every_s=every_s))
    with pytest.raises(Enough):
        packed(corpus, tmp_path, (replace(TRAIN, checkpoint=seldom), often), on_progress=look)
    assert found == [None if kept_at is None else step_folder(tmp_path, kept_at).name]


def test_a_stack_that_is_told_to_stop_saves_every_run(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)

    def stop(step, num_steps, tokens_per_s):
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted) as stopped:
        packed(corpus, tmp_path, CONFIGS[:2], on_progress=stop)
    assert stopped.value.step == 4, "the step in which it was told is trained to its end"
    for index in (0, 1):
        (path,) = checkpoint_paths(tmp_path / str(index) / "checkpoints")
        assert path.name == step_folder(tmp_path, 4).name
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_what_cannot_be_stacked_is_refused_with_the_reason(corpus, tmp_path):
    wsm = replace(TRAIN, schedule=ScheduleConfig(kind="wsm"))
    with pytest.raises(ConfigError, match="can't be trained in a stack: its checkpoints are merg"):
        packed(corpus, tmp_path, (wsm, wsm))
    longer = replace(TRAIN, tokens=2 * TRAIN.tokens)
    with pytest.raises(ConfigError, match="may differ in seed, optimizer and balance rate alone"):
        packed(corpus, tmp_path, (TRAIN, longer))


def test_each_reason_to_stay_alone():
    assert why_alone(TRAIN, RUNTIME) == ""
    changes = {
        "stages": {"stages": (StageConfig(name="long"),)},
        "trunk": {"schedule": ScheduleConfig(trunk=True)},
        "spike": {"health": HealthConfig(on_spike="rewind")},
        "fp8": {"precision": "fp8"},
        "adamw8bit": {"optimizer": OptimizerConfig(kind="adamw8bit", peak_lr=1e-2)},
        "losses": {"balance": BalanceConfig(z_loss_weight=1e-3)},
    }
    for word, change in changes.items():
        assert word in why_alone(replace(TRAIN, **change), RUNTIME)
    assert "mirror" in why_alone(TRAIN, RuntimeConfig(tracker=WandbTracker()))
