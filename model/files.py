"""Folders and files that stand whole or not at all, on any shared file system."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from model.errors import ConfigError


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Give a hidden folder to fill; it becomes ``target`` at the end, or vanishes on an error.

    The files must be durable when the block ends (:func:`write_file` and the tensor writer see to
    that). A process killed in between leaves the hidden folder beside ``target``, never a part of
    ``target``.

    Raises:
        ConfigError: if ``target`` exists, or can't.
    """
    if target.exists():
        raise ConfigError(f"{target}: exists already; name a new folder or remove this one")
    make_folder(target.parent)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.unfinished-"))
    try:
        yield temporary
        temporary.chmod(0o755)  # mkdtemp's 0700 is for secrets
        sync_folder(temporary)
        os.rename(temporary, target)
    except BaseException:
        shutil.rmtree(temporary)
        raise
    sync_folder(target.parent)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and those above it, where they are not there.

    Raises:
        ConfigError: one of them is a file.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: can't be a folder, {error.filename} is a file") from None


def durable_folder(folder: Path) -> None:
    """Make ``folder`` and those above it; a power cut after this takes none of them away."""
    if folder.is_dir():
        return
    durable_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and make its content durable."""
    with open(path, "xb") as file:
        file.write(data)
        sync_file(file)


def write_atomic(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Write ``data`` to ``path``: a reader, or the machine after a power cut, sees all or nothing.

    Temporary file in the same folder, fsync, rename, fsync of the folder. ``durable=False`` leaves
    out both fsyncs, for files that are replaced every second.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if durable:
                sync_file(file)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as readable JSON, durably."""
    write_file(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; ConfigError names the file if it is absent or damaged."""
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def sync_file(file: IO[bytes]) -> None:
    """Have everything written to ``file`` so far on the disk, where a power cut leaves it."""
    file.flush()
    _sync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make new names in ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _sync(descriptor)
    finally:
        os.close(descriptor)


_NO_FULL_SYNC = {errno.ENOTSUP, errno.EINVAL, errno.ENOTTY}
"""What a network's or a stick's file system answers that has no such request."""


def _sync(descriptor: int) -> None:
    """``fsync`` that reaches the disk.

    On macOS ``fsync`` ends at the drive, whose cache a power cut empties: there, and only there, is
    a request for more (fsync(2) and fcntl(2) of macOS).
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError as error:
            if error.errno not in _NO_FULL_SYNC:
                raise
    os.fsync(descriptor)


def step_folder(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies below a folder of them."""
    return folder / f"step-{step:08d}"
