"""Ray Tune over a grid: ``ray_tune.py FOLDER RUNS SLOTS``; goes on with what an earlier one left.

With the switches its documentation gives for that: ``resume_unfinished`` and ``restart_errored``.
"""

import sys
from pathlib import Path

import ray
from ray import tune

FOLDER, RUNS, SLOTS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def trainable(config):
    import task

    tune.report({"loss": task.run(FOLDER, config["number"])})


ray.init(
    num_cpus=SLOTS,
    include_dashboard=False,
    runtime_env={"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent)}},
)
STORAGE = FOLDER / "tune"
if tune.Tuner.can_restore(str(STORAGE / "sweep")):
    tuner = tune.Tuner.restore(
        str(STORAGE / "sweep"), trainable, resume_unfinished=True, restart_errored=True
    )
else:
    tuner = tune.Tuner(
        trainable,
        param_space={"number": tune.grid_search(list(range(RUNS)))},
        tune_config=tune.TuneConfig(max_concurrent_trials=SLOTS),
        run_config=tune.RunConfig(name="sweep", storage_path=str(STORAGE)),
    )
results = tuner.fit()
sys.exit(1 if results.num_errors else 0)
