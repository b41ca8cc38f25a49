"""Forked ranks that meet over gloo, for the scripts that tests start."""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def on_ranks(count, work):
    """What ``work(rank)`` returns on each of ``count`` ranks of one thread, by way of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_one_of, (count, folder, work), nprocs=count, start_method="fork")
        return [json.loads(Path(f"{folder}/out.{rank}").read_text()) for rank in range(count)]


def _one_of(rank, count, folder, work):
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=count
        )
        torch.set_num_threads(1)
        Path(f"{folder}/out.{rank}").write_text(json.dumps(work(rank)))
        dist.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    # Gloo's threads may still run when the interpreter tears down, and then abort it.
    sys.stdout.flush()
    os._exit(0)
