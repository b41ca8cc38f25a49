"""Files that hold raw text: which ones, what is in them, and in what portions they are read."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.training.data.documents import JOB_BYTES

READ_AT_ONCE = 4 * 2**20
APPLE_DOUBLE = b"\x00\x05\x16\x07"
"""How a file begins in which macOS keeps what a foreign disk has no place for (RFC 1740)."""
SETTLED_S = 2.0
"""A file changed more recently than this may change again without its times showing it."""


@dataclass(frozen=True)
class TextFile:
    """One file: its domain, its size and the hash of its content."""

    domain: str
    path: Path
    size: int
    digest: str


class Hashes:
    """Content hashes of files, kept so that a large corpus is not read again at every start.

    A kept hash is believed while the file's size, inode and both times are what they were; the
    change time cannot be set back by ordinary means.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._is_changed = False
        self._kept: dict[str, Any] = {}
        if path is not None and path.exists():
            try:
                self._kept = json.loads(path.read_bytes())
            except ValueError:
                self._kept = {}  # it only saves time

    def of(self, path: Path, where: str = "data.paths") -> tuple[int, str]:
        """(size, sha256) of the file; ``where`` names the field it was given in.

        Raises:
            ConfigError: when it cannot be read.
        """
        try:
            stat = path.stat()
            signature = [stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
            name = os.path.abspath(path)
            kept = self._kept.get(name)
            if kept is not None and kept[:-1] == signature:
                return stat.st_size, kept[-1]
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise ConfigError(f"{where}: cannot read {path}: {error.strerror}") from None
        if time.time() - max(stat.st_mtime, stat.st_ctime) > SETTLED_S:
            self._kept[name] = [*signature, digest]
            self._is_changed = True
        return stat.st_size, digest

    def content(self) -> bytes | None:
        """What to write to the file they are kept in; None if nothing is new."""
        return json.dumps(self._kept).encode() if self._is_changed else None


def expand(patterns: Iterable[str], where: str) -> list[Path]:
    """Files that the patterns match, folders taken whole but for what macOS's Finder leaves there.

    Raises:
        ConfigError: naming a pattern that matches none.
    """
    paths: set[Path] = set()
    for pattern in patterns:
        matched = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = {path for path in matched if path.is_file()}
        for folder in (path for path in matched if path.is_dir()):
            files |= {p for p in folder.rglob("*") if p.is_file() and not _is_finders(p)}
        if not files and any(path.is_dir() for path in matched):
            raise ConfigError(f"{where}: {pattern!r} is a folder without files (in {Path.cwd()})")
        if not files:
            raise ConfigError(f"{where}: no file matches {pattern!r} (from {Path.cwd()})")
        paths |= files
    return sorted(paths)


def _is_finders(path: Path) -> bool:
    """Its view of a folder and, on a foreign disk, what that can't keep of the file beside: never
    text, and hidden from who would leave it out."""
    if path.name == ".DS_Store":
        return True
    if not path.name.startswith("._"):
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(APPLE_DOUBLE)) == APPLE_DOUBLE
    except OSError:
        return False  # whoever reads it says so


def grouped(files: Sequence[TextFile]) -> Iterator[tuple[TextFile, ...]]:
    """Neighbouring files joined up to a job's size; a larger one stands alone."""
    group: list[TextFile] = []
    for file in files:
        if group and sum(f.size for f in group) + file.size > JOB_BYTES:
            yield tuple(group)
            group = []
        group.append(file)
    if group:
        yield tuple(group)


def ranges(size: int) -> Iterator[tuple[int, int]]:
    """[begin, end) portions of a file of ``size`` bytes, about a job each."""
    num = max(1, round(size / JOB_BYTES))
    edges = [size * i // num for i in range(num + 1)]
    yield from pairwise(edges)
