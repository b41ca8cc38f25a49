"""Workers end with their driver, one failing takes none with it, and forking changes nothing."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import toy_chaos
import toy_worker

from model.errors import ConfigError
from model.system import usable_cores
from model.training.config import RuntimeConfig
from sweeps.attempt import read_outcome
from sweeps.executors import (
    InlineConfig,
    LocalConfig,
    RayConfig,
    SlurmConfig,
    expected_slots,
    make_executor,
    slurm,
)
from sweeps.executors.forkserver import ForkServer
from sweeps.executors.inline import InlineExecutor
from sweeps.executors.local import LocalExecutor, Spawner
from sweeps.plan_file import write_plan
from sweeps.run import run_sweep

HERE = Path(__file__).parent
SHOW = """
import json, os, sys
from pathlib import Path
from sweeps.executors.forkserver import serve
def work(run_dir, after):
    listed = Path(f"/proc/{os.getppid()}/task")
    tasks = len(os.listdir(listed)) if listed.exists() else "not told here"
    facts = {"threads": tasks, "after": after, "parent": os.getppid(),
             "environment": {k: v for k, v in os.environ.items() if k.startswith(("OMP", "CUDA"))}}
    print("noise on standard output", flush=True)
    print("and why it failed", file=sys.stderr)
    (run_dir / "facts.json").write_text(json.dumps(facts))
    if after == 9:
        import time; time.sleep(60)
    return after
if "--serve" in sys.argv:
    import numpy
    sys.exit(serve(work))
