"""A terminal that is closed under a driver, for real: its runs are saved as after Ctrl-C."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
import toy_chaos

from sweeps.plan_file import write_plan

pytestmark = pytest.mark.skipif(
    not Path("/proc").exists(), reason="a mark in the environment is read there"
)


def own_the_terminal() -> None:
    toy_chaos.heed_hangup()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def begin(plan, root, *, before=(), **toy):
    """A session, and what starts its driver."""
    store = toy_chaos.prepare(root, step_s=0.02, **toy)
    write_plan(plan, store.plan_path(plan.name))
    session = toy_chaos.Session(plan=plan, store=store, rng=None)
    driver = [sys.executable, str(toy_chaos.DRIVER), str(store.root), plan.name, "2", "1"]

    def start(**how):
        environment = {**os.environ, toy_chaos.MARK: session.mark}
        return subprocess.Popen([*before, *driver], env=environment, **how)

    return session, start


def wait_for_workers(session):
    end = time.monotonic() + 120
    while len(session._workers()) < 2:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_closed_terminal_saves_what_runs(plan, tmp_path):
    session, start = begin(plan, tmp_path, steps=4000)
    ours, its = os.openpty()
    ends = {"stdin": its, "stdout": its, "stderr": its}
    driver = start(**ends, start_new_session=True, preexec_fn=own_the_terminal)
    os.close(its)
    wait_for_workers(session)
    os.close(ours)
    assert driver.wait(timeout=120) == 3
    assert session.orphans() == []
    states = [session.store.state(run.run_id) for run in plan.runs[:2]]
    assert [state.reason for state in states] == ["stopped on request"] * 2


def test_under_nohup_a_sweep_goes_on(plan, tmp_path):
    session, start = begin(plan, tmp_path, before=["nohup"], steps=60)
    with open(tmp_path / "out.txt", "wb") as out:
        driver = start(stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    wait_for_workers(session)
    driver.send_signal(signal.SIGHUP)
    assert driver.wait(timeout=120) == 0, (tmp_path / "out.txt").read_text()
    assert {session.store.state(run.run_id).status for run in plan.runs} == {"done"}
