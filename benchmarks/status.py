"""How long `windtunnel status` takes, as a user sees it: ``python benchmarks/status.py``.

A store of 10,000 runs is written (of a hundred runs 97 done, one failed, one running, one
interrupted); then the command is started as from a shell, several times. Printed: seconds from the
start of the process to its end, the best and the median, and its processor time.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweeps"))

from toy_plans import CORPUS, wide_sweep

from model.training.data import prepare_corpus
from sweeps.attempt import Attempt, Heartbeat, Outcome, Progress
from sweeps.plan import make_plan
from sweeps.plan_file import write_plan
from sweeps.store import Store

PROGRESS = Progress(step=1, num_steps=2, tokens_per_s=10.0, loss=2.0)


def write_run(store, run, place):
    attempt = Attempt.claim(store.create(run.spec), after=0, now=time.time())
    attempt.beat(Heartbeat(beat=1, time=time.time(), phase="training", progress=PROGRESS))
    status = {0: "failed", 1: "interrupted", 2: None}.get(place % 100, "done")
    if status is not None:
        attempt.end(Outcome(status=status, reason="as planned", ended=time.time()))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--times", type=int, default=7)
    arguments = parser.parse_args()
    os.fsync = lambda descriptor: None  # of the store that is thrown away, not of the command
    with tempfile.TemporaryDirectory() as folder:
        store = Store(Path(folder))
        corpus = prepare_corpus(CORPUS, store.root / "data")
        plan = make_plan(wide_sweep(store.root / "data", arguments.runs // 4), corpus)
        write_plan(plan, store.plan_path(plan.name))
        for place, run in enumerate(plan.runs):
            write_run(store, run, place)
        command = [sys.executable, "-m", "windtunnel.cli", "status", f"root={folder}"]
        walls, before = [], resource.getrusage(resource.RUSAGE_CHILDREN)
        for _ in range(arguments.times):
            began = time.monotonic()
            done = subprocess.run([*command, "sweep=wide"], capture_output=True, text=True)
            walls.append(time.monotonic() - began)
            assert done.returncode == 1, done.stderr
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(done.stdout.splitlines()[0])
        print(
            f"best {min(walls):.2f} s, median {statistics.median(walls):.2f} s, "
            f"{used / arguments.times:.2f} s of processor time"
        )


if __name__ == "__main__":
    main()
