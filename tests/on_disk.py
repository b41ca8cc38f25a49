"""What a power cut leaves: every file and name that the system's way to sync has put on disk.

Loaded by the fixture ``disk`` in ``tests/conftest.py``.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

FULL_SYNC = 51
"""``F_FULLFSYNC`` of macOS, where ``fsync`` alone ends in the drive's cache."""


class Disk:
    """Notes what is synced, in the way of one system."""

    def __init__(self, system: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._known: set[tuple[int, str, int]] = set()
        """Numbers of files, and of folders with each name in them and the number it stands for: a
        folder keeps its number when it is renamed, and a name that was there before may stand for
        another file since."""
        if system == "macOS":
            monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
            monkeypatch.setattr(fcntl, "fcntl", self._note)
            monkeypatch.setattr(os, "fsync", _take_no_notice)
        else:
            monkeypatch.setattr(os, "fsync", self._note)

    def lost(self, top: Path) -> list[Path]:
        """What a power cut would take of a folder and all below it."""
        return [path for path in [top, *top.rglob("*")] if not self._holds(path)]

    def forget(self, path: Path) -> None:
        """Take what was written to a file so far for unsynced: it is about to be written again."""
        number = path.stat().st_ino
        self._known.discard((number, "", number))

    def _note(self, descriptor: int, *command: int) -> None:
        assert command in ((), (FULL_SYNC,))
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        number = os.fstat(descriptor).st_ino
        if path.is_dir():
            self._known |= {(number, each.name, each.lstat().st_ino) for each in path.iterdir()}
        else:
            self._known.add((number, "", number))

    def _holds(self, path: Path) -> bool:
        number = path.lstat().st_ino
        is_file = path.is_file() and not path.is_symlink()
        has_content = not is_file or (number, "", number) in self._known
        return has_content and (path.parent.stat().st_ino, path.name, number) in self._known


def _take_no_notice(*_: object) -> None:
    """What a power cut leaves of macOS's fsync."""