sys.exit(work(Path(sys.argv[1]), int(sys.argv[3])))
"""
COMMAND = (sys.executable, "-c", SHOW)


def wait(handle, within_s=120.0):
    end = time.monotonic() + within_s
    while handle.poll() is None:
        assert time.monotonic() < end, "it did not end"
        time.sleep(0.01)
    return handle.poll()


@pytest.fixture
def folders(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    return folders


@pytest.mark.parametrize("starter", [ForkServer, Spawner])
def test_workers_have_their_slot_their_environment_and_their_log(folders, starter):
    executor = LocalExecutor(slots=3, threads=2, gpus=("0", "1"), command=COMMAND, starter=starter)
    handles = [executor.submit(folder, after) for after, folder in enumerate(folders)]
    assert [wait(handle) for handle in handles] == [0, 1, 2]
    executor.close()
    facts = [json.loads((folder / "facts.json").read_text()) for folder in folders]
    assert [fact["environment"]["CUDA_VISIBLE_DEVICES"] for fact in facts] == ["0", "1", "0"]
    assert {fact["environment"]["OMP_NUM_THREADS"] for fact in facts} == {"2"}
    for folder in folders:
        told = (folder / "log.txt").read_text()
        assert told == "noise on standard output\nand why it failed\n"


def test_the_fork_server_has_no_second_thread(folders):
    executor = LocalExecutor(slots=1, threads=2, command=COMMAND, starter=ForkServer)
    assert wait(executor.submit(folders[0], 0)) == 0
    executor.close()
    assert json.loads((folders[0] / "facts.json").read_text())["threads"] in (1, "not told here")


@pytest.mark.parametrize("starter", [ForkServer, Spawner])
def test_a_killed_worker_takes_no_other_with_it_and_frees_its_slot(folders, starter):
    executor = LocalExecutor(slots=2, command=COMMAND, starter=starter)
    hanging = executor.submit(folders[0], 9)
    assert wait(executor.submit(folders[1], 3)) == 3
    hanging.kill()
    assert hanging.poll() == -signal.SIGKILL
    assert wait(executor.submit(folders[1], 4)) == 4
    assert wait(executor.submit(folders[2], 5)) == 5
    executor.close()


def test_a_killed_fork_server_ends_its_workers_and_is_started_again(folders):
    executor = LocalExecutor(slots=2, command=COMMAND, starter=ForkServer)
    hanging = executor.submit(folders[0], 9)
    facts = folders[0] / "facts.json"
    end = time.monotonic() + 120
    while not (facts.exists() and facts.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)
    os.kill(json.loads(facts.read_text())["parent"], signal.SIGKILL)
    assert wait(hanging) == -signal.SIGKILL
    assert wait(executor.submit(folders[1], 7)) == 7
    executor.close()


BLOWS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize(
    ("system", "blow"), [*(("Linux", blow) for blow in BLOWS), ("macOS", signal.SIGKILL)]
)
def test_no_worker_outlives_its_driver(plan, tmp_path, blow, system, request):
    store = toy_chaos.prepare(tmp_path, steps=4000, step_s=0.02)
    session = toy_chaos.Session(plan=plan, store=store, rng=None)
    if system == "macOS":
        request.getfixturevalue("on_a_mac")
        session.environment = request.getfixturevalue("mac_environment")
    write_plan(plan, session.store.plan_path(plan.name))
    driver = session._start_driver()
    end = time.monotonic() + 120
    while len(session._workers()) < 2:
        assert time.monotonic() < end, session.log()
        time.sleep(0.05)
    os.kill(driver.pid, blow)
    code = driver.wait(timeout=120)
    assert session.orphans() == []
    end = time.monotonic() + 120
    # A killed process has lost its command line a moment before the kernel calls it a zombie.
    while "running" in (session.store.state(run.run_id).status for run in plan.runs[:2]):
        assert time.monotonic() < end
        time.sleep(0.01)
    first, second = (session.store.state(run.run_id) for run in plan.runs[:2])
    if blow == signal.SIGKILL:
        assert code == -signal.SIGKILL
        assert "was killed" in first.reason
    else:
        # Told to stop, it stops its workers in order, and they say so.
        assert code == 3
        assert "stopped='asked to stop'" in session.log()
        assert (first.reason, second.reason) == ("stopped on request", "stopped on request")
    assert first.status == second.status == "interrupted"


def test_inline_runs_in_this_very_process(plan, toy, monkeypatch):
    monkeypatch.setattr("sweeps.executors.inline.measure_run", toy_worker.measure)
    result = run_sweep(plan, toy.store, InlineExecutor())
    assert result.is_complete
    assert len(result.finished) == len(plan.runs)
    assert "pulse" not in {thread.name for thread in threading.enumerate()}, "none beats for ever"


def test_slots_follow_the_machine_unless_told(tmp_path):
    runtime = RuntimeConfig(threads=1)
    assert isinstance(make_executor(InlineConfig(), runtime, tmp_path), InlineExecutor)
    assert make_executor(LocalConfig(), runtime, tmp_path).slots == usable_cores()
    assert expected_slots(LocalConfig(), RuntimeConfig(threads=10_000)) == 1
    assert expected_slots(LocalConfig(workers=7), runtime) == 7
    assert expected_slots(LocalConfig(gpus=4, runs_per_gpu=2), runtime) == 8
    assert expected_slots(SlurmConfig(max_parallel=32), runtime) == 32
    assert expected_slots(RayConfig(max_parallel=3), runtime) == 3


def test_several_small_runs_share_each_gpu_that_this_process_may_use(
    folders, tmp_path, monkeypatch
):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7a")  # a share of a bigger machine
    config = LocalConfig(gpus=2, runs_per_gpu=2)
    executor = make_executor(config, RuntimeConfig(threads=1), tmp_path)
    assert executor.slots == 4
    executor._starter = ForkServer(COMMAND, dict(os.environ))
    handles = [executor.submit(folder, 0) for folder in folders]
    assert [wait(handle) for handle in handles] == [0, 0, 0]
    executor.close()
    seen = [
        json.loads((folder / "facts.json").read_text())["environment"]["CUDA_VISIBLE_DEVICES"]
        for folder in folders
    ]
    assert seen == ["5", "GPU-7a", "5"]
    with pytest.raises(ConfigError, match=r"executor.gpus is 3, but CUDA_VISIBLE_DEVICES=5,GPU-7a"):
        make_executor(LocalConfig(gpus=3), RuntimeConfig(threads=1), tmp_path)


@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="no process is bound to a core here"
)
def test_usable_cores_is_at_most_what_the_kernel_gives():
    asked = "import os; from model.system import usable_cores as n; "
    bind = "os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(n())"
    root = HERE.parents[1]
    bound = subprocess.run(
        [sys.executable, "-c", asked + bind], capture_output=True, text=True, check=True, cwd=root
    )
    assert bound.stdout.strip() == "1"


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["training", "starting"])
def test_a_job_whose_worker_was_warned_before_it_is_requeued(toy, plan, tmp_path, phase):
    """Slurm signals the processes of a job one after the other, and may be slow between two."""
    pytest.importorskip("submitit")
    toy.set(steps=4000, step_s=0.05)
    run_dir, exit_path = toy.store.create(plan.runs[0].spec), tmp_path / "exit"
    command = [sys.executable, str(HERE / "warned_job.py"), str(run_dir), str(exit_path), phase]
    job = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    assert job.stdout.splitlines()[-1] == "requeued", job.stdout
    assert not exit_path.exists(), "the driver would take it for ended"
    reasons = [read_outcome(folder).reason for folder in toy.store.attempts(run_dir.name)]
    assert reasons == (["stopped on request"] if phase == "training" else [])


def test_a_record_says_what_was_typed_not_how_its_worker_was_started(toy, plan, tmp_path):
    runtime = RuntimeConfig(data_dir=tmp_path)
    (claimed := toy.store.create(plan.runs[0].spec)).mkdir(exist_ok=True)
    code = (
        "import json, sys; from sweeps.provenance import provenance; from pathlib import Path; "
        "from sweeps.attempt import Attempt; run = Path(sys.argv[1]); "
        "Attempt.claim(run, after=0, now=1.0); "
        "print(json.dumps(provenance(run, attempt=1, threads=1)['command']))"
    )
    make_executor(InlineConfig(), runtime, tmp_path)
    command = [sys.executable, "-c", code, str(claimed)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert json.loads(said) == sys.orig_argv


def test_a_controller_that_hangs_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hangs = tmp_path / "squeue"
    hangs.write_text("#!/bin/sh\nexec sleep 60\n")
    hangs.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "ANSWER_S", 0.3)
    assert slurm._queued_jobs() is None, "nothing is known, so no run is given up"
    assert "squeue: no answer within 0.3 s" in capsys.readouterr().err
