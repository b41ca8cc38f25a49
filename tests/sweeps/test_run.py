"""The driver: what is missing is run once, one failure neither stops nor hides the rest."""

import json
import os
import sys
import time
from dataclasses import replace

import pytest
import toy_worker

from model.errors import ConfigError, RunFailed
from sweeps import run as run_module
from sweeps.attempt import Attempt, Outcome, attempt_dir, read_claim
from sweeps.budget import Budget
from sweeps.ending import publish
from sweeps.events import Event
from sweeps.executors.forkserver import ForkServer
from sweeps.executors.local import LocalExecutor, Spawner
from sweeps.plan import Plan, make_plan
from sweeps.retries import BACKOFF_S, Retries
from sweeps.run import DiskFull, run_sweep


def collect(plan, toy, **arguments):
    events: list[Event] = []
    result = run_sweep(plan, toy.store, toy.executor(), events.append, **arguments)
    return result, events


def kinds(events, kind):
    return [event.run.run_id for event in events if event.kind == kind]


def seed_of(plan: Plan, seed: int) -> str:
    return next(run.run_id for run in plan.runs if run.spec.train.seed == seed)


def test_every_run_once_and_a_rerun_does_nothing(plan, toy):
    result, events = collect(plan, toy)
    ids = [run.run_id for run in plan.runs]
    assert sorted(result.finished) == sorted(ids)
    assert result.is_complete
    assert kinds(events, "started") == ids  # in the plan's order
    for run in plan.runs:
        record = toy.store.record(run.run_id)
        assert record is not None
        assert record.run_id == run.run_id
        lines = (toy.store.run_dir(run.run_id) / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 20

    before = {path: path.stat().st_mtime_ns for path in toy.store.runs_dir.rglob("*")}
    result, events = collect(plan, toy)
    assert (result.finished, sorted(result.skipped)) == ((), sorted(ids))
    assert {event.kind for event in events} == {"skipped"}
    assert {path: path.stat().st_mtime_ns for path in toy.store.runs_dir.rglob("*")} == before


def test_progress_comes_from_the_heartbeat(plan, toy):
    toy.set(steps=15, step_s=0.1)
    _, events = collect(replace(plan, runs=plan.runs[:2]), toy)
    progress = [event.progress for event in events if event.kind == "progress"]
    assert progress
    assert all(seen is not None and seen.num_steps == 15 for seen in progress)


def test_one_failure_is_told_when_it_happens_and_the_rest_go_on(plan, toy):
    toy.set(fail=[1])
    result, events = collect(plan, toy)
    bad = seed_of(plan, 1)
    assert list(result.failed) == [bad]
    assert len(result.finished) == len(plan.runs) - 1
    (told,) = [event for event in events if event.kind == "failed"]
    assert told.reason == "ValueError: the toy was told to fail"
    assert "Traceback" in told.log_tail
    assert "_misbehave" in told.log_tail

    # Skipped with its reason until it is asked for; then it goes on from its checkpoint.
    toy.set()
    result, events = collect(plan, toy)
    assert list(result.failed) == [bad]
    assert kinds(events, "started") == []
    result, events = collect(plan, toy, retry={"failed"})
    assert result.finished == (bad,)
    rows = (toy.store.run_dir(bad) / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(1, 21))


def test_a_diverged_run_has_a_record_and_starts_anew_only_when_told(plan, toy):
    toy.set(diverge=[2])
    result, _ = collect(plan, toy)
    bad = seed_of(plan, 2)
    assert result.diverged == {bad: "the toy was told to diverge"}
    record = toy.store.record(bad)
    assert record is not None
    assert record.status == "diverged"

    toy.set()
    result, _ = collect(plan, toy)
    assert list(result.diverged) == [bad]
    result, _ = collect(plan, toy, retry={"diverged"})
    assert result.finished == (bad,)
    record = toy.store.record(bad)
    assert record is not None
    assert record.status == "done"
    # From the start: the diverged attempt's checkpoints stay where they are.
    assert (attempt_dir(toy.store.run_dir(bad), 1) / "checkpoints").exists()


def test_a_killed_worker_is_tried_again_a_few_times(plan, toy, monkeypatch):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.0, 0.0))
    toy.set(die=[1])
    result, events = collect(plan, toy)
    bad = seed_of(plan, 1)
    assert kinds(events, "interrupted") == [bad, bad]
    assert "was killed, 3 times" in result.failed[bad]
    assert len(result.finished) == len(plan.runs) - 1

    # The next session tries again by itself: that was no failure of the run.
    toy.set()
    result, _ = collect(plan, toy)
    assert result.finished == (bad,)


