"""Whether the owner of a claim is still alive, without trusting any clock but one's own.

Two ways to know. On the owner's own machine the kernel says so: a process is named by boot, process
namespace, id and start time, none of which is reused together. From elsewhere the heartbeat does: a
:class:`Watch` takes a claim for dead when its beat has not changed for a whole lease of the
*watcher's* monotonic clock, so neither skewed nor jumping clocks can steal a live run. Time in
which the watcher itself stood still (Ctrl-Z, a paused container, a file server that was away)
counts for next to nothing: those it watches stood still with it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Literal

from model.system import is_macos, said_by, sysctl

LEASE_S = 20.0
"""Seconds without a beat after which a claim may be taken over."""

LOOKS_A_LEASE = 4
"""Looks that a watcher takes at least within a lease; it takes one or two a second."""

COMMAND_VARIABLE = "WINDTUNNEL_COMMAND"
"""Environment variable by which a worker knows what was typed, a JSON list, for its record."""
PARENT_VARIABLE = "WINDTUNNEL_DRIVER_PID"
"""Environment variable that tells a worker whose child it is, so that it can end with it."""

BEAT_S = 1.0
"""Seconds between beats."""


@dataclass(frozen=True, kw_only=True)
class Owner:
    """One process, named so that no other process in the world has the same name."""

    host: str
    pid: int
    machine: str | None
    """Boot id and process namespace, on macOS the boot session; None where neither is told."""
    start_ticks: int | None
    """The process's start time in clock ticks after boot, on macOS in seconds since 1970."""


def this_process() -> Owner:
    """The running process."""
    pid = os.getpid()
    start = _start(pid)
    return Owner(
        host=socket.gethostname(),
        pid=pid,
        machine=_machine(),
        start_ticks=start if isinstance(start, int) else None,
    )


def known_dead(owner: Owner) -> bool:
    """True only if the kernel of this very machine says that the process is gone."""
    if owner.machine is None or owner.start_ticks is None or owner.machine != _machine():
        return False
    return _start(owner.pid) not in (owner.start_ticks, UNKNOWN)


class Watch:
    """Remembers when each claim's beat last changed, by this process's time awake."""

    def __init__(
        self, lease_s: float = LEASE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.lease_s = lease_s
        self._clock = clock
        self._looked = clock()
        self._awake_s = 0.0
        self._seen: dict[Path, tuple[object, float]] = {}

    def is_stale(self, attempt_dir: Path, beat: object) -> bool:
        """Note the current ``beat``; True once it has stood still for a whole lease."""
        now = self._time_awake_s()
        last, since = self._seen.get(attempt_dir, (None, now))
        if last != beat or attempt_dir not in self._seen:
            self._seen[attempt_dir] = (beat, now)
            return False
        return now - since >= self.lease_s

    def _time_awake_s(self) -> float:
        """The clock, but that no pause between two looks counts for more than a part of a lease."""
        now = self._clock()
        self._awake_s += min(now - self._looked, self.lease_s / LOOKS_A_LEASE)
        self._looked = now
        return self._awake_s


@cache
def _machine() -> str | None:
    if is_macos():
        # Not the time of the boot, which moves whenever the clock is set.
        return sysctl("kern.bootsessionuuid") or None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


UNKNOWN: Literal["unknown"] = "unknown"


def _start(pid: int) -> int | Literal["unknown"] | None:
    """When process ``pid`` started; None where there is no such process, or only its zombie."""
    return _start_by_ps(pid) if is_macos() else _start_by_proc(pid)


def _start_by_proc(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The second field is the command in parentheses and may hold spaces or parentheses itself.
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else int(fields[18])


def _start_by_ps(pid: int) -> int | Literal["unknown"] | None:
    """``ps``, which sees every user's processes: a state and a date, or nothing for no process."""
    said = said_by("ps", "-o", "stat=", "-o", "lstart=", "-p", str(pid))
    if not said:
        return UNKNOWN if said is None else None
    state, _, date = said.partition(" ")
    try:
        start = datetime.strptime(" ".join(date.split()), "%a %b %d %H:%M:%S %Y")
    except ValueError:
        return UNKNOWN
    return None if state[0] in "ZX" else int(start.replace(tzinfo=UTC).timestamp())
