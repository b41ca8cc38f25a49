"""A job of several ranks on this machine, by PyTorch's own agent; its end put into words."""

from __future__ import annotations

import json
import signal
import sys
import uuid
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from model.errors import ConfigError, RunFailed
from model.files import write_file
from model.training.distributed.train import require_known
from model.training.distributed.worker import JOB, RESULT, Job
from model.training.stopping import EXIT_INTERRUPTED
from model.typed import build, to_plain


class JobInterrupted(Exception):
    """The job was asked to stop and saved its state; the same call goes on."""


def run_job(job: Job, folder: Path) -> dict[str, Any]:
    """Run ``job`` in ``folder``, from its checkpoints if there are any; the result's plain values.

    Raises:
        ConfigError: it asks for what a run over many processes can't do.
        RunFailed: a rank failed or was killed, and which; the others were ended with it. The same
            call goes on from the last checkpoint.
        JobInterrupted: stopped by SIGTERM and saved.
    """
    require_known(job.train, has_stages=bool(job.corpus.stages))
    job.parallel.check(job.model, job.train)
    folder.mkdir(parents=True, exist_ok=True)
    for left_over in (JOB, RESULT):
        (folder / left_over).unlink(missing_ok=True)
    write_file(folder / JOB, json.dumps(to_plain(job), indent=1).encode())
    ranks = job.parallel.world_size
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(settings, sys.executable)(
            "-m", "model.training.distributed.worker", str(folder)
        )
    except ChildFailedError as error:
        # Where a rank is killed, the others fail with it and may be heard of first.
        killed = [(r, f) for r, f in error.failures.items() if f.exitcode < 0]
        rank, failure = killed[0] if killed else error.get_first_failure()
        if failure.exitcode == EXIT_INTERRUPTED:
            raise JobInterrupted(f"{folder}: saved") from None
        raise RunFailed(folder.name, _reason(rank, ranks, failure)) from None
    result: dict[str, Any] = json.loads((folder / RESULT).read_text(encoding="utf-8"))
    return result


def _reason(rank: int, ranks: int, failure: ProcessFailure) -> str:
    who = f"rank {rank} of {ranks} (process {failure.pid})"
    if failure.exitcode < 0:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    else:
        what = failure.message
        said = what.get("message", "") if isinstance(what, dict) else str(what)
        how = f"failed with exit code {failure.exitcode}: {said}"
    return f"{who} {how}; the job ended with it, run it again to go on from its checkpoint"


if __name__ == "__main__":
    where = Path(sys.argv[1])
    told = json.loads((where / JOB).read_text(encoding="utf-8"))
    try:
        run_job(build(Job, told, where=str(where)), where)
    except (ConfigError, RunFailed) as error:
        sys.exit(str(error))
