"""One process at a time, on any file system.

The kernel's own lock (flock) where the file system has it: the kernel lets go when the process
dies. A network file system may refuse it: NFS without a lock daemon, Lustre mounted without flock.
There a claim takes its place, as at an attempt of a run (:mod:`sweeps.attempt`): a file of the next
number, which only one process can make, and which beats while it is held. Who waits takes a claim
for dead when its beat has stood still for a whole lease of the waiting process's own clock, so no
clock has to agree with another's.

Both must not be mixed: machines that share a file system have to mount it alike.
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from model.files import write_atomic

LEASE_S = 20.0
"""Without a beat for so long a claim is dead: its process was killed, or its machine is gone."""
BEAT_S = 1.0
POLL_S = 0.02
REFUSED = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system without locks answers."""
RELEASED = b"released"


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold ``path``, an empty file that is made beside what it guards, against other processes.

    It stays behind, unless the holder removes it as the last thing it does.
    A process that was stopped for longer than the lease may wake to find that another has gone on;
    that holds for claims only, the kernel's lock is never taken over.

    Raises:
        OSError: the file can't be made.
    """
    while True:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in REFUSED:
                    raise
                break
            if _is_there(path, file):
                yield
                return
    with _claimed(path):
        yield


def _is_there(path: Path, file: IO[bytes]) -> bool:
    """Whether the file still has its name: who held it before may have removed it."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def _claimed(path: Path) -> Iterator[None]:
    claim = _claim_of(path, _next_number(path))
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(claim, over), name="beat", daemon=True)
    beating.start()
    try:
        yield
    finally:
        over.set()
        beating.join()
        with suppress(OSError):  # on a full disk it is dead a lease later
            write_atomic(claim, RELEASED, durable=False)


def _next_number(path: Path) -> int:
    """Wait until the newest claim is over, and make the next one."""
    seen, since = (-1, b""), time.monotonic()
    while True:
        newest = max(_numbers(path), default=0)
        state = newest, _read(_claim_of(path, newest)) if newest else RELEASED
        if state != seen:
            seen, since = state, time.monotonic()
        is_over = state[1] == RELEASED or time.monotonic() - since >= LEASE_S
        if is_over and _make(path, newest + 1):
            return newest + 1
        time.sleep(POLL_S)


def _make(path: Path, number: int) -> bool:
    """Whether the claim of this number is ours now."""
    claim = _claim_of(path, number)
    try:
        os.close(os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    # The number may have been used and cleared away since we looked. The newest never is.
    numbers = _numbers(path)
    if max(numbers) != number:
        claim.unlink(missing_ok=True)
        return False
    for older in numbers:
        if older < number:
            _claim_of(path, older).unlink(missing_ok=True)
    return True


def _beat(claim: Path, over: threading.Event) -> None:
    holder, beats = uuid.uuid4().hex, 0
    while True:
        beats += 1
        with suppress(OSError):  # missed too often it costs the claim, as it must
            write_atomic(claim, f"{holder} {beats}".encode(), durable=False)
        if over.wait(BEAT_S):
            return


def _numbers(path: Path) -> list[int]:
    """Of the claims there are, by a listing: a network file system may remember that a name was
    absent."""
    head = f"{path.name}.claim-"
    ends = [name.removeprefix(head) for name in os.listdir(path.parent) if name.startswith(head)]
    return [int(end) for end in ends if end.isdigit()]


def _claim_of(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.claim-{number:06d}")


def _read(claim: Path) -> bytes:
    """By opening it, which on a network file system asks the server; empty where it just went."""
    try:
        return claim.read_bytes()
    except FileNotFoundError:
        return b""
