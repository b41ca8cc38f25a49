"""Runs through a real Ray of two workers on this machine."""

import importlib.util
import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from sweeps import run as run_module
from sweeps.attempt import attempt_dir, read_claim, read_outcome
from sweeps.budget import Budget
from sweeps.executors import RayConfig
from sweeps.executors.ray import RayExecutor
from sweeps.liveness import known_dead
from sweeps.packing import ALONE
from sweeps.run import run_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="no Ray: pip install ray"),
    pytest.mark.filterwarnings("ignore"),  # Ray's own, on import and on ending its processes
]

COMMAND = (sys.executable, str(Path(__file__).parent / "toy_worker.py"))


def test_a_killed_worker_a_stopped_one_and_the_rest(plan, toy, monkeypatch):
    """One cluster for all of it: starting one takes seconds."""
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.1,) * 4)
    monkeypatch.setattr(run_module, "PROGRESS_S", 0.1)
    executor = RayExecutor(RayConfig(max_parallel=2), command=COMMAND)
    first, second = plan.runs[0].run_id, plan.runs[1].run_id
    toy.set(steps=30, hold={first: [10]})
    killed, beside = [], []

    def kill_the_first_once(event):
        if event.kind == "started":
            beside.append(event.run.run_id)
        if event.kind == "progress" and event.run.run_id == first and not killed:
            killed.append(event.progress.step)
            folder = attempt_dir(toy.store.run_dir(first), event.attempt)
            os.kill(read_claim(folder).owner.pid, signal.SIGKILL)

    # The store says which runs are over; closing the cluster is left to the end of this test.
    monkeypatch.setattr(executor, "close", lambda: None)
    two = replace(plan, runs=plan.runs[:2])
    result = run_sweep(two, toy.store, executor, kill_the_first_once)
    assert set(result.finished) == {first, second}
    assert killed
    assert len(list(toy.store.attempts(first))) == 2
    assert len(list(toy.store.attempts(second))) == 1
    assert beside[:2] == [first, second]
    for name in (first, second):
        lines = (toy.store.run_dir(name) / "metrics.jsonl").read_text().splitlines()
        assert len(lines) == 30

    toy.set(steps=4000, step_s=0.05)
    third = plan.runs[2]
    driver = run_module._Driver(
        replace(plan, runs=(third,)),
        toy.store,
        executor,
        lambda event: driver.stop.set() if event.kind == "progress" else None,
        (),
        Budget(),
        ALONE,
        20.0,
    )
    assert driver.drive().stopped == "asked to stop"
    (attempt,) = toy.store.attempts(third.run_id)
    worker = read_claim(attempt).owner
    end = time.monotonic() + 30  # the cluster may say that a task is over before its worker is
    while not known_dead(worker) and time.monotonic() < end:
        time.sleep(0.1)
    assert known_dead(worker), "a worker outlived its task"
    # A cluster that kills the task first leaves no word of it: the run goes on all the same.
    outcome = read_outcome(attempt)
    assert outcome is None or outcome.reason == "stopped on request"
    assert toy.store.record(third.run_id) is None
    monkeypatch.undo()
    executor.close()
