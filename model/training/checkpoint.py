"""A run's state on disk: complete and checked, or absent.

    checkpoints/step-00000120/tensors.safetensors    weights, optimizer, random state
    checkpoints/step-00000120/state.json             everything else, and the hashes of both

Written into a folder of another name, synced, then renamed. One of the same step that is there
already is renamed first and removed last, so that a kill in between loses neither. Read back only
if both hashes hold; otherwise the checkpoint before it is taken, and that is said. No pickle.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from model.files import durable_folder, step_folder, sync_folder, write_file

logger = logging.getLogger(__name__)

FORMAT = 1
SHARDED_FORMAT = "dcp-2"
"""Written by many processes (model.training.distributed.checkpoint); read here as one's own."""
UNFINISHED = ".tmp-"
REPLACED = ".replaced-"
"""Before the name of a checkpoint whose successor of the same step is being put in its place."""

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """The state after ``step`` optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    """Plain JSON values."""


class BrokenCheckpoint(Exception):
    """What is on disk is not what was written; the message says how one sees."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write ``checkpoint`` below ``folder`` and remove all but the newest ``keep``."""
    target = keep_checkpoint(folder, checkpoint, replaces=True)
    for old in checkpoint_paths(folder)[keep:]:
        shutil.rmtree(old)
    return target


def keep_checkpoint(folder: Path, checkpoint: Checkpoint, *, replaces: bool = False) -> Path:
    """Write ``checkpoint`` below ``folder`` for good; one of that step stays unless ``replaces``.

    One is there if the run went back to an earlier checkpoint and has now come here again.
    """
    content = safetensors.torch.save(checkpoint.tensors)
    body = {
        "format": FORMAT,
        "step": checkpoint.step,
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "state": checkpoint.state,
    }
    unfinished = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    durable_folder(folder)
    unfinished.mkdir()
    try:
        write_file(unfinished / "tensors.safetensors", content)
        write_body(unfinished, body)
        sync_folder(unfinished)
        return put_in_place(unfinished, folder, checkpoint.step, replaces=replaces)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def put_in_place(unfinished: Path, folder: Path, step: int, *, replaces: bool) -> Path:
    """Name what was written whole after its step; without ``replaces`` one that is there stays."""
    target = step_folder(folder, step)
    replaced = folder / f"{REPLACED}{target.name}"
    if replaces and target.exists():
        os.rename(target, replaced)
    try:
        os.rename(unfinished, target)
    except OSError as error:
        if replaced.exists():
            os.rename(replaced, target)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        shutil.rmtree(unfinished)
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return target


def settle(folder: Path) -> None:
    """Finish or undo the save that a kill cut short; only for the process that saves here."""
    for unfinished in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(unfinished)
    for replaced in folder.glob(f"{REPLACED}*"):
        target = folder / replaced.name.removeprefix(REPLACED)
        if target.exists():
            shutil.rmtree(replaced)
        else:
            os.rename(replaced, target)


def checkpoint_paths(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def by_step(folder: Path) -> dict[int, Path]:
    """Finished checkpoints by their steps, oldest first, for one who only reads.

    With that whose successor of the same step was being put in its place when the run was killed:
    :func:`settle` is for the run itself, which may be alive.
    """
    found = {path.name.removeprefix(REPLACED): path for path in folder.glob(f"{REPLACED}step-*")}
    found |= {path.name: path for path in checkpoint_paths(folder)}
    return {int(name.removeprefix("step-")): found[name] for name in sorted(found)}


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    try:
        body = read_body(path)
        if body["format"] == SHARDED_FORMAT:
            # Here: it needs torch.distributed, and it needs this module.
            from model.training.distributed.checkpoint import read_whole

            return read_whole(path, body)
        content = (path / "tensors.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{error.filename} is missing") from None
    if body["tensors_sha256"] != hashlib.sha256(content).hexdigest():
        raise BrokenCheckpoint("tensors.safetensors does not match its hash")
    try:
        tensors = safetensors.torch.load(content)
    except SafetensorError as error:
        raise BrokenCheckpoint(f"tensors.safetensors: {error}") from None
    return Checkpoint(body["step"], tensors, body["state"])


def load_newest(
    folder: Path, is_usable: Callable[[Checkpoint], str] = lambda _: ""
) -> Checkpoint | None:
    """The newest checkpoint that is whole and usable; broken ones are named and removed.

    Args:
        folder: where :func:`save_checkpoint` wrote.
        is_usable: says why a whole checkpoint can't be resumed from; empty if it can.
    """
    return newest_usable(folder, read_checkpoint, is_usable)


def newest_usable(
    folder: Path, read: Callable[[Path], T], is_usable: Callable[[T], str]
) -> T | None:
    """What ``read`` makes of the newest checkpoint it does not call broken and that is usable."""
    settle(folder)
    for path in checkpoint_paths(folder):
        try:
            found = read(path)
            problem = is_usable(found)
        except BrokenCheckpoint as error:
            problem = str(error)
        if not problem:
            return found
        remove_broken(path, problem)
    return None


def remove_broken(path: Path, problem: str) -> None:
    """Delete a checkpoint that can't be gone on from, and say why."""
    logger.warning("checkpoint %s is unusable (%s); going back to the one before", path, problem)
    shutil.rmtree(path)


def relabel(path: Path, identity: str) -> None:
    """Put another identity into the checkpoint at ``path``; a broken one is left as it is."""
    try:
        body = read_body(path)
    except (BrokenCheckpoint, FileNotFoundError):
        return
    body["state"]["identity"] = identity
    unfinished = path / f"{UNFINISHED}{uuid.uuid4().hex}"
    unfinished.mkdir()
    write_body(unfinished, body)
    os.replace(unfinished / "state.json", path / "state.json")
    unfinished.rmdir()
    sync_folder(path)


def write_body(folder: Path, body: dict[str, Any]) -> None:
    """Write a checkpoint's state.json with its own hash."""
    text = json.dumps({**body, "sha256": _hash_json(body)}, indent=1, allow_nan=False)
    write_file(folder / "state.json", text.encode())


def read_body(folder: Path) -> dict[str, Any]:
    """What :func:`write_body` wrote.

    Raises:
        BrokenCheckpoint: it was cut short or changed, or is of another format.
        FileNotFoundError: there is none.
    """
    try:
        body = json.loads((folder / "state.json").read_bytes())
    except ValueError as error:
        raise BrokenCheckpoint(f"state.json is not JSON: {error}") from None
    if not isinstance(body, dict) or body.pop("sha256", None) != _hash_json(body):
        raise BrokenCheckpoint("state.json does not match its hash")
    if body["format"] not in (FORMAT, SHARDED_FORMAT):
        raise BrokenCheckpoint(
            f"format {body['format']}, this program reads {FORMAT} and {SHARDED_FORMAT}"
        )
    return body


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
