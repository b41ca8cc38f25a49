"""Runs that one worker trains together: which, by whom, and that nothing else changes."""

import errno
import json
import os
import threading
from dataclasses import replace

import pytest
import toy_plans
import toy_worker

from model.own.parts import OwnCounts, OwnPart
from model.training.config import RuntimeConfig
from sweeps.attempt import Attempt, Outcome, attempt_dir, read_claim, read_outcome
from sweeps.budget import Budget
from sweeps.executors import InlineConfig, LocalConfig, RayConfig, SlurmConfig, packing_for
from sweeps.executors.inline import InlineExecutor
from sweeps.grid import replaced
from sweeps.pack_worker import claim_company, run_pack
from sweeps.packing import ALONE, Packing, measured_to_pay, read_company, write_company
from sweeps.plan import make_plan
from sweeps.run import run_sweep
from sweeps.store import Store
from sweeps.trouble import EXIT_DISK_FULL, EXIT_STOPPED

PACKED_TOLERANCE_NATS = 1e-4
"""Most by which the loss of a packed run may differ from that of the run by itself; on a CPU it has
been the same to the bit."""


def plan_of(corpus_dir, corpus, axes):
    """One cell in every variant of ``axes``."""
    changes = {"ladder.sizes": 1, "ladder.budgets": 1, "ladder.noise_seeds": []}
    return make_plan(replaced(toy_plans.small_sweep(corpus_dir), {**changes, "axes": axes}), corpus)


@pytest.fixture(scope="module")
def seeds_and_rates(corpus_dir, corpus):
    axes = {"ladder.seed": [0, 1], "recipe.training.peak_lr_factor": [0.05, 0.025]}
    return plan_of(corpus_dir, corpus, axes)


def owners(store, plan):
    """The process that finished each run."""
    found = []
    for run in plan.runs:
        folder = attempt_dir(store.run_dir(run.run_id), store.state(run.run_id).attempt)
        found.append(read_claim(folder).owner.pid)
    return found


def test_what_differs_in_numbers_alone_goes_together(corpus_dir, corpus):
    packing = Packing(most=8)

    def keys(axes):
        plan = plan_of(corpus_dir, corpus, axes)
        return [packing.key(run.spec) for run in plan.runs]

    together = {
        "ladder.seed": [0, 1],
        "recipe.training.peak_lr_factor": [0.5, 0.25],
        "balance.update_rate": [1e-3, 1e-2],
        "recipe.training.clip_norm": [1.0, 0.5],
    }
    assert len(keys(together)) == 16
    assert len(set(keys(together))) == 1
    for path, values in {
        "ladder.smallest_tokens": [1024, 2048],
        "recipe.shape.num_experts": [8, 16],
        "balance.rule": ["sign", "none"],
        "evaluation.heldout_tokens": [512, 256],
    }.items():
        assert len(set(keys({path: values}))) == 2, path
    assert keys({"balance.aux_loss_weight": [0.1]}) == [None]
    assert keys({"schedule.trunk": [True]}) == [None]
    spec = plan_of(corpus_dir, corpus, {}).runs[0].spec
    assert ALONE.key(spec) is None
    # A stack reads one text, computes by one version and on one device.
    for field, other in {
        "corpus_fingerprint": "of another text",
        "numerics": spec.numerics + 1,
        "runtime": replace(spec.runtime, threads=2),
    }.items():
        assert packing.key(replace(spec, **{field: other})) != packing.key(spec), field
    assert packing.key(replace(spec, rung="of another name")) == packing.key(spec)
    for field, other in {"role": "trunk", "trunk": "a run that it begins from"}.items():
        assert packing.key(replace(spec, **{field: other})) is None, field
    counts = (OwnCounts(params=1),) * spec.model.num_layers
    own = OwnPart(kind="attention", name="m:C", source="0", sequence_length=32, counts=counts)
    assert packing.key(replace(spec, model=replace(spec.model, own=(own,)))) is None


def test_how_many_follows_the_device_unless_told(plan):
    small = next(run.spec for run in plan.runs if run.spec.model.hidden_size == 16)
    assert measured_to_pay(small, "cpu") > 1
    assert measured_to_pay(small, "cuda") == 1, "not measured"
    wide = replace(small, model=replace(small.model, hidden_size=512))
    assert measured_to_pay(wide, "cpu") == 1
    assert Packing(most=None).key(wide) is None
    assert Packing(most=3).size_for(wide) == 3
    cpu = RuntimeConfig(device="cpu")
    assert packing_for(InlineConfig(), cpu) == ALONE
    assert packing_for(LocalConfig(), cpu) == Packing(most=None, device="cpu")
    gpu = Packing(most=4, device="cuda")
    assert packing_for(LocalConfig(gpus=1, pack=4), RuntimeConfig()) == gpu
    assert packing_for(SlurmConfig(gres="gpu:1", pack=4), RuntimeConfig()) == gpu
    assert packing_for(RayConfig(gpus_per_run=0.5, pack=4), RuntimeConfig()) == gpu


