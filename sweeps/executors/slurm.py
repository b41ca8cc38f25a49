"""Runs as Slurm jobs, through submitit: the only file that knows either.

A job is one run. It starts the same worker process as everywhere, and goes on without the driver.
Before its time limit, and where pre-emption warns, Slurm sends SIGUSR2: the worker saves its run
and stops, the job goes back into the queue by itself, and continues from the checkpoint on
whichever node it gets next. A job that was ended without warning (its node was lost, it was
pre-empted) and that Slurm starts again does the same as soon as the attempt before is known to be
over.

Jobs handed in together form one array. How a job ended is told by the run's own folder; the
worker's exit code, written beside, only tells kinds of trouble apart. Whether a job still lives is
asked of ``squeue``, for all jobs at once, so that no accounting database is needed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.wording import counted
from model.errors import ConfigError
from model.files import write_atomic
from model.training.environment import worker_environment
from sweeps.executors.local import PACKAGES, WORKER_COMMAND, SpawnedWorker, Spawner
from sweeps.spread import NODE_COMMAND_VARIABLE, Spread
from sweeps.trouble import EXIT_OVER, EXIT_STOPPED

if TYPE_CHECKING:
    from sweeps.executors.config import SlurmConfig

LOOK_S = 0.2
"""Seconds between a job's looks at its worker."""
WARNED_S = 5.0
"""A warning goes to every process of a job, one after the other: within these seconds it reaches
the job's own too, after the worker it was quicker with."""
GONE_S = 30.0
"""Seconds within which a cancelled job must have left the queue."""
ANSWER_S = 60.0
"""Seconds for Slurm's controller to answer: a busy one takes some, one that hangs never does."""
REASONS = ("squeue", "--me", "--noheader", "--array", "--format=%i %T %r")
UNDECIDED = ("None", "BeginTime")
"""Reasons of a job that Slurm has not looked at yet, or puts off itself."""
QUEUE = ("squeue", "--me", "--noheader", "--array", "--format=%i")
MOST_REQUEUES = 10_000
"""A run that takes longer than its time limit is requeued as often as it takes."""


class WorkerJob:
    """What a job does: one worker process, from start to end, across requeues."""

    def __init__(
        self,
        run_dir: Path,
        after: int,
        exit_path: Path,
        threads: int,
        command: Sequence[str],
        node_command: Sequence[str] = (),
    ) -> None:
        self.run_dir = run_dir
        self.after = after
        self.exit_path = exit_path
        self.threads = threads
        self.command = tuple(command)
        self.node_command = tuple(node_command)
        self._worker: SpawnedWorker | None = None
        self._is_cancelled = False

    def __call__(self) -> None:
        """Run the worker and write down its exit code."""
        from sweeps.store import Store

        after: int | None = self.after
        if int(os.environ.get("SLURM_RESTART_COUNT", "0")):
            # Started again: after our own attempt, unless the run is over by now.
            state = Store(self.run_dir.parents[1]).state(self.run_dir.name)
            if state.status in ("done", "failed", "diverged"):
                return self._end(EXIT_OVER)
            after = None
        environment = {**os.environ, **worker_environment(self.threads)}
        environment[NODE_COMMAND_VARIABLE] = json.dumps(self.node_command)
        spawner = Spawner(self.command, environment)
        signal.signal(signal.SIGTERM, self._be_cancelled)
        self._worker = spawner.start(self.run_dir, after, {})
        while (code := self._worker.poll()) is None:
            time.sleep(LOOK_S)
        if code in (EXIT_STOPPED, -signal.SIGUSR2):  # the latter: warned while it was starting
            self._await_the_warning()
        return self._end(code)

    def _await_the_warning(self) -> None:
        """Where the worker stopped on Slurm's warning, ours comes within this and requeues the job:
        :meth:`checkpoint` is called, and nothing comes after it.
        """
        end = time.monotonic() + WARNED_S
        while not self._is_cancelled and time.monotonic() < end:
            time.sleep(LOOK_S)

    def _be_cancelled(self, *_: object) -> None:
        """On SIGTERM, which the worker gets as well."""
        self._is_cancelled = True

    def checkpoint(self) -> Any:
        """Called by submitit on SIGUSR2: the worker saves and stops, the job is requeued."""
        from submitit.helpers import DelayedSubmission

        if self._worker is not None:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._worker.pid, signal.SIGTERM)
                # Not Popen.wait: the poll that this signal came between may hold its lock.
                os.waitid(os.P_PID, self._worker.pid, os.WEXITED | os.WNOWAIT)
        again = (self.run_dir, self.after, self.exit_path, self.threads, self.command)
        return DelayedSubmission(WorkerJob(*again, self.node_command))

    def _end(self, code: int) -> None:
        write_atomic(self.exit_path, str(code).encode())


