"""A run's state on disk: complete and checked, or absent.

    checkpoints/step-00000120/tensors.safetensors    weights, optimizer, random state
    checkpoints/step-00000120/state.json             everything else, and the hashes of both

Written into a folder of another name, synced, then renamed. Read back only if both hashes hold;
otherwise the checkpoint before it is taken, and that is said. No pickle.
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
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from model.files import step_folder, sync_folder, write_file

logger = logging.getLogger(__name__)

FORMAT = 1
UNFINISHED = ".tmp-"


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
    text = json.dumps({**body, "sha256": _hash_json(body)}, indent=1, allow_nan=False)

    unfinished = folder / f"{UNFINISHED}{uuid.uuid4().hex}"
    unfinished.mkdir(parents=True)
    try:
        write_file(unfinished / "tensors.safetensors", content)
        write_file(unfinished / "state.json", text.encode())
        sync_folder(unfinished)
        target = step_folder(folder, checkpoint.step)
        if replaces:
            shutil.rmtree(target, ignore_errors=True)
        try:
            os.rename(unfinished, target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            shutil.rmtree(unfinished)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    sync_folder(folder)
    return target


def checkpoint_paths(folder: Path) -> list[Path]:
    """Finished checkpoints, the newest first."""
    return sorted(folder.glob("step-*"), reverse=True)


def read_checkpoint(path: Path) -> Checkpoint:
    """One checkpoint.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    try:
        body = json.loads((path / "state.json").read_bytes())
        content = (path / "tensors.safetensors").read_bytes()
    except FileNotFoundError as error:
        raise BrokenCheckpoint(f"{error.filename} is missing") from None
    except ValueError as error:
        raise BrokenCheckpoint(f"state.json is not JSON: {error}") from None
    expected = body.pop("sha256", None) if isinstance(body, dict) else None
    if expected != _hash_json(body):
        raise BrokenCheckpoint("state.json does not match its hash")
    if body["format"] != FORMAT:
        raise BrokenCheckpoint(f"format {body['format']}, this program reads {FORMAT}")
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
    for left_over in folder.glob(f"{UNFINISHED}*"):
        shutil.rmtree(left_over)
    for path in checkpoint_paths(folder):
        try:
            checkpoint = read_checkpoint(path)
            problem = is_usable(checkpoint)
        except BrokenCheckpoint as error:
            problem = str(error)
        if not problem:
            return checkpoint
        logger.warning(
            "checkpoint %s is unusable (%s); going back to the one before", path, problem
        )
        shutil.rmtree(path)
    return None


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