@pytest.mark.slow
def test_a_pack_measures_what_its_runs_measure_alone(seeds_and_rates, tmp_path):
    alone, packed = Store(tmp_path / "alone"), Store(tmp_path / "packed")
    assert run_sweep(seeds_and_rates, alone, InlineExecutor()).is_complete
    submitted = []

    class Counting(InlineExecutor):
        def submit(self, run_dir, after):
            submitted.append(run_dir.name)
            return super().submit(run_dir, after)

    result = run_sweep(seeds_and_rates, packed, Counting(), packing=Packing(most=3))
    assert result.is_complete
    assert len(submitted) == 2  # three, and the fourth alone
    sizes = []
    for run in seeds_and_rates.runs:
        found, wanted = packed.record(run.run_id), alone.record(run.run_id)
        assert found.loss_nats == pytest.approx(wanted.loss_nats, abs=PACKED_TOLERANCE_NATS)
        assert (found.seed, found.peak_lr) == (wanted.seed, wanted.peak_lr)
        assert found.protocol_fingerprint == wanted.protocol_fingerprint
        assert len(found.provenance["attempts"]) == 1
        sizes.append(found.provenance["numerics"].get("packed", 1))
    assert sorted(sizes) == [1, 3, 3, 3]
    assert not run_sweep(seeds_and_rates, packed, Counting(), packing=Packing(most=3)).finished


@pytest.mark.slow
def test_one_that_diverges_leaves_the_others_alone(corpus_dir, corpus, tmp_path):
    plan = plan_of(corpus_dir, corpus, {"recipe.training.peak_lr_factor": [0.5, 1e7, 0.25]})
    wild = next(run for run in plan.runs if run.spec.train.optimizer.peak_lr > 1e3)
    store = Store(tmp_path)
    result = run_sweep(plan, store, InlineExecutor(), packing=Packing(most=3))
    assert list(result.diverged) == [wild.run_id]
    assert len(result.finished) == 2
    record = store.record(wild.run_id)
    assert record.status == "diverged"
    assert record.reason == result.diverged[wild.run_id]


def test_a_killed_pack_goes_on_one_by_one(wide_plan, toy, monkeypatch):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.05,) * 9)
    monkeypatch.setattr("sweeps.run.PROGRESS_S", 0.1)
    packing = Packing(most=4)
    key = packing.key(wide_plan.runs[0].spec)
    # Six seeds of a shape on two slots: packs of three. The second run of the first waits.
    pack = [run for run in wide_plan.runs if packing.key(run.spec) == key][:3]
    toy.set(hold={pack[1].run_id: [10]})
    killed = []

    def kill_once(event):
        if event.kind == "progress" and event.run is pack[1] and not killed:
            folder = attempt_dir(toy.store.run_dir(event.run.run_id), event.attempt)
            killed.append(read_claim(folder).owner.pid)
            os.kill(killed[0], 9)

    result = run_sweep(wide_plan, toy.store, toy.executor(), kill_once, packing=packing)
    assert result.is_complete
    assert owners(toy.store, replace(wide_plan, runs=tuple(pack[:1]))) == killed
    again = [run for run in wide_plan.runs if toy.store.state(run.run_id).attempt > 1]
    assert again == pack[1:]
    for run in again:
        assert not read_company(toy.store.run_dir(run.run_id)).runs


def test_packs_are_shared_out_among_the_slots(wide_plan, toy):
    """Twenty-four runs of four shapes on two slots: no slot waits while another has a pile."""
    toy.set(steps=3)
    started = []

    def note(event):
        if event.kind == "started":
            started.append(event.run)

    six = replace(wide_plan, runs=tuple(r for r in wide_plan.runs if r.spec.rung == "r0")[:6])
    shape = six.runs[0].spec.train.tokens
    six = replace(six, runs=tuple(r for r in wide_plan.runs if r.spec.train.tokens == shape)[:6])
    result = run_sweep(six, toy.store, toy.executor(slots=2), note, packing=Packing(most=8))
    assert result.is_complete
    sizes = {}
    for pid in owners(toy.store, six):
        sizes[pid] = sizes.get(pid, 0) + 1
    assert sorted(sizes.values()) == [3, 3]