class SlurmHandle:
    """One job, or one that is about to be handed in."""

    def __init__(self, executor: SlurmExecutor, job: WorkerJob) -> None:
        self.job = job
        self.job_id: str | None = None
        self._executor = executor

    def poll(self) -> int | None:
        """The worker's exit code; -9 of a job that is gone without one; None while it lives."""
        if self._executor.is_alive(self):
            return None
        try:
            return int(self.job.exit_path.read_text())
        except FileNotFoundError:
            return -signal.SIGKILL

    def cancel(self) -> None:
        """Have Slurm ask it to stop; one that waits in the queue just leaves it."""
        self._executor.scancel(self)

    def kill(self) -> None:
        """End it now; returns when it is gone."""
        self._executor.scancel(self, "--signal=KILL", "--full")
        self._executor.scancel(self)
        end = time.monotonic() + GONE_S
        while self._executor.is_alive(self, at_once=True) and time.monotonic() < end:
            time.sleep(LOOK_S)


class SlurmExecutor:
    """``config.max_parallel`` runs at a time in Slurm's queue, waiting or running."""

    def __init__(
        self,
        config: SlurmConfig,
        folder: Path,
        *,
        threads: int = 1,
        command: Sequence[str] = WORKER_COMMAND,
        spread: Spread | None = None,
    ) -> None:
        try:
            import submitit
        except ImportError:
            raise ConfigError(
                "executor=slurm needs the package submitit: pip install 'windtunnel-moe[slurm]'"
            ) from None
        self.slots = config.max_parallel
        self._folder = folder.resolve()
        self._poll_s = config.poll_s
        self._threads = threads
        self._command = command
        cores = threads * (spread.ranks_per_node if spread else 1)
        self._nodes = spread.nodes if spread else 1
        self._waiting: list[SlurmHandle] = []
        self._alive: set[str] = set()
        self._handed_in: set[str] = set()
        self._looked_at = 0.0
        try:
            self._slurm = submitit.SlurmExecutor(self._folder, max_num_timeout=MOST_REQUEUES)
        except RuntimeError as error:
            raise ConfigError(f"executor=slurm: {error}; start the sweep on a login node") from None
        _check_that_a_cluster_answers()
        self._slurm.update_parameters(**_parameters(config, cores, self._nodes))

    def submit(self, run_dir: Path, after: int) -> SlurmHandle:
        """Have a job for the run handed in with the next look at the jobs."""
        exit_path = self._folder / f"{uuid.uuid4().hex}.exit"
        job = WorkerJob(
            run_dir.resolve(),
            after,
            exit_path,
            self._threads,
            self._command,
            _node_command(self._nodes) if self._nodes > 1 else (),
        )
        handle = SlurmHandle(self, job)
        self._waiting.append(handle)
        return handle

    def waits_for(self) -> str:
        """The reasons that Slurm gives for this driver's jobs, those of an array counted each."""
        lines = [line.split(maxsplit=2) for line in (_answer(REASONS) or "").splitlines()]
        reasons = Counter(
            reason
            for job_id, state, reason in lines
            if job_id in self._handed_in and state == "PENDING" and reason not in UNDECIDED
        )
        if not reasons:
            return ""
        told = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        return (
            f"Slurm holds {counted(reasons.total(), 'job', 'jobs')} back: {told}. Resources and "
            "Priority pass by themselves; for another reason see `squeue --me`, and `sinfo` for "
            "what the nodes of a partition have (executor.partition, gres, memory_gb, threads)"
        )

    def close(self) -> None:
        """Nothing is held."""

    def is_alive(self, handle: SlurmHandle, *, at_once: bool = False) -> bool:
        """Whether the job is in the queue or running, as of at most ``poll_s`` ago."""
        self._hand_in()
        now = time.monotonic()
        if at_once or now - self._looked_at >= self._poll_s:
            self._looked_at = now
            queued = _queued_jobs()
            if queued is not None:  # the controller may be away for a while: nothing is known then
                self._alive = queued
        return handle.job_id in self._alive

    def scancel(self, handle: SlurmHandle, *options: str) -> None:
        """Cancel a job, or forget one that was not handed in."""
        if handle in self._waiting:
            self._waiting.remove(handle)
        elif handle.job_id is not None:
            _answer(["scancel", "--quiet", *options, handle.job_id])

    def _hand_in(self) -> None:
        """All jobs that wait, as one array."""
        if not self._waiting:
            return
        from submitit.core.utils import FailedJobError

        handles, self._waiting = self._waiting, []
        try:
            jobs = self._slurm.submit_array([handle.job for handle in handles])
        except FailedJobError as error:
            lines = [line for line in str(error).splitlines() if "sbatch" in line] or [str(error)]
            raise ConfigError(
                f"Slurm refuses the job: {lines[-1].strip()}; `sinfo` lists the partitions and "
                "what their nodes have (executor.partition, gres, constraint, memory_gb)"
            ) from None
        for handle, job in zip(handles, jobs, strict=True):
            handle.job_id = job.job_id
            self._alive.add(job.job_id)
            self._handed_in.add(job.job_id)


