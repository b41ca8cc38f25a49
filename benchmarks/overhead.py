"""What the engine costs by itself: ``python benchmarks/overhead.py [--runs 1000]``.

Runs that train nothing through the local executor: driver time a run (processor seconds of the
driver process, planning left out), seconds a run on the wall with as many slots as cores, and how
long the status of all of them takes.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweeps"))

import toy_worker
from toy_chaos import prepare
from toy_plans import CORPUS, wide_sweep

from model.system import usable_cores
from model.training.data import prepare_corpus
from sweeps.executors.local import LocalExecutor
from sweeps.plan import make_plan
from sweeps.plan_file import skim_plan, write_plan
from sweeps.run import run_sweep
from sweeps.status import sweep_status

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--runs", type=int, default=1000)
parser.add_argument("--plan", type=int, default=100_000, help="runs that are planned, not run")
arguments = parser.parse_args()
num_runs = arguments.runs

with tempfile.TemporaryDirectory() as folder:
    store = prepare(Path(folder), steps=1)
    began = time.process_time()
    corpus = prepare_corpus(CORPUS, store.root / "data")
    plan = make_plan(wide_sweep(store.root / "data", num_runs // 4), corpus)
    write_plan(plan, store.plan_path(plan.name))
    print(f"planned {len(plan.runs)} runs in {time.process_time() - began:.2f} s of processor time")
    began = time.process_time()
    many = make_plan(wide_sweep(store.root / "data", arguments.plan // 4), corpus)
    print(f"planned {len(many.runs)} runs in {time.process_time() - began:.2f} s of processor time")
    del many

    executor = LocalExecutor(slots=usable_cores(), command=(sys.executable, toy_worker.__file__))
    began, began_wall = time.process_time(), time.monotonic()
    result = run_sweep(plan, store, executor)
    driver_s, wall_s = time.process_time() - began, time.monotonic() - began_wall
    assert result.is_complete
    print(
        f"{1e3 * driver_s / len(plan.runs):.1f} ms of driver time and "
        f"{1e3 * wall_s / len(plan.runs):.0f} ms of wall time a run on {executor.slots} slots"
    )
    began, began_wall = time.process_time(), time.monotonic()
    status = sweep_status(skim_plan(store.plan_path(plan.name)), store)
    assert status.is_complete
    print(
        f"status of {len(plan.runs)} runs: {time.process_time() - began:.3f} s of processor time, "
        f"{time.monotonic() - began_wall:.3f} s"
    )
