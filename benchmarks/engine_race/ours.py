"""This engine: ``ours.py FOLDER RUNS SLOTS``, or with other arguments a worker of it.

Claims, heartbeats, driver and publishing are the engine's own; only what is trained is the common
task, which saves after each step how far it is.
"""

# ruff: noqa: E402

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.path.append(str(HERE.parents[2] / "tests" / "sweeps"))
import task
from toy_plans import CORPUS, wide_sweep
from toy_worker import toy_record

from model.training.data import prepare_corpus
from sweeps.attempt import Progress
from sweeps.executors.local import LocalExecutor
from sweeps.files import write_json
from sweeps.grid import replaced
from sweeps.plan import make_plan
from sweeps.plan_file import write_plan
from sweeps.run import run_sweep
from sweeps.store import Store
from sweeps.worker import main


def measure(spec, attempt_dir, report):
    saved = attempt_dir / "checkpoints" / "state.json"
    saved.parent.mkdir(exist_ok=True)
    first = json.loads(saved.read_text())["step"] if saved.exists() else 0

    def done(step):
        write_json(saved, {"step": step}, durable=False)
        report(Progress(step=step, num_steps=task.STEPS, tokens_per_s=1.0, loss=2.0))

    loss = 1 + task.run(attempt_dir.parents[3], spec.train.seed, first, done)
    return toy_record(spec, loss)


def drive(folder, num_runs, slots):
    store = Store(folder)
    one_cell = {"ladder.sizes": 1, "ladder.budgets": 1}
    config = replaced(wide_sweep(folder / "data", num_runs), one_cell)
    plan = make_plan(config, prepare_corpus(CORPUS, folder / "data"))
    assert len(plan.runs) == num_runs
    write_plan(plan, store.plan_path(plan.name))
    executor = LocalExecutor(slots=slots, command=(sys.executable, str(HERE)))
    return 0 if run_sweep(plan, store, executor).is_complete else 1


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[3].isdigit():
        sys.exit(drive(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
    sys.exit(main(measure=measure))