def test_who_is_held_done_or_damaged_stays_out_and_fails_by_itself(seeds_and_rates, toy):
    first, second, third, fourth = seeds_and_rates.runs
    toy.set(steps=2)
    held = replace(seeds_and_rates, runs=(second,))
    assert run_sweep(held, toy.store, toy.executor()).is_complete
    damaged = toy.store.create(third.spec) / "spec.json"
    damaged.write_text(json.dumps({**json.loads(damaged.read_text()), "rung": 7}))
    result = run_sweep(seeds_and_rates, toy.store, toy.executor(slots=1), packing=Packing(most=4))
    assert set(result.finished) == {first.run_id, fourth.run_id}
    assert result.skipped == (second.run_id,)
    assert list(result.failed) == [third.run_id]
    assert "rung" in result.failed[third.run_id]


def test_company_that_was_measured_before_is_published_and_not_trained_again(seeds_and_rates, toy):
    """Its worker was killed between its record and its last word."""
    toy.set(steps=2)
    measured, planned = seeds_and_rates.runs[:2]
    alone = replace(seeds_and_rates, runs=(measured,))
    assert run_sweep(alone, toy.store, toy.executor()).is_complete
    folder = toy.store.run_dir(measured.run_id)
    for place in (attempt_dir(folder, 1), folder):
        (place / "outcome.json").unlink()
    assert toy.store.state(measured.run_id).status == "interrupted"
    toy.store.create(planned.spec)
    record = toy.store.record(measured.run_id)
    other = toy.store.create(seeds_and_rates.runs[2].spec)
    write_company(other, [(measured.run_id, 1), (planned.run_id, 0)])
    (part,) = claim_company(toy.store, other)
    part.pulse.end()
    assert part.spec == planned.spec
    assert toy.store.state(measured.run_id).status == "done"
    assert toy.store.record(measured.run_id) == record


def test_the_budget_counts_a_whole_pack(seeds_and_rates, toy):
    toy.set(steps=2)
    one = seeds_and_rates.runs[0].cost.own_flops
    result = run_sweep(
        seeds_and_rates,
        toy.store,
        toy.executor(slots=1),
        packing=Packing(most=4),
        budget=Budget(train_flops=2.5 * one),
    )
    assert len(result.finished) == 2
    assert "budget" in result.stopped


def test_a_damaged_list_is_no_company(tmp_path):
    write_company(tmp_path, [("other", 3)])
    assert read_company(tmp_path).runs == {"other": 3}
    (tmp_path / "pack.json").write_text("{")
    assert read_company(tmp_path).runs == {}
    write_company(tmp_path, [])
    assert not (tmp_path / "pack.json").exists()


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_one_that_ended_by_itself_is_not_taken_along(seeds_and_rates, toy, status):
    first, ended = (toy.store.create(run.spec) for run in seeds_and_rates.runs[:2])
    Attempt.claim(ended, after=0, now=0.0).end(Outcome(status=status, ended=1.0))
    write_company(first, [(ended.name, 1)])
    assert claim_company(toy.store, first) == []
    assert toy.store.state(ended.name).status == status


@pytest.mark.parametrize(
    ("error", "exit_code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), EXIT_DISK_FULL, "the disk is full"),
        (None, EXIT_STOPPED, "while trained with 1 others: record.tokens: a run that is said"),
    ],
    ids=["disk full", "bad record"],
)
def test_each_run_of_a_pack_that_goes_wrong_says_why(seeds_and_rates, toy, error, exit_code, said):
    first, other = (toy.store.create(run.spec) for run in seeds_and_rates.runs[:2])
    write_company(first, [(first.name, 0), (other.name, 0)])
    parts = claim_company(toy.store, first)

    def measure(specs, folders, reports, on_record):
        if error is not None:
            raise error
        record = toy_worker.toy_record(specs[0], 1.0)
        object.__setattr__(record, "tokens", 5)
        on_record(0, record)

    assert run_pack(parts, measure, threading.Event()) == exit_code
    for part in parts:
        state = toy.store.state(part.attempt.run_dir.name)
        assert state.status == "interrupted"
        assert state.reason.startswith(said)
        assert not part.pulse.is_alive()


def test_an_error_in_a_pack_blames_nobody(seeds_and_rates, toy, monkeypatch):
    """The one whose fault it is fails when it is tried alone; the others finish."""
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.05,) * 3)
    toy.set(steps=4, fail=[1])
    result = run_sweep(seeds_and_rates, toy.store, toy.executor(slots=1), packing=Packing(most=4))
    bad = {run.run_id for run in seeds_and_rates.runs if run.spec.train.seed == 1}
    assert set(result.failed) == bad
    assert len(result.finished) == 2
    first = attempt_dir(toy.store.run_dir(next(iter(bad))), 1)
    assert "while trained with" in read_outcome(first).reason
