"""Checkpoints that many processes write together, and any number can go on from, one too.

    checkpoints/step-00000120/__0_0.distcp ...   pieces of weights and moments, one file a process
    checkpoints/step-00000120/.metadata          where each piece belongs (DCP's own, a pickle)
    checkpoints/step-00000120/state.json         the rest, and the files' sizes and hashes

Tensors and state have the names and values of a single process's checkpoint, so each kind of run
goes on from the other's. Written under another name and renamed by rank 0 when all are done. The
pickle is read only after its hash is found in state.json, and may name nothing but its own parts.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from model.files import durable_folder, sync_folder
from model.training.checkpoint import (
    SHARDED_FORMAT,
    UNFINISHED,
    BrokenCheckpoint,
    Checkpoint,
    checkpoint_paths,
    newest_usable,
    put_in_place,
    read_body,
    read_checkpoint,
    remove_broken,
    write_body,
)
from model.training.distributed.index import CheckedReader

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
        durable_folder(folder)
        unfinished.mkdir()
    dist.barrier()
    dcp.save(dict(contents.tensors), checkpoint_id=unfinished)
    hashes = _hashes(unfinished, sorted(path.name for path in unfinished.iterdir()))
    if is_first:
        body = {
            "format": SHARDED_FORMAT,
            "step": step,
            "files": {name: (unfinished / name).stat().st_size for name in hashes},
            "sha256_of": hashes,
            "state": contents.state,
        }
        write_body(unfinished, body)
        sync_folder(unfinished)
        put_in_place(unfinished, folder, step, replaces=keep is not None)
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
    while True:
        told: list[Any] = [None]
        if dist.get_rank() == 0:
            told = [newest_usable(folder, _look_at, lambda found: is_usable(found.checkpoint))]
        dist.broadcast_object_list(told, src=0)
        seen: _Seen | None = told[0]
        if seen is None:
            return None
        problem = _changed(seen)
        if not problem:
            return _load(seen, pieces)
        if dist.get_rank() == 0:
            remove_broken(seen.path, problem)
        dist.barrier()


def read_pieces(pieces: Mapping[str, Tensor], path: Path) -> Checkpoint:
    """One checkpoint, for whatever parallel sizes these are; every rank calls this.

    Args:
        pieces: this rank's, under the whole model's names; what is loaded is like them.
        path: of the checkpoint.

    Raises:
        BrokenCheckpoint: a file is missing, cut short or changed.
    """
    told: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            told = [_look_at(path)]
        except BrokenCheckpoint as error:
            told = [str(error)]
    dist.broadcast_object_list(told, src=0)
    seen: _Seen | str = told[0]
    problem = seen if isinstance(seen, str) else _changed(seen)
    if isinstance(seen, str) or problem:
        raise BrokenCheckpoint(problem)
    return _load(seen, _Alike(pieces))


class _Alike(Mapping[str, Tensor]):
    """New tensors like these, each made when it is asked for."""

    def __init__(self, pieces: Mapping[str, Tensor]) -> None:
        self._pieces = pieces

    def __getitem__(self, name: str) -> Tensor:
        return torch.empty_like(self._pieces[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)


def _load(seen: _Seen, pieces: Mapping[str, Tensor]) -> Checkpoint:
    """A single process's checkpoint whole, of another the pieces that this rank has."""
    if not seen.sha256_of:
        return read_checkpoint(seen.path)
    tensors = {name: _piece_like(name, stored, pieces) for name, stored in _held(seen.path).items()}
    # Of another rank's pipeline stage.
    mine = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    dcp.load(mine, storage_reader=CheckedReader(seen.path))
    return replace(seen.checkpoint, tensors=mine)


def read_whole(path: Path, body: Mapping[str, Any]) -> Checkpoint:
    """A sharded checkpoint as one process would have written it.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    check_files(path, body)
    tensors = {name: _empty(stored) for name, stored in _held(path).items()}
    with warnings.catch_warnings():
        # It says, once more, that one process loads.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        dcp.load(tensors, storage_reader=CheckedReader(path), no_dist=True)
    return Checkpoint(body["step"], tensors, body["state"])


def check_files(path: Path, body: Mapping[str, Any]) -> None:
    """Hold every file against its size and its hash.

    Raises:
        BrokenCheckpoint: when one is missing, cut short or changed.
    """
    _check_sizes(path, body)
    for name, hashed in body["sha256_of"].items():
        if _hash(path / name) != hashed:
            raise BrokenCheckpoint(f"{name} does not match its hash")


def _held(path: Path) -> dict[str, TensorStorageMetadata]:
    held = CheckedReader(path).read_metadata().state_dict_metadata
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


@dataclass(frozen=True)
class _Seen:
    """A checkpoint of the right sizes, as rank 0 saw it."""

    path: Path
    checkpoint: Checkpoint
    """Without tensors."""
    sha256_of: Mapping[str, str]
    """By file, to be held against them; none of a single process's checkpoint, read already."""


def _look_at(path: Path) -> _Seen:
    """What can be told of it without reading its pieces.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    try:
        body = read_body(path)
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{error.filename} is missing") from None
    if body["format"] == SHARDED_FORMAT:
        _check_sizes(path, body)
    else:
        read_checkpoint(path)
    return _Seen(path, Checkpoint(body["step"], {}, body["state"]), body.get("sha256_of", {}))


def _check_sizes(path: Path, body: Mapping[str, Any]) -> None:
    for name, size in body["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise BrokenCheckpoint(f"{name} is missing or cut short")


def _changed(seen: _Seen) -> str:
    """Which file is not what was written, in words, on every rank; empty if all are."""
    found = _hashes(seen.path, list(seen.sha256_of))
    changed = [name for name, hashed in seen.sha256_of.items() if found[name] != hashed]
    return f"{changed[0]} does not match its hash" if changed else ""


def _hashes(folder: Path, names: Sequence[str]) -> dict[str, str]:
    """The hash of each file, on every rank; each rank reads its share of them."""
    rank, world = dist.get_rank(), dist.get_world_size()
    mine = {name: _hash(folder / name) for name in names[rank::world]}
    shares: list[dict[str, str]] = [{} for _ in range(world)]
    dist.all_gather_object(shares, mine)
    return {name: shares[place % world][name] for place, name in enumerate(names)}


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
