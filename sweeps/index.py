"""How attempts ended, remembered in ``root/index.sqlite``: a cache of the folders, never the truth.

A run's state follows from its folder (see :meth:`sweeps.store.Store.state`). What costs there is
opening and parsing the ``outcome.json`` of a run that failed, diverged or was stopped; one that is
done is told by a single link, and one that runs has no outcome yet. So a row remembers the outcome
of a run's newest attempt and a stamp of its file, and is believed only while the file of the newest
attempt has that stamp. An index that is lost, damaged or of another version is written anew; where
it is locked or can't be written, as on a file system without locks, the folders are read alone.
"""

from __future__ import annotations

import json
import os
import sqlite3
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from sweeps.attempt import Outcome, read_outcome

VERSION = 1
"""Of the table below; an index of another version is made anew."""

BUSY_S = 0.2
"""Seconds to wait for another process's lock: reading the folders is quicker than more."""

_TABLE = """CREATE TABLE outcomes (
    run_id TEXT PRIMARY KEY, stamp TEXT, outcome TEXT, checksum INTEGER
    ) WITHOUT ROWID"""

_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""SQLite's codes for a file that is not our index; others say that it can't be used now."""

_Row = tuple[str, str, str]
"""Run id, stamp, and the outcome's fields as JSON."""


class OutcomeIndex:
    """The outcomes known when it was opened, and those read since, until :meth:`save`."""

    def __init__(self, root: Path) -> None:
        self.path = root / "index.sqlite"
        self._known: dict[str, _Row] | None = None
        self._read: list[_Row] = []

    def outcome(self, folder: str) -> Outcome | None:
        """What :func:`sweeps.attempt.read_outcome` says of an attempt's ``folder``."""
        stamp = _stamp(folder)  # before the reading: what is replaced in between has another
        if stamp is None:
            return None
        if self._known is None:  # here: a sweep whose runs are all done never opens it
            self._known = self._load()
        run_id = folder.rsplit("/", 3)[1]
        row = self._known.get(run_id)
        if row is not None and row[1] == stamp:
            return Outcome(**json.loads(row[2]))
        outcome = read_outcome(folder)
        if outcome is not None:
            self._read.append((run_id, stamp, json.dumps(vars(outcome))))
        return outcome

    def save(self) -> None:
        """Add what was read; nothing where another process writes, or where nobody can."""
        if self._read:
            self._use("rwc", self._write)

    def _load(self) -> dict[str, _Row]:
        known: dict[str, _Row] = {}

        def read(database: sqlite3.Connection) -> None:
            if _version(database) == VERSION:
                for *fields, checksum in database.execute("SELECT * FROM outcomes"):
                    if _checksum(row := tuple(fields)) == checksum:
                        known[row[0]] = row

        if self.path.exists():
            self._use("ro", read)
        return known

    def _write(self, database: sqlite3.Connection) -> None:
        # Nothing is lost with the file that the folders don't say, so no fsync.
        database.execute("PRAGMA synchronous = OFF")
        database.execute("BEGIN IMMEDIATE")  # the one writer, from here on
        if _version(database) != VERSION:
            database.execute("DROP TABLE IF EXISTS outcomes")
            database.execute(_TABLE)
            database.execute(f"PRAGMA user_version = {VERSION}")
        rows = [(*row, _checksum(row)) for row in self._read]
        database.executemany("REPLACE INTO outcomes VALUES (?, ?, ?, ?)", rows)
        database.execute("COMMIT")
        self._read.clear()

    def _use(self, mode: str, act: Callable[[sqlite3.Connection], None]) -> None:
        """Do something with the database: all of it or nothing; a damaged file is removed."""
        try:
            address = f"{self.path.absolute().as_uri()}?mode={mode}"
            database = sqlite3.connect(address, uri=True, timeout=BUSY_S, isolation_level=None)
            with closing(database):
                act(database)
        except UnicodeError:  # a text that is none
            self._remove()
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)  # else Python's own
            if code & 0xFF in _DAMAGE:
                self._remove()

    def _remove(self) -> None:
        journal = self.path.with_name(f"{self.path.name}-journal")
        for path in (journal, self.path):  # the journal first: it must not be played into a new one
            try:
                path.unlink(missing_ok=True)
            except OSError:
                return  # not ours to remove: it stays unused


def _version(database: sqlite3.Connection) -> int:
    version: int = database.execute("PRAGMA user_version").fetchone()[0]
    return version


def _stamp(folder: str) -> str | None:
    """What changes whenever ``outcome.json`` does, None where there is none.

    As text: an inode may be larger than SQLite's integers. With the time of the last change of the
    inode, which nobody can set: a folder made anew under an old inode's number has a later one.
    """
    try:
        now = os.stat(f"{folder}/outcome.json")
    except FileNotFoundError:
        return None
    return f"{now.st_ino} {now.st_mtime_ns} {now.st_ctime_ns} {now.st_size}"


def _checksum(row: tuple[object, ...]) -> int:
    """SQLite has none of its own: a bit that flipped on disk must not become a status."""
    return zlib.crc32(repr(row).encode())
