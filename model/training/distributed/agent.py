"""The ranks of one node, by PyTorch's own agent: ``python -m model.training.distributed.agent``.

One of these runs on every node of a job. They meet at the job's address, start their ranks, and end
them all when one has failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from model.files import write_file
from model.training.distributed.job import JOB, Failure, Job, failure_file
from model.training.stopping import EXIT_INTERRUPTED
from model.typed import build, to_plain

MEETING_S = 600
"""Seconds that the nodes wait for each other."""


def main(folder: Path) -> int:
    """Run the ranks of this node; the exit code."""
    job = build(Job, json.loads((folder / JOB).read_text(encoding="utf-8")), where=str(folder))
    # Slurm's warning reaches every process; the worker that started the job makes a stop file.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    settings = LaunchConfig(
        min_nodes=job.nodes,
        max_nodes=job.nodes,
        nproc_per_node=job.parallel.world_size // job.nodes,
        run_id=f"{job.name}-{folder.name}",
        rdzv_backend="c10d",
        rdzv_endpoint=job.rendezvous,
        rdzv_configs={"timeout": MEETING_S},
        max_restarts=0,
        monitor_interval=0.1,
    )
    lifeline = ("-P", "-m", "model.lifeline", str(os.getpid()), sys.executable)
    rank = ("-P", "-m", "model.training.distributed.worker", str(folder))
    try:
        elastic_launch(settings, sys.executable)(*lifeline, *rank)
    except ChildFailedError as error:
        for number, found in error.failures.items():
            _note(folder, number, found)
        stopped = all(f.exitcode == EXIT_INTERRUPTED for f in error.failures.values())
        return EXIT_INTERRUPTED if stopped else 1
    return 0


def _note(folder: Path, rank: int, found: ProcessFailure) -> None:
    """How a rank ended, unless it has said so itself."""
    path = failure_file(folder, rank)
    if path.exists():
        return
    failure = Failure(
        rank=rank, pid=found.pid, exit_code=found.exitcode, said="", at=found.timestamp
    )
    write_file(path, json.dumps(to_plain(failure)).encode())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