def test_a_full_disk_stops_the_sweep_with_one_clear_reason(plan, toy):
    toy.set(disk_full=[1])
    with pytest.raises(DiskFull, match=r"the disk is full under .*; free some space"):
        collect(plan, toy)
    bad = seed_of(plan, 1)
    assert toy.store.state(bad).status == "interrupted"
    toy.set()
    result, _ = collect(plan, toy)
    assert result.is_complete
    assert bad in result.finished


def test_the_budget_leaves_the_rest_for_the_next_session(plan, toy):
    flops = [run.cost.train_flops for run in plan.runs]
    result, _ = collect(plan, toy, budget=Budget(train_flops=sum(flops[:3])))
    assert "budget" in result.stopped
    assert 0 < len(result.finished) < len(plan.runs)
    spent = sum(run.cost.train_flops for run in plan.runs if run.run_id in result.finished)
    assert spent <= sum(flops[:3])
    assert set(result.finished) | set(result.unfinished) == {run.run_id for run in plan.runs}
    result, _ = collect(plan, toy)
    assert result.is_complete


def test_a_budget_of_time_starts_nothing_that_would_not_end_in_it(plan, toy):
    cheapest = min(run.cost.wall_s for run in plan.runs)
    result, events = collect(plan, toy, budget=Budget(hours=cheapest / 2 / 3600))
    assert kinds(events, "started") == []
    assert "hours is used up" in result.stopped
    assert len(result.unfinished) == len(plan.runs)


def test_a_run_that_gets_on_between_kills_is_never_given_up(plan, toy, monkeypatch):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.0,))
    monkeypatch.setattr(run_module, "PROGRESS_S", 0.05)
    one = replace(plan, runs=plan.runs[:1])
    waits_at, killed_at = [11, 22, 33], []  # two more than are allowed without getting on
    toy.set(steps=40, hold={one.runs[0].run_id: waits_at})

    def kill_where_it_waits(event):
        if event.kind == "progress" and event.progress.step in set(waits_at) - set(killed_at):
            killed_at.append(event.progress.step)
            folder = attempt_dir(toy.store.run_dir(event.run.run_id), event.attempt)
            os.kill(read_claim(folder).owner.pid, 9)

    result = run_sweep(one, toy.store, toy.executor(), kill_where_it_waits)
    assert result.is_complete
    assert killed_at == waits_at


@pytest.mark.parametrize("claimed", ["before", "while it starts"])
@pytest.mark.parametrize("status", ["done", "diverged", "failed"])
def test_what_another_driver_ends_is_over_here_too(plan, toy, claimed, status):
    one = replace(plan, runs=plan.runs[:1])
    run = one.runs[0]
    theirs: list[Attempt] = []

    def claim():
        theirs.append(Attempt.claim(toy.store.create(run.spec), after=0, now=time.time()))

    def be_the_other(event):
        if event.kind == "started" and not event.elsewhere:
            claim()  # a moment before the worker that is started now
        elif event.kind == "started" and status == "failed":
            theirs[0].end(Outcome(status="failed", reason="theirs", ended=time.time()))
        elif event.kind == "started":
            record = toy_worker.toy_record(run.spec, 1.0, diverged=status == "diverged")
            publish(theirs[0], run.spec, record)

    if claimed == "before":
        claim()
    result = run_sweep(one, toy.store, toy.executor(), be_the_other)
    of_status = {"done": result.finished, "diverged": result.diverged, "failed": result.failed}
    assert list(of_status[status]) == [run.run_id]
    assert toy.store.state(run.run_id).attempt == 1


