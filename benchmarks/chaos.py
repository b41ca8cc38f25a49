"""A long storm over a sweep: ``python benchmarks/chaos.py [--kills 100]``.

Two drivers share one store; drivers, fork servers and workers are killed (SIGKILL) at random, a
hundred times, and in between ended (SIGTERM) or frozen beyond their lease (SIGSTOP, then SIGCONT).
Afterwards every run must be finished exactly once, with the record and the curve of an undisturbed
sweep, and no process may be left. The test suite runs a short session of the same.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "sweeps"))

from toy_chaos import Session, prepare
from toy_plans import CORPUS, wide_sweep

from model.training.data import prepare_corpus
from sweeps.plan import make_plan

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--kills", type=int, default=100)
parser.add_argument("--seeds", type=int, default=16, help="four runs each")
parser.add_argument("--pack", type=int, default=1, help="runs a worker is given at a time")
parser.add_argument("--seed", type=int, default=0, help="of the storm")
arguments = parser.parse_args()

with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    corpus = prepare_corpus(CORPUS, root / "data")
    plan = make_plan(wide_sweep(root / "data", arguments.seeds), corpus)
    rng = random.Random(arguments.seed)
    calm = Session(plan=plan, store=prepare(root / "calm", steps=40), rng=rng, num_drivers=1)
    began = time.monotonic()
    calm.run(num_kills=0, pause_s=0.2, timeout_s=600)
    print(f"undisturbed: {len(plan.runs)} runs in {time.monotonic() - began:.1f} s")
    store = prepare(root / "stormy", steps=40, step_s=0.1)
    stormy = Session(plan=plan, store=store, rng=rng, pack=arguments.pack)
    began = time.monotonic()
    stormy.run(num_kills=arguments.kills, pause_s=0.3, timeout_s=3600)
    attempts = [len(list(stormy.store.attempts(run.run_id))) for run in plan.runs]
    print(f"disturbed: {dict(stormy.blows)} in {time.monotonic() - began:.1f} s")
    assert stormy.blows["kill"] == arguments.kills, "it was over before the storm was"
    print(f"attempts: {sum(attempts)} for {len(attempts)} runs, at most {max(attempts)}")
    assert stormy.measured() == calm.measured(), "a record differs"
    assert stormy.curves() == calm.curves(), "a curve differs"
    assert stormy.orphans() == [], "a process is left"
    print("every run finished once, records and curves identical, no process left")
