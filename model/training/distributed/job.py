"""A job of several ranks, started and followed until it is over; its end put into words. No torch.

    FOLDER/job.json        what to train and how it is spread
    FOLDER/progress.json   how far rank 0 is
    FOLDER/stop            made by whoever wants the run saved and ended
    FOLDER/failure-N.json  how rank N ended: in its own words, or by its agent where it left none
    FOLDER/result.json     what the run measured

Files and not signals: they reach the ranks of every node alike.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.config import ModelConfig, require
from model.errors import RunFailed
from model.files import write_file
from model.training.config import RuntimeConfig, TrainConfig
from model.training.distributed.config import ParallelConfig
from model.training.evaluation import DomainLoss, LayerLoad
from model.training.progress import OnProgress
from model.training.result import TrainResult
from model.training.stopping import EXIT_INTERRUPTED
from model.typed import to_plain

JOB, PROGRESS, STOP, RESULT = "job.json", "progress.json", "stop", "result.json"
FAILURES = "failure-*.json"
LOOK_S = 0.2
"""Seconds between looks at a job."""


class RankLost(RuntimeError):
    """A rank was killed from outside; the same job goes on from its last checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a rank needs, besides its place among the others."""

    name: str
    """Of the run."""
    model: ModelConfig
    train: TrainConfig
    corpus_fingerprint: str
    """Of a corpus that lies prepared in the runtime's ``data_dir``."""
    runtime: RuntimeConfig
    parallel: ParallelConfig
    nodes: int = 1
    """Machines, each with as many ranks."""
    rendezvous: str = "localhost:0"
    """Where the agents of several nodes meet: a host and a port of the first of them."""
    snapshots_dir: Path
    trunk_dir: Path | None = None

    def __post_init__(self) -> None:
        require(
            self.parallel.world_size % self.nodes == 0,
            f"nodes ({self.nodes}) must divide the {self.parallel.world_size} processes",
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """How a rank ended, by itself or as the agent of its node saw it."""

    rank: int
    pid: int
    exit_code: int
    """Negative for a signal."""
    said: str
    at: float
    """Seconds since 1970."""

    @property
    def was_killed(self) -> bool:
        """From outside."""
        return self.exit_code < 0 and not self.was_taken_along

    @property
    def was_taken_along(self) -> bool:
        """Ended by its agent because another rank had failed."""
        return self.exit_code == -signal.SIGTERM

    @property
    def place(self) -> tuple[bool, bool, float]:
        """In an order whose first is the cause.

        Where a rank is killed, the others fail with it and may be heard of first; and those times
        are whole seconds, so that a rank that was taken along may seem as early as the one that
        failed.
        """
        return (not self.was_killed, self.was_taken_along, self.at)


def failure_file(folder: Path, rank: int) -> Path:
    """Where is said how ``rank`` ended."""
    return folder / f"failure-{rank}.json"


def run_job(
    job: Job, folder: Path, on_progress: OnProgress, node_command: Sequence[str] = ()
) -> TrainResult:
    """Run ``job`` in ``folder``, from its checkpoints if there are any.

    Whatever ``on_progress`` raises ends the job, saved, and goes through; it is called about once a
    second from the start on.

    Args:
        job: what to train.
        folder: on a file system that all nodes see.
        on_progress: called as ``on_progress(step, num_steps, tokens_per_s)``.
        node_command: what starts a command once on each of several nodes (``srun ...``).

    Raises:
        ConfigError: the sizes do not fit the model or the batch.
        RankLost: a rank was killed, and which; the others were ended with it.
        RunFailed: a rank failed, and why.
    """
    job.parallel.check(job.model, job.train)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (JOB, PROGRESS, STOP, RESULT):
        (folder / left_over).unlink(missing_ok=True)
    for failure in folder.glob(FAILURES):
        failure.unlink()
    write_file(folder / JOB, json.dumps(to_plain(job), indent=1).encode())
    agent = (sys.executable, "-P", "-m", "model.training.distributed.agent", str(folder))
    lifeline = (sys.executable, "-P", "-m", "model.lifeline", str(os.getpid()))
    process = subprocess.Popen([*lifeline, *node_command, *agent], stdin=subprocess.DEVNULL)
    try:
        _follow(process, folder, job, on_progress)
    except BaseException:
        (folder / STOP).touch()
        process.wait()
        raise
    if process.returncode != 0:
        raise _as_error(job, folder, process.returncode)
    return _read_result(folder)


def free_address() -> str:
    """This host and a port that nobody listens on, for nodes to meet at."""
    with socket.socket() as one:
        one.bind(("", 0))
        return f"{socket.gethostname()}:{one.getsockname()[1]}"


def _follow(
    process: subprocess.Popen[bytes], folder: Path, job: Job, on_progress: OnProgress
) -> None:
    told = time.monotonic()
    while process.poll() is None:
        time.sleep(LOOK_S)
        if time.monotonic() - told < 1:
            continue
        told = time.monotonic()
        try:
            step, tokens_per_s = json.loads((folder / PROGRESS).read_text())
        except FileNotFoundError:
            step, tokens_per_s = 0, 0.0
        on_progress(step, job.train.num_steps, tokens_per_s)


def _read_result(folder: Path) -> TrainResult:
    plain = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    by_domain = {name: DomainLoss(**loss) for name, loss in plain.pop("by_domain").items()}
    loads = tuple(
        LayerLoad(**{**load, "load": tuple(load["load"])}) for load in plain.pop("load_by_layer")
    )
    for name in ("stages", "rewinds", "fp8_fallen", "computed_by"):
        plain[name] = tuple(plain[name])
    return TrainResult(**plain, by_domain=by_domain, load_by_layer=loads)


def _as_error(job: Job, folder: Path, exit_code: int) -> RuntimeError:
    failures = [Failure(**json.loads(path.read_text())) for path in folder.glob(FAILURES)]
    if not failures:
        return RunFailed(job.name, f"its agent ended with exit code {exit_code}")
    first = min(failures, key=lambda failure: failure.place)
    if first.exit_code == EXIT_INTERRUPTED:
        return RankLost("the job was asked to stop, and is saved")
    who = f"rank {first.rank} of {job.parallel.world_size} (process {first.pid})"
    if not first.was_killed:
        return RunFailed(job.name, f"{who} failed: {first.said or f'exit code {first.exit_code}'}")
    name = signal.Signals(-first.exit_code).name
    return RankLost(f"{who} was killed by {name}, and the job ended with it")
