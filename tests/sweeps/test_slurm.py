"""Runs through a real Slurm of one node: arrays, requeues, pre-emption, cancelling, refusals."""

import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import toy_slurm

from model.errors import ConfigError
from sweeps import run as run_module
from sweeps.attempt import read_outcome
from sweeps.budget import Budget
from sweeps.executors import SlurmConfig
from sweeps.executors.slurm import SlurmExecutor
from sweeps.packing import ALONE
from sweeps.run import run_sweep

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(toy_slurm.missing()), reason=f"no Slurm: {toy_slurm.missing()}"),
    # submitit leaves the closing of its log files to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = toy_slurm.ToySlurm(tmp_path_factory.mktemp("slurm"))
    is_over = threading.Event()

    def hurry():
        while not is_over.wait(0.5):
            slurm.hurry()

    hurrying = threading.Thread(target=hurry)
    hurrying.start()
    yield slurm
    is_over.set()
    hurrying.join()
    slurm.end()


@pytest.fixture
def executor(slurm, toy, monkeypatch):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.1,) * 4)
    monkeypatch.setattr(run_module, "PROGRESS_S", 0.1)

    def make(**settings):
        config = SlurmConfig(**{"max_parallel": 4, "minutes": 5, "poll_s": 0.3, **settings})
        command = (sys.executable, str(HERE / "toy_worker.py"))
        return SlurmExecutor(config, toy.store.root / "slurm", command=command)

    yield make
    assert toy_slurm.ask("squeue", "--noheader") == ""


def once_under_way(toy, run, action):
    """Do ``action`` in a thread as soon as the run has saved something."""

    def act():
        end = time.monotonic() + 300
        saved = "attempts/0001/checkpoints/state.json"
        while not (toy.store.run_dir(run.run_id) / saved).exists():
            assert time.monotonic() < end
            time.sleep(0.05)
        action()

    thread = threading.Thread(target=act)
    thread.start()
    return thread


def only_job() -> str:
    return toy_slurm.ask("squeue", "--noheader", "--format=%i").split()[0]


def steps_of(toy, run):
    return (toy.store.run_dir(run.run_id) / "metrics.jsonl").read_text().splitlines()


def test_a_sweep_runs_as_arrays_of_jobs(plan, toy, executor):
    runs = plan.runs[:3]
    result = run_sweep(replace(plan, runs=runs), toy.store, executor())
    assert sorted(result.finished) == sorted(run.run_id for run in runs)
    for run in runs:
        assert toy.store.record(run.run_id) is not None
        assert len(list(toy.store.attempts(run.run_id))) == 1
    jobs = {path.name.split("_")[0] for path in (toy.store.root / "slurm").glob("*submitted.pkl")}
    assert len(jobs) == 1, "they were not handed in together"


def test_before_its_time_limit_a_run_is_saved_requeued_and_goes_on(plan, toy, executor):
    run = plan.runs[0]
    toy.set(steps=30, step_s=0.1, hold={run.run_id: [10]})
    warned = once_under_way(toy, run, lambda: toy_slurm.ask("scancel", "--signal=USR2", only_job()))
    events = []
    result = run_sweep(replace(plan, runs=(run,)), toy.store, executor(), events.append)
    warned.join()
    assert result.finished == (run.run_id,)
    first, _ = toy.store.attempts(run.run_id)
    assert read_outcome(first).reason == "stopped on request"
    assert len(steps_of(toy, run)) == 30
    # Slurm did it by itself: for the driver it is one job from start to end.
    assert [event.kind for event in events if event.kind != "progress"] == ["started", "finished"]
    assert any(event.attempt == 2 for event in events if event.kind == "progress")


def test_a_preempted_run_goes_on_when_its_turn_comes_again(plan, toy, executor):
    run = plan.runs[0]
    toy.set(steps=20, hold={run.run_id: [10]})
    urgent = ("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    preempted = once_under_way(toy, run, lambda: toy_slurm.ask(*urgent))
    result = run_sweep(replace(plan, runs=(run,)), toy.store, executor())
    preempted.join()
    assert result.finished == (run.run_id,)
    assert len(list(toy.store.attempts(run.run_id))) == 2
    assert len(steps_of(toy, run)) == 20
    while toy_slurm.ask("squeue", "--noheader"):
        time.sleep(0.1)


def test_a_killed_job_is_noticed_and_tried_again(plan, toy, executor):
    run = plan.runs[0]
    toy.set(steps=20, hold={run.run_id: [10]})
    killed = once_under_way(
        toy, run, lambda: toy_slurm.ask("scancel", "--signal=KILL", "--full", only_job())
    )
    events = []
    result = run_sweep(replace(plan, runs=(run,)), toy.store, executor(), events.append)
    killed.join()
    assert result.finished == (run.run_id,)
    assert "interrupted" in [event.kind for event in events]
    assert len(steps_of(toy, run)) == 20


def test_a_stopped_driver_takes_its_jobs_out_of_the_queue(plan, toy, executor):
    toy.set(steps=4000, step_s=0.05)
    driver = run_module._Driver(
        replace(plan, runs=plan.runs[:3]),
        toy.store,
        executor(),
        lambda event: None,
        (),
        Budget(),
        ALONE,
        20.0,
    )
    stopped = once_under_way(toy, plan.runs[0], driver.stop.set)
    result = driver.drive()
    stopped.join()
    assert result.stopped == "asked to stop"
    assert toy.store.state(plan.runs[0].run_id).reason == "stopped on request"


def test_what_slurm_refuses_is_one_clear_line(plan, toy, executor):
    with pytest.raises(ConfigError, match=r"Slurm refuses the job: .*partition"):
        run_sweep(plan, toy.store, executor(partition="nowhere"))
