"""One rank: ``torchrun ... -m model.training.distributed.worker JOB_DIR``.

Reads ``JOB_DIR/job.json``, trains with the other ranks, and rank 0 writes ``JOB_DIR/result.json``.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record

from model.config import ModelConfig
from model.files import write_file
from model.training.config import CorpusConfig, TrainConfig
from model.training.data import prepare_corpus
from model.training.distributed.config import ParallelConfig
from model.training.distributed.train import train
from model.typed import build, to_plain

JOB, RESULT = "job.json", "result.json"


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything a rank needs, besides its place among the others."""

    model: ModelConfig
    train: TrainConfig
    corpus: CorpusConfig
    parallel: ParallelConfig
    data_dir: Path
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = 1


@record
def main(folder: Path) -> None:
    """Be one rank of the job in ``folder``."""
    job = build(Job, json.loads((folder / JOB).read_text(encoding="utf-8")), where=str(folder))
    torch.set_num_threads(job.threads)
    device = torch.device(job.device)
    if job.device == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if job.device == "cuda" else "gloo")
    # For whoever watches the ranks of a job, or wants to end one.
    (folder / f"rank-{dist.get_rank()}.pid").write_text(str(os.getpid()))
    if dist.get_rank() == 0:
        prepare_corpus(job.corpus, job.data_dir)
    dist.barrier()
    corpus = prepare_corpus(job.corpus, job.data_dir)
    result = train(job.model, job.train, corpus, job.parallel, folder, device)
    if dist.get_rank() == 0:
        write_file(folder / RESULT, json.dumps(to_plain(result), indent=1).encode())
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    code = 0
    try:
        main(Path(sys.argv[1]))
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    # At once: the communication of a job that has lost a rank may wait for it for half an hour.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
