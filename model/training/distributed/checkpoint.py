"""Checkpoints that many processes write together, and any number can go on from, one too.

    checkpoints/step-00000120/__0_0.distcp ...   pieces of weights and moments, one file a process
    checkpoints/step-00000120/.metadata          where each piece belongs (DCP's own, a pickle)
    checkpoints/step-00000120/state.json         the rest, the files' sizes, and hashes

Tensors and state have the names and values of a single process's checkpoint, so each kind of run
goes on from the other's. Written under another name and renamed by rank 0 when all are done. The
pickle is read only after its hash is found in state.json: it must be the one this program wrote.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from model.files import step_folder, sync_folder
from model.training.checkpoint import (
    SHARDED_FORMAT,
    UNFINISHED,
    BrokenCheckpoint,
    Checkpoint,
    checkpoint_paths,
    newest_usable,
    read_body,
    read_checkpoint,
    write_body,
)

OF_A_POINT = "rewind."
"""A tensor to go back to is called ``rewind.2.NAME``: a piece of the same kind as NAME."""


def save(folder: Path, contents: Checkpoint, *, keep: int | None) -> None:
    """Write pieces of all ranks; every rank calls this. Only the newest ``keep`` stay.

    With ``keep`` None all stay, and one of that step that is there already is left alone.
    """
    step = contents.step
    unfinished = folder / f"{UNFINISHED}{step:08d}"
    is_first = dist.get_rank() == 0
    if is_first:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    dist.barrier()
    dcp.save(dict(contents.tensors), checkpoint_id=unfinished)
    if is_first:
        body = {
            "format": SHARDED_FORMAT,
            "step": step,
            "files": {path.name: path.stat().st_size for path in sorted(unfinished.iterdir())},
            "metadata_sha256": _hash((unfinished / ".metadata").read_bytes()),
            "state": contents.state,
        }
        write_body(unfinished, body)
        sync_folder(unfinished)
        _put(unfinished, step_folder(folder, step), replaces=keep is not None)
        sync_folder(folder)
        for old in checkpoint_paths(folder)[keep:] if keep is not None else ():
            shutil.rmtree(old)
    dist.barrier()


def load_newest(
    pieces: Mapping[str, Tensor], folder: Path, is_usable: Callable[[Checkpoint], str]
) -> Checkpoint | None:
    """The newest whole checkpoint, for whatever parallel sizes these are.

    Rank 0 looks and tells the others; ``is_usable`` sees no tensors. One process's checkpoint is
    read whole by every rank.

    Args:
        pieces: this rank's, under the whole model's names; what is loaded is written into them.
        folder: where the checkpoints are.
        is_usable: says why a whole checkpoint can't be gone on from; empty if it can.
    """
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        told = [newest_usable(folder, _look_at, lambda found: is_usable(found[1]))]
    dist.broadcast_object_list(told, src=0)
    if told[0] is None:
        return None
    path, found, is_sharded = told[0]
    if not is_sharded:
        return read_checkpoint(Path(path))
    tensors = {
        name: _piece_like(name, stored, pieces) for name, stored in _held(Path(path)).items()
    }
    # Of another rank's pipeline stage.
    mine = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    dcp.load(mine, checkpoint_id=path)
    return Checkpoint(found.step, mine, found.state)


def read_whole(path: Path, body: Mapping[str, Any]) -> Checkpoint:
    """A sharded checkpoint as one process would have written it.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    _check_files(path, body)
    tensors = {name: _empty(stored) for name, stored in _held(path).items()}
    with warnings.catch_warnings():
        # It says, once more, that one process loads.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return Checkpoint(body["step"], tensors, body["state"])


def _held(path: Path) -> dict[str, TensorStorageMetadata]:
    held = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    return {n: stored for n, stored in held.items() if isinstance(stored, TensorStorageMetadata)}


def _piece_like(
    name: str, stored: TensorStorageMetadata, pieces: Mapping[str, Tensor]
) -> Tensor | None:
    """Where to load a tensor to; None where this rank has no part of it."""
    if name.startswith(OF_A_POINT):
        own = name.split(".", 2)[2]
        if own.startswith("run."):
            return _empty(stored)
        return torch.empty_like(pieces[own]) if own in pieces else None
    if name.startswith("run."):
        return _empty(stored)
    return pieces.get(name)


def _empty(stored: TensorStorageMetadata) -> Tensor:
    return torch.empty(stored.size, dtype=stored.properties.dtype)


def _put(unfinished: Path, target: Path, *, replaces: bool) -> None:
    if replaces:
        shutil.rmtree(target, ignore_errors=True)
    try:
        os.rename(unfinished, target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(unfinished)


def _look_at(path: Path) -> tuple[str, Checkpoint, bool]:
    """The checkpoint's place, its state without tensors, and whether it is sharded.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    try:
        body = read_body(path)
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{error.filename} is missing") from None
    is_sharded = body["format"] == SHARDED_FORMAT
    if is_sharded:
        _check_files(path, body)
    else:
        read_checkpoint(path)
    return str(path), Checkpoint(body["step"], {}, body["state"]), is_sharded


def _check_files(path: Path, body: Mapping[str, Any]) -> None:
    for name, size in body["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise BrokenCheckpoint(f"{name} is missing or cut short")
    if _hash((path / ".metadata").read_bytes()) != body["metadata_sha256"]:
        raise BrokenCheckpoint(".metadata does not match its hash")


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