def _node_command(nodes: int) -> tuple[str, ...]:
    """A step beside the worker's own, with all that the job was given on every node."""
    return (
        "srun",
        "--overlap",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        "--kill-on-bad-exit=1",
    )


def _parameters(config: SlurmConfig, cores: int, nodes: int) -> dict[str, Any]:
    """Our options in the words of submitit's; what is null is left to the cluster."""
    path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
    asked = {
        "job_name": "windtunnel",
        "time": config.minutes,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "gres": config.gres,
        "constraint": config.constraint,
        "mem": f"{config.memory_gb:g}G" if config.memory_gb else None,
        "cpus_per_task": cores,
        "signal_delay_s": config.stop_s,
        "setup": [f"export PYTHONPATH={path}", *config.setup],
        "additional_parameters": {"requeue": True},
    }
    if nodes > 1:
        # One worker a job, on its first node; it has the ranks of all of them started.
        asked |= {"nodes": nodes, "ntasks_per_node": 1, "srun_args": ["--nodes=1", "--ntasks=1"]}
    return {name: value for name, value in asked.items() if value is not None}


def _check_that_a_cluster_answers() -> None:
    """Before any run is handed in: Slurm's commands may be installed where there is no cluster."""
    try:
        done = _ask(QUEUE)
    except subprocess.TimeoutExpired:
        why = f"no answer within {ANSWER_S:g} s"
    else:
        if not done.returncode:
            return
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    raise ConfigError(
        f"executor=slurm: squeue says {why!r}; start the sweep where `squeue --me` answers, on a "
        "login node of the cluster"
    )


def _queued_jobs() -> set[str] | None:
    """Ids of this user's jobs that wait, run or end just now; None if nobody answers."""
    answer = _answer(QUEUE)
    return None if answer is None else set(answer.split())


def _ask(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=ANSWER_S)


def _answer(command: Sequence[str]) -> str | None:
    """What Slurm's controller answers; None, said, if it refuses or is silent."""
    try:
        done = _ask(command)
    except subprocess.TimeoutExpired:
        print(f"{command[0]}: no answer within {ANSWER_S:g} s", file=sys.stderr)
        return None
    if done.stderr.strip():
        print(f"{command[0]}: {done.stderr.strip()}", file=sys.stderr)
    return None if done.returncode else done.stdout
