"""How a worker ends, and trouble with the file system: told from a run's own failures."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from model.files import sync_file

EXIT_OVER = 0
"""The run has a record, done or diverged."""
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_HELD = 3
"""Another worker holds the run, or took it over."""
EXIT_STOPPED = 5
"""Asked to stop; the run can be resumed."""
EXIT_MEMORY = 12
"""There was too little memory; the run can be resumed, its batch in smaller parts."""
EXIT_DISK_FULL = 28
EXIT_STORE = 74
"""The store can't be written for another reason."""

_FULL = {errno.ENOSPC, errno.EDQUOT}
_AWAY = {errno.EROFS, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO}

PATIENCE_S = 180.0
"""How long a finished run waits to be written to a store that is away for a while."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """What is wrong with the store, for a person and for the driver."""

    reason: str
    exit_code: int


def disk_full(folder: Path) -> str:
    """What to tell a person whose disk is full."""
    return (
        f"the disk is full under {folder}; free some space and run the same command again: nothing "
        "measured is lost"
    )


def store_trouble(folder: Path, error: Exception) -> Trouble | None:
    """Whether ``error`` comes from the store rather than from the run.

    Libraries wrap such errors in their own (a full disk under ``torch.save`` is a RuntimeError), so
    besides the error itself a small file is written to see.
    """
    number = error.errno if isinstance(error, OSError) else None
    if number not in _FULL | _AWAY:
        number = _probe(folder)
    if number in _FULL:
        return Trouble(reason=disk_full(folder), exit_code=EXIT_DISK_FULL)
    if number in _AWAY:
        assert number is not None
        return Trouble(
            reason=f"{folder} can't be written ({os.strerror(number)})", exit_code=EXIT_STORE
        )
    return None


def require_ours(run_dir: Path) -> None:
    """Raise where a worker could not write into the folder: it would end without a word, since its
    log lies there, too.

    Raises:
        PermissionError: it is another user's.
        OSError: nobody can write there now.
    """
    for place in (run_dir, run_dir / "log.txt", run_dir / "attempts"):
        if place.exists() and not os.access(place, os.W_OK):
            is_read_only = os.statvfs(place).f_flag & os.ST_RDONLY
            number = errno.EROFS if is_read_only else errno.EACCES
            raise OSError(number, os.strerror(number), str(place))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine had too little memory for what the run asked for."""
    # By name: this file is read without torch. On a CPU its allocator raises a RuntimeError.
    text = str(error)
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate memory" in text
        or "CUDA out of memory" in text
    )


def patiently(action: Callable[[], None], *, patience_s: float = PATIENCE_S) -> None:
    """Do ``action``, again and again while the store is away (not when it is full)."""
    end = time.monotonic() + patience_s
    pause_s = 0.5
    while True:
        try:
            return action()
        except OSError as error:
            if error.errno not in _AWAY or time.monotonic() + pause_s > end:
                raise
            time.sleep(pause_s)
            pause_s = min(10.0, 2 * pause_s)


def _probe(folder: Path) -> int | None:
    """The errno of writing a small file into ``folder``, None if it works."""
    path = folder / f".probe-{uuid.uuid4().hex}"
    try:
        with open(path, "xb") as file:
            file.write(b"\0" * 65_536)
            sync_file(file)
    except OSError as error:
        with suppress(OSError):
            path.unlink()
        return error.errno
    path.unlink()
    return None
