"""A driver to be killed: ``toy_driver.py ROOT SWEEP SLOTS PACK`` runs a plan with toy workers.

It ends with 0 if all is done, with 3 if it was told to stop and did so in order.
"""

import sys
from pathlib import Path

from sweeps import retries, run
from sweeps.executors.local import LocalExecutor
from sweeps.packing import Packing
from sweeps.plan_file import read_plan
from sweeps.store import Store

retries.BACKOFF_S = (0.05,) * 1000
run.PROGRESS_S = 0.1

root, sweep, slots, pack = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = Store(root)
toy_worker = Path(__file__).parent / "toy_worker.py"
result = run.run_sweep(
    read_plan(store.plan_path(sweep)),
    store,
    LocalExecutor(slots=slots, command=(sys.executable, str(toy_worker))),
    lambda event: print(event.kind, event.run.run_id, event.attempt, event.reason, flush=True),
    packing=Packing(most=pack),
    lease_s=1.0,
)
print(result, flush=True)
sys.exit(0 if result.is_complete else 3 if result.stopped else 1)
