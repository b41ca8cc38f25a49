"""Checkpoints that many processes write together, and any other number can go on from.

    checkpoints/step-00000120/__0_0.distcp ...   pieces of weights and moments, one file a process
    checkpoints/step-00000120/.metadata          where each piece belongs (DCP's own, a pickle)
    checkpoints/step-00000120/state.json         the rest, the files' sizes, and hashes

Written under another name and renamed by rank 0 when all are done. The pickle is read only after
its hash is found in state.json: it must be the one this program wrote.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from model.files import sync_folder
from model.training.checkpoint import (
    UNFINISHED,
    BrokenCheckpoint,
    checkpoint_paths,
    newest_usable,
    read_body,
    write_body,
)
from model.training.distributed.engine import Engine
from model.training.distributed.stage import NEXT_EMBEDDING

FORMAT = "dcp-1"
MOMENTS = ("exp_avg", "exp_avg_sq")


def save(engine: Engine, folder: Path, step: int, plain: dict[str, Any], *, keep: int) -> None:
    """Write the state after ``step``; every rank calls this. Only the newest ``keep`` stay."""
    unfinished = folder / f"{UNFINISHED}{step:08d}"
    if engine.is_first_rank:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    dcp.save(_tensors(engine), checkpoint_id=unfinished)
    if engine.is_first_rank:
        body = {
            "format": FORMAT,
            "step": step,
            "files": {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())},
            "metadata_sha256": _hash((unfinished / ".metadata").read_bytes()),
            "state": plain,
        }
        write_body(unfinished, body)
        sync_folder(unfinished)
        target = folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(unfinished, target)
        sync_folder(folder)
        for old in checkpoint_paths(folder)[keep:]:
            shutil.rmtree(old)
    dist.barrier()


def load_newest(
    engine: Engine, folder: Path, is_usable: Callable[[dict[str, Any]], str]
) -> dict[str, Any] | None:
    """Restore the newest checkpoint that is whole, into whatever parallel sizes these are.

    Rank 0 looks and tells the others.

    Returns:
        The plain state saved with it; None where there is no checkpoint.
    """
    told: list[Any] = [None]
    if engine.is_first_rank:
        told = [newest_usable(folder, _read, lambda found: is_usable(found[1]["state"]))]
    dist.broadcast_object_list(told, src=0)
    if told[0] is None:
        return None
    path, body = told[0]
    tensors = _tensors(engine)
    dcp.load(tensors, checkpoint_id=path)
    with torch.no_grad():
        for stage in engine.stages.values():
            for name, buffer in stage.named_buffers():
                buffer.copy_(tensors[f"model.{name}"])
    for parameter in engine.module.parameters():
        engine.optimizer.state[parameter]["step"] = torch.tensor(float(body["step"]))
    plain: dict[str, Any] = body["state"]
    return plain


def _tensors(engine: Engine) -> dict[str, Tensor]:
    """This rank's pieces under the names of the whole model's; loading writes into them."""
    tensors: dict[str, Tensor] = {}
    for stage in engine.stages.values():
        tensors |= {f"model.{name}": buffer for name, buffer in stage.named_buffers()}
        for name, parameter in stage.named_parameters():
            # The embedding's copy is the embedding: equal pieces under one name are stored once.
            name = name.replace(NEXT_EMBEDDING, "embedding")
            tensors[f"model.{name}"] = parameter.detach()
            state = engine.optimizer.state[parameter]
            for moment in MOMENTS:
                if moment not in state:
                    state[moment] = torch.zeros_like(parameter.detach())
                tensors[f"optimizer.{moment}.{name}"] = state[moment]
    return tensors


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    """The checkpoint's place and the body of its state.json.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    try:
        body = read_body(path, FORMAT)
    except OSError as error:
        raise BrokenCheckpoint(f"state.json: {error}") from None
    for name, size in body["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise BrokenCheckpoint(f"{name} is missing or cut short")
    if _hash((path / ".metadata").read_bytes()) != body["metadata_sha256"]:
        raise BrokenCheckpoint(".metadata does not match its hash")
    return str(path), body


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
