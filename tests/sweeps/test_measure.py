"""The real trainer under the engine: one truth, however and however often a run is started."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

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
from model.training.distributed.config import ParallelConfig
from model.training.result import TrainResult
from model.typed import to_plain
from sweeps.attempt import Attempt, Outcome, attempt_dir
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor
from sweeps.measure import (
    _reporting,
    check_record,
    measure_run,
    planned_corpus,
    record_of,
)
from sweeps.memory import can_be_halved, micro_batches
from sweeps.plan import make_plan
from sweeps.run import run_sweep
from sweeps.spec import run_id
from sweeps.spread import Spread, read_spread, set_spread
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
        hardware = record.provenance["hardware"]
        assert hardware["threads"] == 1
        if (told := Path("/proc/meminfo")).exists():
            assert hardware["memory_bytes"] == 1024 * int(told.read_text().split()[1])
    seeds = {measured(undisturbed, run.run_id)["loss_nats"] for run in real_plan.runs}
    assert len(seeds) == len(real_plan.runs)


def test_a_run_that_diverged_has_spent_what_it_was_trained_for(real_plan, tmp_path):
    run = real_plan.runs[0]
    attempt = Attempt.claim(Store(tmp_path).create(run.spec), after=0, now=0.0)
    tokens = 2 * run.spec.train.batch_tokens
    result = TrainResult(
        status="diverged",
        reason="loss spike",
        steps=2,
        tokens=tokens,
        loss_nats=None,
        bits_per_byte=None,
        train_loss_nats=9.0,
        by_domain={},
        load_by_layer=(),
        wall_s=1.0,
        tokens_per_s=1.0,
        seconds={},
        epochs={},
        numerics={},
    )
    record = record_of(run.spec, result, attempt.dir)
    assert (record.tokens, record.steps) == (tokens, 2)
    assert record.train_flops == run.cost.flops_per_token * tokens < run.cost.train_flops


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


def test_parts_are_at_most_the_sequences(real_plan, tmp_path):
    spec = real_plan.runs[0].spec
    folder = Store(tmp_path).create(spec)
    length = spec.train.sequence_length
    three = replace(spec.train, tokens=6 * length, batch_tokens=3 * length)
    for number, parts in ((1, 1), (2, 2), (3, 3)):
        attempt = Attempt.claim(folder, after=number - 1, now=0.0)
        assert micro_batches(folder, three, number) == parts
        assert can_be_halved(folder, three, number) == (parts < 3)
        attempt.end(Outcome(status="interrupted", ended=1.0, out_of_memory=True))


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


def test_a_record_with_a_layer_whose_load_is_no_share_is_refused(undisturbed, real_plan):
    run = real_plan.runs[0]
    record = undisturbed.record(run.run_id)
    first, *others = record.load_by_layer
    assert first.layer == 0
    check_record(record, run.spec)
    check_record(replace(record, load_by_layer=(replace(first, load=()), *others)), run.spec)
    doubled = replace(first, load=tuple(2 * share for share in first.load))
    with pytest.raises(ConfigError, match="the load of layer 0 sums to 2"):
        check_record(replace(record, load_by_layer=(doubled, *others)), run.spec)


def test_progress_tells_the_newest_training_loss(tmp_path):
    told = []
    tell = _reporting(told.append, tmp_path)
    tell(0, 9, 0.0)
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"kind": "train", "train_loss_nats": 5.5}\n')
    tell(1, 9, 10.0)
    heldout = '{"kind": "heldout", "loss_nats": 5.0}\n'
    metrics.write_text(metrics.read_text() + heldout)
    tell(2, 9, 10.0)
    metrics.write_text(metrics.read_text() + '{"train_loss_nats": 4.5}\n' + heldout * 1000)
    tell(3, 9, 20.0)
    # So much was held out since that the end of the file, which is all that is read, has no other.
    metrics.write_text(metrics.read_text() + heldout * 2000)
    tell(4, 9, 20.0)
    assert [each.loss for each in told] == [None, 5.5, 5.5, 4.5, None]
    assert (told[3].step, told[3].num_steps, told[3].tokens_per_s) == (3, 9, 20.0)


def test_processes_are_shared_out_evenly_among_the_nodes():
    assert Spread(parallel=ParallelConfig(shard=6), nodes=3).ranks_per_node == 2
    with pytest.raises(ConfigError, match=r"nodes \(4\) must divide the 6 processes"):
        Spread(parallel=ParallelConfig(shard=6), nodes=4)


def test_a_run_that_is_spread_is_trained_by_its_ranks(plan, tmp_path, monkeypatch):
    """What the job is told; that it trains the same is shown with real ranks elsewhere."""
    spec = plan.runs[0].spec
    folder = Store(tmp_path).create(spec)
    attempt = Attempt.claim(folder, after=0, now=time.time())
    monkeypatch.setenv("WINDTUNNEL_NODE_COMMAND", '["srun", "--nodes=2"]')
    set_spread(folder, Spread(parallel=ParallelConfig(shard=2), nodes=2))

    class Asked(Exception):
        """In place of the ranks."""

    def run_job(job, run_dir, on_progress, node_command):
        raise Asked(job, run_dir, node_command)

    monkeypatch.setattr("sweeps.measure.run_job", run_job)
    with pytest.raises(Asked) as asked:
        measure_run(spec, attempt.dir, lambda progress: None)
    job, run_dir, node_command = asked.value.args
    assert (job.name, job.model, job.train) == (run_id(spec), spec.model, spec.train)
    assert (job.parallel, job.nodes) == (ParallelConfig(shard=2), 2)
    assert job.corpus_fingerprint == spec.corpus_fingerprint
    assert not job.rendezvous.startswith("localhost"), "another machine cannot reach it"
    assert (job.snapshots_dir, job.trunk_dir) == (folder / "snapshots", None)
    assert (run_dir, node_command) == (attempt.dir, ("srun", "--nodes=2"))
    (folder / "begins").mkdir()
    set_spread(folder, Spread(parallel=ParallelConfig(shard=2)))
    with pytest.raises(Asked) as asked:
        measure_run(spec, attempt.dir, lambda progress: None)
    assert asked.value.args[0].trunk_dir == folder / "begins"
    assert asked.value.args[0].rendezvous == "localhost:0"
    set_spread(folder, None)
    assert read_spread(folder) is None
    (folder / "spread.json").write_text('{"parallel": {"shard": "two"}}')
    with pytest.raises(ConfigError, match=r"spread\.json.*shard"):
        read_spread(folder)
