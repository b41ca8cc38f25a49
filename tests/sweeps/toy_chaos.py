"""Disturb a sweep at random with real signals, until it is done; then count what is there.

Shared by the test (a short session) and ``benchmarks/chaos.py`` (a long one).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from model.typed import to_plain
from sweeps.attempt import read_claim
from sweeps.liveness import known_dead
from sweeps.plan import Plan
from sweeps.plan_file import write_plan
from sweeps.store import Store

DRIVER = Path(__file__).parent / "toy_driver.py"
MARK = "WINDTUNNEL_CHAOS"


def heed_hangup() -> None:
    """Before a driver starts: the tests may run under nohup, whose children ignore SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass
class Session:
    """One disturbed sweep."""

    plan: Plan
    store: Store
    rng: random.Random
    num_drivers: int = 2
    slots: int = 2
    pack: int = 1
    """Runs that a worker is given at a time."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    blows: Counter[str] = field(default_factory=Counter)
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    """Of the drivers and their workers."""

    def run(self, num_kills: int, pause_s: float, timeout_s: float) -> None:
        """Strike until ``num_kills`` processes are killed, then let restarted drivers finish.

        Besides the kills some are ended politely, some frozen and woken.
        """
        write_plan(self.plan, self.store.plan_path(self.plan.name))
        drivers: list[subprocess.Popen[bytes]] = []
        end = time.monotonic() + timeout_s
        try:
            while time.monotonic() < end:
                codes = [driver.poll() for driver in drivers]
                if 0 in codes:
                    break
                drivers = [driver for driver in drivers if driver.poll() is None]
                while len(drivers) < self.num_drivers:
                    drivers.append(self._start_driver())
                time.sleep(self.rng.expovariate(1 / pause_s))
                if self.blows["kill"] < num_kills:
                    self._strike()
            else:
                raise TimeoutError(f"not done in {timeout_s} s; the log:\n{self.log()[-3000:]}")
            for driver in drivers:
                driver.wait(timeout=max(1.0, end - time.monotonic()))
        finally:
            for driver in drivers:
                driver.kill()
                driver.wait()

    def orphans(self, within_s: float = 60.0) -> list[str]:
        """Processes of ours that are left although every driver is gone.

        One that was just started notices when it has imported what it needs.
        """
        end = time.monotonic() + within_s
        while self._processes() and time.monotonic() < end:
            time.sleep(0.05)
        return [Path(f"/proc/{pid}/cmdline").read_text() for pid in self._processes()]

    def measured(self) -> dict[str, object]:
        """What each run measured, without where and when."""
        found = {}
        for run in self.plan.runs:
            record = self.store.record(run.run_id)
            assert record is not None, f"{run.run_id} has no record"
            found[run.run_id] = {**to_plain(record), "provenance": None}
        return found

    def curves(self) -> dict[str, list[str]]:
        """The metrics of each run, line by line."""
        return {
            run.run_id: (self.store.run_dir(run.run_id) / "metrics.jsonl").read_text().splitlines()
            for run in self.plan.runs
        }

    def log(self) -> str:
        """What the drivers said."""
        return (self.store.root / "drivers.txt").read_text()

    def _start_driver(self) -> subprocess.Popen[bytes]:
        arguments = [str(self.store.root), self.plan.name, str(self.slots), str(self.pack)]
        with open(self.store.root / "drivers.txt", "ab") as log:
            return subprocess.Popen(
                [sys.executable, str(DRIVER), *arguments],
                env={**self.environment, MARK: self.mark},
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=heed_hangup,
            )

    def _strike(self) -> None:
        """One blow, mostly at a worker in its run, else at any process of the sweep.

        Rarely while no run is under way: a storm that never lets one begin disturbs none.
        """
        workers, every = self._workers(), self._processes()
        at_worker = workers and self.rng.random() < 0.6
        if not every or (not workers and self.rng.random() < 0.8):
            return
        pid = self.rng.choice(workers if at_worker else every)
        blow = self.rng.choice(["kill", "kill", "kill", "freeze", "end"])
        try:
            if blow == "freeze":
                os.kill(pid, signal.SIGSTOP)
                # Longer than the lease, sometimes: then it wakes up after it was taken over.
                time.sleep(self.rng.uniform(0.2, 2.0))
                os.kill(pid, signal.SIGCONT)
            else:
                os.kill(pid, signal.SIGKILL if blow == "kill" else signal.SIGTERM)
        except ProcessLookupError:
            return
        self.blows[blow] += 1

    def _workers(self) -> list[int]:
        """Ids of the workers that hold a run and have saved something of it."""
        found = []
        for run in self.plan.runs:
            attempts = list(self.store.attempts(run.run_id))
            if attempts and not (attempts[-1] / "outcome.json").exists():
                owner = read_claim(attempts[-1]).owner
                if (attempts[-1] / "checkpoints").exists() and not known_dead(owner):
                    found.append(owner.pid)
        return found

    def _processes(self) -> list[int]:
        """Ids of the live processes that carry our mark in their environment."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                environment = (entry / "environ").read_bytes()
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except (OSError, IndexError):
                continue
            if f"{MARK}={self.mark}".encode() in environment and state not in "ZX":
                found.append(int(entry.name))
        return found


def prepare(root: Path, **settings: object) -> Store:
    """A store with the toy's settings beside it."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "toy.json").write_text(json.dumps(settings))
    return Store(root)