def test_a_grown_plan_runs_only_what_is_new(plan, sweep_config, corpus, toy):
    collect(plan, toy)
    ladder = replace(sweep_config.ladder, sizes=3, noise_seeds=(1, 2, 3))
    grown = make_plan(replace(sweep_config, ladder=ladder), corpus)
    result, _ = collect(grown, toy)
    known = {run.run_id for run in plan.runs}
    assert set(result.skipped) == known
    assert set(result.finished) == {run.run_id for run in grown.runs} - known
    assert len(result.finished) == 3


def test_redo_sets_the_old_measurement_aside(plan, toy):
    collect(plan, toy)
    again = plan.runs[0].run_id
    toy.store.redo(again)
    assert toy.store.state(again).status == "planned"
    (kept,) = (toy.store.root / "redone").iterdir()
    assert (kept / "record.json").exists()
    result, _ = collect(plan, toy)
    assert result.finished == (again,)


def test_a_record_of_another_run_is_not_taken_for_this_ones(plan, toy):
    collect(plan, toy)
    names = [run.run_id for run in plan.runs]
    name = names[0]
    one, other = (toy.store.run_dir(each) / "record.json" for each in names[:2])
    one.write_bytes(other.read_bytes())
    with pytest.raises(ConfigError, match=f"holds the record of run {names[1]}"):
        toy.store.record(name)
    one.write_text(one.read_text().replace(names[1], "of-another-sweep"))
    with pytest.raises(ConfigError, match="of run of-another-sweep, copied or renamed by hand"):
        toy.store.records(names)
    toy.store.redo(name)
    collect(plan, toy)
    assert toy.store.record(name).run_id == name


@pytest.mark.parametrize("starter", [ForkServer, Spawner])
def test_a_worker_that_cannot_start_is_not_called_a_broken_run(plan, toy, starter):
    command = (sys.executable, "-c", "raise SystemExit('no such library')")
    executor = LocalExecutor(slots=2, command=command, starter=starter)
    with pytest.raises(RunFailed, match="workers do not start here") as caught:
        run_sweep(plan, toy.store, executor)
    assert "no such library" in caught.value.log_tail
    assert {toy.store.state(run.run_id).status for run in plan.runs} == {"planned"}
    result, _ = collect(plan, toy)
    assert result.is_complete


def test_what_a_first_try_got_wrong_is_corrected_until_a_run_has_begun(plan, toy):
    """Its device and threads are no part of its id: they stayed those of the first command."""
    spec = plan.runs[0].spec
    wrong = replace(spec, runtime=replace(spec.runtime, device="cuda", threads=64))
    folder = toy.store.create(wrong)
    text = (folder / "spec.json").read_text()
    assert '"cuda"' in text
    toy.store.create(spec)
    right = (folder / "spec.json").read_text()
    assert '"cuda"' not in right
    attempt = Attempt.claim(folder, after=0, now=0.0)
    toy.store.create(wrong)
    assert (folder / "spec.json").read_text() == right, "a worker is on it"
    attempt.end(Outcome(status="failed", ended=1.0))
    toy.store.create(wrong)
    assert (folder / "spec.json").read_text() == text, "it left nothing to go on from"
    toy.store.create(spec)
    toy.store.redo(plan.runs[0].run_id)
    run_sweep(replace(plan, runs=plan.runs[:1]), toy.store, toy.executor())
    toy.store.create(wrong)
    assert (folder / "spec.json").read_text() == right


def test_what_is_set_aside_twice_is_kept_twice(plan, toy):
    run = plan.runs[0]
    for _ in range(2):
        attempt = Attempt.claim(toy.store.create(run.spec), after=0, now=0.0)
        attempt.end(Outcome(status="failed", ended=1.0))
        toy.store.redo(run.run_id)
    kept = sorted(path.name for path in (toy.store.root / "redone").iterdir())
    assert kept == [f"{run.run_id}.1", f"{run.run_id}.2"]


def test_a_run_that_ends_at_the_same_step_each_time_is_given_up():
    retries = Retries()
    for pause_s in BACKOFF_S:
        retries.reached("r", 5)
        assert retries.next_pause_s("r") == pause_s
    retries.reached("r", 5)
    assert retries.next_pause_s("r") is None
    retries.reached("r", 6)
    assert retries.next_pause_s("r") == BACKOFF_S[0], "it gets on"
