"""Going back after a loss spike: to before it, past its text, and to the same bits if killed."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toy_runs
from toy_runs import CORPUS, RUNTIME, assert_same_run, lines, train_until

from model.errors import ConfigError
from model.files import step_folder
from model.training import progress, reader
from model.training.checkpoint import checkpoint_paths, read_checkpoint
from model.training.config import BalanceConfig, EvaluationConfig, HealthConfig, ScheduleConfig
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.going_back import WayBack
from model.training.health import HealthState
from model.training.rewind import LEAD_STEPS, Point, RewindPoints
from model.training.routing_use import RoutingUse
from model.training.state import RunState
from model.training.trainer import train
from model.training.whole import WholeModel

MODEL = replace(toy_runs.MODEL, num_layers=1, num_dense_layers=0, mtp_depth=0, moe=None)
TRAIN = replace(
    toy_runs.TRAIN,
    tokens=64 * 200,
    batch_tokens=64,
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(heldout_tokens=1024, num_intermediate=0),
    health=HealthConfig(on_spike="rewind"),
)
BAD = range(130, 175)
"""Steps whose text is noise."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A learnable source with uniform noise where a run reads its steps BAD; the steps read."""
    config = replace(CORPUS, num_symbols=4)
    prepared = prepare_corpus(config, tmp_path_factory.mktemp("data"))
    clean = PreparedCorpus.batch
    read = []

    def batch(self, spans, step, num_steps=1):
        # One step at a time, so that a test sees which steps are read.
        read.append(step)
        found = clean(self, spans, step)
        rng = np.random.default_rng(step)
        return rng.integers(0, 257, found.shape) if step in BAD else found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(PreparedCorpus, "batch", batch)
        patched.setattr(reader, "TOKENS_AHEAD", 1)
        yield prepared, read


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    """An undisturbed run, and the steps whose text it read."""
    prepared, read = corpus
    run_dir = tmp_path_factory.mktemp("whole")
    read.clear()
    result = train(MODEL, TRAIN, prepared, RUNTIME, run_dir)
    return result, run_dir, tuple(read)


def test_without_the_option_a_spike_ends_the_run(corpus, tmp_path):
    ending = replace(TRAIN, health=HealthConfig())
    result = train(MODEL, ending, corpus[0], RUNTIME, tmp_path / "run")
    assert result.status == "diverged"
    assert result.reason.startswith("loss spike: the smoothed loss is")
    assert result.rewinds == ()


def test_a_spike_is_left_behind_with_its_text(whole):
    result, run_dir, read = whole

    assert (result.status, result.steps) == ("done", 200)
    (rewind,) = result.rewinds
    noticed = rewind["from_step"]
    assert BAD.start + 32 < noticed < BAD.stop
    assert rewind["step"] == 64
    assert f"at step {noticed}: the learning rate" in rewind["reason"]
    assert rewind["reason"].endswith("; lower the learning rate"), "it goes back already"
    # Nothing is read twice; the few steps of noise after it was noticed are read, and heal.
    assert list(read) == list(range(noticed + 200 - 64))
    steps = [line["step"] for line in lines(run_dir, "train")]
    assert steps == list(range(1, 201)), "what was dropped left no line"
    (told,) = lines(run_dir, "rewind")
    assert told["skipped_tokens"] == 64 * (noticed - 64)


@pytest.mark.parametrize("stop_at", [(150, 1), (66, 2)], ids=["before", "after"])
def test_killed_before_or_after_it_went_back_it_is_the_same_run(
    corpus, whole, tmp_path, monkeypatch, stop_at
):
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)
    at, times = stop_at
    calls = []

    def stop(step, *_):
        calls.append(step)
        if step == at and calls.count(at) == times:
            raise KeyError

    with pytest.raises(KeyError):
        train(MODEL, TRAIN, corpus[0], RUNTIME, tmp_path, on_progress=stop)
    result = train(MODEL, TRAIN, corpus[0], RUNTIME, tmp_path)

    assert result.loss_nats == whole[0].loss_nats
    assert result.rewinds == whole[0].rewinds
    assert_same_run(tmp_path, whole[1])


def test_what_was_saved_of_the_steps_it_left_is_gone(corpus, tmp_path, monkeypatch):
    """A kill before the next save would go on from there, with the noise in its weights."""
    train_until(150, MODEL, TRAIN, corpus[0], tmp_path)
    monkeypatch.setattr(progress, "PROGRESS_EVERY_S", 0.0)
    seen = []

    def look(step, *_):
        if step == 65:
            seen.append([path.name for path in checkpoint_paths(tmp_path / "checkpoints")])

    train(MODEL, TRAIN, corpus[0], RUNTIME, tmp_path, on_progress=look)
    assert seen == [["step-00000064"]]


