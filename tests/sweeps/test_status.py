"""A status is what the folders say, and its sums are right."""

import time

import pytest

from sweeps.attempt import Attempt, Heartbeat, Outcome, Progress
from sweeps.plan_file import skim_plan, write_plan
from sweeps.run import run_sweep
from sweeps.status import sweep_status


def test_every_run_is_counted_once_in_its_state(plan, toy, tmp_path):
    done, diverged, failed, interrupted, running, planned = plan.runs
    ended = ((done, "done"), (diverged, "diverged"), (failed, "failed"))
    for run, outcome in (*ended, (interrupted, "interrupted")):
        attempt = Attempt.claim(toy.store.create(run.spec), after=0, now=time.time())
        half = Progress(step=2, num_steps=4, tokens_per_s=1.0, loss=2.5)
        attempt.beat(Heartbeat(beat=1, time=time.time(), phase="training", progress=half))
        if outcome == "done":
            (attempt.dir / "record.json").touch()
            attempt.publish()
        attempt.end(Outcome(status=outcome, reason="because", ended=time.time()))
    attempt = Attempt.claim(toy.store.create(running.spec), after=0, now=time.time())
    tokens = running.spec.train.tokens
    progress = Progress(step=3, num_steps=4, tokens_per_s=tokens / 40, loss=2.5)
    attempt.beat(Heartbeat(beat=1, time=time.time(), phase="training", progress=progress))

    path = tmp_path / "plan.json"
    write_plan(plan, path)
    for known in (plan, skim_plan(path)):
        status = sweep_status(known, toy.store)
        assert sum(status.counts.values()) == len(plan.runs)
        assert set(status.counts.values()) == {1}
        assert not status.is_complete
        (report,) = status.with_status("failed")
        assert (report.run.run_id, report.state.reason) == (failed.run_id, "because")
        (report,) = status.with_status("running")
        assert report.done_frac == 0.75
        assert report.left_s == pytest.approx(10)  # a quarter of 40 s at its own speed
        to_come = 10 + interrupted.cost.wall_s / 2 + planned.cost.wall_s
        assert status.left_s(slots=1) == pytest.approx(to_come)
        longest = max(report.left_s for report in status.runs)
        assert status.left_s(slots=1000) == longest, "no run is shared out"
        half = sum(run.cost.train_flops for run in (diverged, failed, interrupted)) / 2
        expected = done.cost.train_flops + half + 0.75 * running.cost.train_flops
        assert status.train_flops_done == pytest.approx(expected)
        assert status.train_flops == pytest.approx(plan.train_flops)


def test_a_finished_sweep_is_complete_and_has_nothing_left(plan, toy):
    run_sweep(plan, toy.store, toy.executor())
    status = sweep_status(plan, toy.store)
    assert status.is_complete
    assert status.left_s(slots=2) == 0
    assert status.train_flops_done == status.train_flops


def test_a_heartbeat_of_long_ago_is_shown_as_interrupted(plan, toy):
    run = plan.runs[0]
    attempt = Attempt.claim(toy.store.create(run.spec), after=0, now=time.time())
    attempt.beat(Heartbeat(beat=1, time=time.time() - 60, phase="training"))
    (report,) = sweep_status(plan, toy.store).with_status("interrupted")
    assert "no sign of life for 6" in report.state.reason


def test_a_run_that_is_taken_up_again_has_left_what_it_had_left(plan, toy):
    """Killed at 3 of 4 steps: until the next attempt speaks of steps of its own, a quarter."""
    run = plan.runs[0]
    folder = toy.store.create(run.spec)
    first = Attempt.claim(folder, after=0, now=time.time())
    done = Progress(step=3, num_steps=4, tokens_per_s=1.0, loss=2.5)
    first.beat(Heartbeat(beat=9, time=time.time() - 9999, phase="training", progress=done))

    def left() -> tuple[str, float]:
        report = sweep_status(plan, toy.store).runs[0]
        return report.state.status, report.left_s / run.cost.wall_s

    second = Attempt.claim(folder, after=1, now=time.time())
    assert left() == ("running", pytest.approx(0.25))
    second.beat(Heartbeat(beat=1, time=time.time(), phase="starting"))
    assert left() == ("running", pytest.approx(0.25))
    second.end(Outcome(status="interrupted", reason="before its first step", ended=time.time()))
    assert left() == ("interrupted", pytest.approx(0.25))
    third = Attempt.claim(folder, after=2, now=time.time())
    third.end(Outcome(status="diverged", reason="a spike", ended=time.time(), done_frac=0.9))
    Attempt.claim(folder, after=3, now=time.time())
    assert left() == ("running", pytest.approx(1.0)), "after a divergence it begins anew"
