"""A store that can't be written for a minute: ``python benchmarks/read_only.py [--seconds 60]``.

A sweep of toy runs on a file system of its own (needs root), remounted read-only while the sweep is
under way and back after a minute. The kernel refuses that while a file is open for writing, so it
falls between two runs. The driver keeps its own pauses. Afterwards every run must be finished once,
with the record and the curve of an undisturbed sweep. The test suite does the same for two seconds.
"""

import argparse
import ctypes
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweeps"))

from toy_chaos import prepare
from toy_plans import CORPUS, wide_sweep

from model.training.data import prepare_corpus
from model.typed import to_plain
from sweeps.executors.local import LocalExecutor
from sweeps.plan import make_plan
from sweeps.run import run_sweep

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY, MS_REMOUNT = 1, 32
TOY_WORKER = Path(__file__).resolve().parents[1] / "tests" / "sweeps" / "toy_worker.py"

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--seconds", type=float, default=60.0)
parser.add_argument("--seeds", type=int, default=10, help="four runs each")
arguments = parser.parse_args()


def mount(*words: str) -> bool:
    return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0


def remount(folder: Path, flags: int) -> bool:
    """By the system call: the moments in which no file is open for writing are short."""
    return LIBC.mount(b"none", bytes(folder), b"tmpfs", MS_REMOUNT | flags, None) == 0


def executor():
    return LocalExecutor(slots=2, command=(sys.executable, str(TOY_WORKER)))


def measured(store, plan):
    """Of each run: its record, without where and when, and its curve."""
    found = {}
    for run in plan.runs:
        curve = (store.run_dir(run.run_id) / "metrics.jsonl").read_text()
        found[run.run_id] = {**to_plain(store.record(run.run_id)), "provenance": None}, curve
    return found


class Away:
    """Takes the file system away once a run is finished."""

    def __init__(self, disk):
        self.disk, self.events, self.done, self.seconds = disk, Counter(), 0, 0.0
        self.thread = threading.Thread(target=self._act)

    def on_event(self, event):
        self.events[event.kind] += 1
        if event.kind == "finished" and not self.thread.ident:
            self.thread.start()

    def _act(self):
        while not remount(self.disk, MS_RDONLY):
            time.sleep(1e-4)
        began, self.done = time.monotonic(), self.events["finished"]
        time.sleep(arguments.seconds)
        assert remount(self.disk, 0)
        self.seconds = time.monotonic() - began


with tempfile.TemporaryDirectory() as folder:
    root, disk = Path(folder), Path(folder) / "disk"
    disk.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(disk)):
        sys.exit("mounting a file system needs root")
    try:
        corpus = prepare_corpus(CORPUS, root / "data")
        plan = make_plan(wide_sweep(root / "data", arguments.seeds), corpus)
        calm = prepare(root / "calm", steps=10)
        assert run_sweep(plan, calm, executor()).is_complete
        store, away = prepare(disk / "store", steps=10, step_s=0.02), Away(disk)
        began = time.monotonic()
        result = run_sweep(plan, store, executor(), away.on_event)
        wall_s = time.monotonic() - began
        away.thread.join()
        print(
            f"{len(plan.runs)} runs in {wall_s:.1f} s, the store read-only for {away.seconds:.1f} "
            f"s of them, after {away.done} finished runs"
        )
        attempts = [len(list(store.attempts(run.run_id))) for run in plan.runs]
        print(f"events {dict(away.events)}; attempts {sum(attempts)}, at most {max(attempts)}")
        assert result.is_complete, result
        assert measured(store, plan) == measured(calm, plan), "a record or a curve differs"
        print("every run finished once, records and curves identical to an undisturbed sweep's")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)
