"""The real trainer under the engine: one truth, however and however often a run is started."""

import json
import sys
import time
from dataclasses import replace

import held_worker
import pytest
import torch
import toy_plans

from model.accounting import count_params
from model.errors import ConfigError
from model.files import step_folder
from model.training import whole
from model.training.captured import Captured
from model.training.config import CheckpointConfig, RuntimeConfig
from model.typed import to_plain
from sweeps.attempt import attempt_dir
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor
from sweeps.measure import planned_corpus
from sweeps.plan import make_plan
from sweeps.run import run_sweep
from sweeps.store import Store

NOT_MEASURED = ("provenance", "wall_s", "tokens_per_s")


def measured(store, name):
    record = store.record(name)
    assert record is not None
    return {key: value for key, value in to_plain(record).items() if key not in NOT_MEASURED}


def curve(store, name):
    lines = (store.run_dir(name) / "metrics.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if k not in NOT_MEASURED} for line in values]


def two_runs(corpus_dir, corpus, checkpoint_s):
    config = toy_plans.small_sweep(corpus_dir)
    ladder = replace(config.ladder, sizes=1, budgets=1, smallest_tokens=2048, noise_seeds=(1,))
    checkpoint = CheckpointConfig(every_s=checkpoint_s)
    return make_plan(replace(config, ladder=ladder, checkpoint=checkpoint), corpus)


@pytest.fixture(scope="module")
def real_plan(corpus_dir, corpus):
    return two_runs(corpus_dir, corpus, checkpoint_s=100.0)


@pytest.fixture(scope="module")
def undisturbed(real_plan, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("inline"))
    result = run_sweep(real_plan, store, InlineExecutor())
    assert result.is_complete
    return store


def test_a_record_says_what_was_asked_and_what_came_out(undisturbed, real_plan, corpus):
    for run in real_plan.runs:
        record = undisturbed.record(run.run_id)
        assert record is not None
        assert (record.status, record.reason) == ("done", "")
        assert (record.tokens, record.seed) == (run.spec.train.tokens, run.spec.train.seed)
        assert record.train_flops == run.cost.train_flops
        assert record.total_params == count_params(run.spec.model).total
        # Four symbols' worth of luck away from a uniform guess, and no better than the source.
        assert corpus.entropy_nats is not None
        assert corpus.entropy_nats < record.loss_nats < 5.55
        assert set(record.by_domain) == {"synthetic"}
        assert len(record.load_by_layer) == run.spec.model.num_moe_layers
        assert record.provenance["attempts"][0]["number"] == 1
        assert record.provenance["packages"]["torch"].startswith("2.")
        assert record.provenance["hardware"]["threads"] == 1
    seeds = {measured(undisturbed, run.run_id)["loss_nats"] for run in real_plan.runs}
    assert len(seeds) == len(real_plan.runs)


@pytest.mark.slow
def test_forked_and_killed_runs_measure_the_same_to_the_bit(
    undisturbed, corpus_dir, corpus, tmp_path
):
    real_plan = two_runs(corpus_dir, corpus, checkpoint_s=0.0)
    store = Store(tmp_path)
    executor = LocalExecutor(slots=1, command=(sys.executable, held_worker.__file__))
    disturbed = real_plan.runs[0]
    assert disturbed.spec.train.num_steps > 10
    for attempt in (1, 2):
        handle = executor.submit(store.create(disturbed.spec), attempt - 1)
        folder = attempt_dir(store.run_dir(disturbed.run_id), attempt)
        step = held_worker.HELD_AT[folder.name]
        while not step_folder(folder / "checkpoints", step).exists():
            assert handle.poll() is None, store.log_tail(disturbed.run_id)
            time.sleep(0.02)
        handle.kill()
    assert store.state(disturbed.run_id).status == "interrupted"
    result = run_sweep(real_plan, store, executor)
    assert result.is_complete
    for run in real_plan.runs:
        assert measured(store, run.run_id) == measured(undisturbed, run.run_id)
        assert curve(store, run.run_id) == curve(undisturbed, run.run_id)
    record = store.record(disturbed.run_id)
    assert record is not None
    assert [entry["number"] for entry in record.provenance["attempts"]] == [1, 2, 3]


def without_memory_for(monkeypatch, most_sequences):
    """A machine that holds no more sequences at once, called in turn or played back."""
    in_turn, played_back = whole.forward_backward, Captured.forward_backward

    def hold(windows):
        if len(windows) > most_sequences:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    def forward_backward(model, windows, train, share=1.0):
        hold(windows)
        return in_turn(model, windows, train, share)

    def play_back(self, windows):
        hold(windows)
        return played_back(self, windows)

    monkeypatch.setattr(whole, "forward_backward", forward_backward)
    monkeypatch.setattr(Captured, "forward_backward", play_back)


@pytest.mark.slow
def test_out_of_memory_halves_the_parts_of_the_same_batch(
    undisturbed, real_plan, tmp_path, monkeypatch
):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.01,) * 4)
    run = real_plan.runs[0]
    sequences = run.spec.train.batch_tokens // run.spec.train.sequence_length
    assert sequences == 2
    without_memory_for(monkeypatch, 1)
    store = Store(tmp_path)
    result = run_sweep(replace(real_plan, runs=(run,)), store, InlineExecutor())
    assert result.is_complete, result
    found, wanted = store.record(run.run_id), undisturbed.record(run.run_id)
    assert found.provenance["numerics"]["micro_batches"] == 2
    assert found.batch_tokens == wanted.batch_tokens
    assert found.loss_nats == pytest.approx(wanted.loss_nats, abs=1e-4)
    ends = [entry["outcome"] or "" for entry in found.provenance["attempts"]]
    assert ["out of memory" in end for end in ends] == [True, False]


def test_a_sequence_that_does_not_fit_by_itself_fails(real_plan, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.01,) * 9)
    without_memory_for(monkeypatch, 0)
    run = real_plan.runs[0]
    store = Store(tmp_path)
    result = run_sweep(replace(real_plan, runs=(run,)), store, InlineExecutor())
    assert "OutOfMemoryError" in result.failed[run.run_id]
    assert store.state(run.run_id).status == "failed"


def test_the_corpus_of_the_plan_is_used_or_the_run_refused(plan, corpus, tmp_path):
    spec = plan.runs[0].spec
    assert planned_corpus(spec).fingerprint == corpus.fingerprint
    # Gone, but its material gives the same again.
    fresh = replace(spec, runtime=RuntimeConfig(data_dir=tmp_path))
    assert planned_corpus(fresh).fingerprint == corpus.fingerprint
    changed = replace(fresh, corpus=replace(toy_plans.CORPUS, seed=1))
    (tmp_path / spec.corpus_fingerprint).rename(tmp_path / "gone")
    with pytest.raises(ConfigError, match="the corpus has changed since the sweep was planned"):
        planned_corpus(changed)