def test_what_an_average_is_made_of_is_taken_anew_after_going_back(corpus, tmp_path):
    merging = ScheduleConfig(kind="wsm", warmup_frac=0.0, decay_frac=0.68, num_merged=3)
    result = train(MODEL, replace(TRAIN, schedule=merging), corpus[0], RUNTIME, tmp_path)

    assert result.status == "done"
    assert result.rewinds[0]["step"] == 64
    rewinds = [
        read_checkpoint(step_folder(tmp_path / "snapshots", step)).state["run"]["rewinds"]
        for step in (64, 132, 200)
    ]
    assert rewinds == [[], list(result.rewinds), list(result.rewinds)]


def test_a_number_that_is_none_is_stepped_over(corpus, tmp_path, monkeypatch, request):
    monkeypatch.setattr(request.module, "BAD", range(0))
    prepared, read = corpus
    read.clear()
    clean = WholeModel.clip
    calls = []

    def poisoned(self, clip_norm):
        calls.append(clip_norm)
        return float("nan") if len(calls) == 129 else clean(self, clip_norm)

    monkeypatch.setattr(WholeModel, "clip", poisoned)
    short = replace(TRAIN, tokens=64 * 132)
    result = train(MODEL, short, prepared, RUNTIME, tmp_path / "run")

    assert result.status == "done"
    said = "gradient norm is nan at step 129; lower the learning rate"
    assert result.rewinds == ({"step": 64, "from_step": 129, "reason": said},)
    assert read[:130] == list(range(130)), "the text of step 129 (number 128) is not read again"


def test_after_too_many_it_has_diverged(corpus, tmp_path):
    stubborn = replace(TRAIN, health=HealthConfig(on_spike="rewind", max_rewinds=0))
    result = train(MODEL, stubborn, corpus[0], RUNTIME, tmp_path / "run")
    assert result.status == "diverged"


def test_the_points_that_are_kept():
    points = RewindPoints(1000)
    state = {"health": HealthState(5.0, 5.0)}
    assert [step for step in range(1, 400) if points.is_due(step, 0.0)] == [
        64,
        128,
        192,
        256,
        320,
        384,
    ]
    assert not points.is_due(64, 0.6)
    for step in (64, 128, 192, 256):
        points.take(Point(step, {"w": torch.tensor(float(step))}, state, step))
    tensors, plain = points.to_checkpoint()
    assert [values["step"] for values in plain] == [192, 256]
    other = RewindPoints(1000)
    other.restore(tensors, plain)
    assert other.before(192 + LEAD_STEPS - 1) is None
    other.restore(tensors, plain)
    found = other.before(192 + LEAD_STEPS)
    assert (found.step, found.tensors["w"].item(), found.metrics_offset) == (192, 192.0, 192)


def test_what_is_given_up_and_what_is_kept_when_a_run_goes_back():
    use, weights = RoutingUse(1, 2, torch.device("cpu")), torch.zeros(2)
    state = RunState(HealthState(5.0, 5.0), use, step=60, seconds={"step": 1.0})
    state.go_on_under({"threads": 1})
    state.step = 64
    use.count([torch.tensor([3, 1])])
    written, watched = [], state.seconds
    learner = SimpleNamespace(
        state=state,
        tensors=lambda: {"w": weights, **use.to_tensors()},
        restore=lambda tensors: weights.copy_(tensors["w"]),
    )
    metrics = SimpleNamespace(synced_offset=lambda: 7, cut=written.append)
    log = SimpleNamespace(metrics=metrics, write=written.append)
    saver = SimpleNamespace(drop_after=written.append, save=lambda: written.append("saved"))
    way_back = WayBack(RewindPoints(1000), learner, log, saver, TRAIN)
    way_back.remember(0.0)
    given_up = copy.deepcopy((weights, use.load_LE, use.extremes_2L))

    for times in (1, 2):
        state.step = 100
        state.go_on_under({"threads": 2})  # resumed elsewhere
        state.step = 150
        state.seconds["step"] = 3.0 * times
        state.fp8_fallen = ["blocks.1"]
        state.stages.append({"name": "short"})
        use.count([torch.tensor([0, 4])])
        weights += 1
        written.clear()

        assert way_back.go("noise", 151)
        told = {"step": 64, "from_step": 151, "reason": "noise"}
        line = {"kind": "rewind", **told, "skipped_tokens": (151 - 64) * 64}
        assert written == [7, line, 64, "saved"]
        assert (state.step, state.stages) == (64, [])
        for now, then in zip((weights, use.load_LE, use.extremes_2L), given_up, strict=True):
            assert torch.equal(now, then)
        assert state.seconds is watched, "the stopwatch goes on in it"
        assert state.seconds == {"step": 3.0 * times}
        assert state.fp8_fallen == ["blocks.1"], "it computes in bfloat16 by now"
        computed_by = [(told["from_step"], told["numerics"]) for told in state.computed_by]
        assert computed_by == [(60, {"threads": 1}), (64, {"threads": 2})]
        assert state.rewinds == [told] * times
        assert state.skipped_steps == (151 - 64) * times


def test_a_trunk_cannot_go_back():
    with pytest.raises(ConfigError, match="a trunk can't go back"):
        replace(TRAIN, schedule=ScheduleConfig(trunk=True))
