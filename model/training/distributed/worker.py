"""One rank of a job: ``python -m model.training.distributed.worker FOLDER``, started by an agent.

Reads ``FOLDER/job.json``, trains with the other ranks, and rank 0 writes ``FOLDER/result.json``.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from model.files import write_atomic, write_file
from model.training.data import open_corpus
from model.training.distributed.job import JOB, PROGRESS, RESULT, STOP, Failure, Job, failure_file
from model.training.distributed.share import ShareOfModel
from model.training.run import initial_state, open_run
from model.training.runtime import set_up
from model.training.trainer import train_run
from model.typed import build, to_plain


def main(folder: Path) -> None:
    """Be one rank of the job in ``folder``."""
    job = build(Job, json.loads((folder / JOB).read_text(encoding="utf-8")), where=str(folder))
    device = set_up(job.runtime)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # For whoever watches the ranks of a job, or wants to end one.
    pid = str(os.getpid()).encode()
    write_atomic(folder / f"rank-{dist.get_rank()}.pid", pid, durable=False)
    state = initial_state(job.model, job.train, device)
    learner = ShareOfModel(job.model, job.train, job.parallel, state, device)
    run = open_run(
        learner,
        job.train,
        open_corpus(job.runtime.data_dir, job.corpus_fingerprint),
        job.runtime.tracker,
        folder,
        name=job.name,
        snapshots_dir=job.snapshots_dir,
        trunk_dir=job.trunk_dir,
    )
    for span in run.spans:
        job.parallel.check_batch(job.train, span.sequence_length)
    tell = (lambda step, _, speed: _tell(folder, step, speed)) if learner.is_first else None
    result = train_run(run, tell, (folder / STOP).exists)
    if learner.is_first:
        write_file(folder / RESULT, json.dumps(to_plain(result), indent=1).encode())
    dist.barrier()
    dist.destroy_process_group()


def leave_word(folder: Path, error: BaseException) -> None:
    """Say why this rank ends, for whoever asks why the job did.

    A whole file or none: the agent may end this rank in the middle of it, and PyTorch's own record
    of an error, half written, brings the agent down in place of naming the rank that was killed.
    """
    rank = int(os.environ["RANK"])
    failure = Failure(
        rank=rank,
        pid=os.getpid(),
        exit_code=1,
        said=f"{type(error).__name__}: {error}",
        at=time.time(),
    )
    write_atomic(failure_file(folder, rank), json.dumps(to_plain(failure)).encode())


def _tell(folder: Path, step: int, tokens_per_s: float) -> None:
    """Replace the job's progress."""
    told = json.dumps([step, tokens_per_s]).encode()
    write_atomic(folder / PROGRESS, told, durable=False)


if __name__ == "__main__":
    code, folder = 0, Path(sys.argv[1])
    try:
        main(folder)
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException as error:
        code = 1
        traceback.print_exc()
        leave_word(folder, error)
    # At once: the communication of a job that has lost a rank may wait for it for half an hour.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
