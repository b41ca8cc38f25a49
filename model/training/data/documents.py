"""Documents, and the one shape every source of them has.

A source lists jobs, each a bounded piece of raw material (some files, rows of a table, a stretch of
a generator) that a process of its own can turn into documents: pieces of text that belong together,
each in a domain. What a run trains on is a function of the documents' contents alone, never of
their names, of the order a disk lists them in, or of how many processes read them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` while something long goes on."""

Report = dict[str, int | list[str]]
"""Counts and names for people: files read, files that do not parse, duplicates removed."""

JOB_BYTES = 32 * 2**20
"""Raw material of one job: bounds the memory of a process, and what a kill can cost."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress of someone who does not look."""


def sha256(data: bytes) -> str:
    """Content hash, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Document:
    """A piece of text of one domain, as UTF-8 bytes; or its tokens, where it came as tokens."""

    domain: str
    text: bytes
    is_tokens: bool = False
    """``text`` is little-endian uint32 token numbers, without an end token."""

    @property
    def digest(self) -> bytes:
        """sha256 of ``text``; decides the split and the order."""
        return hashlib.sha256(self.text).digest()


class Job(Protocol):
    """A bounded piece of a source. It is sent to another process, so it holds plain values."""

    @property
    def key(self) -> str:
        """Changes whenever ``documents`` would give others."""

    @property
    def size(self) -> int:
        """About how many bytes it reads or makes; for the progress shown."""

    def documents(self, report: Report) -> Iterator[Document]:
        """Make the documents, one after the other; what was left out goes into ``report``."""


class Source(Protocol):
    """Raw material that can be turned into documents."""

    @property
    def keeps_duplicates(self) -> bool:
        """Whether equal documents stay: only where taking them out would change a known law."""

    def jobs(self) -> Sequence[Job]:
        """The pieces of work, found without reading more than their hashes need."""

    def entropy_by_context(self) -> tuple[float, ...]:
        """Synthetic only: exact nats per token, given 0, 1, ... tokens of context."""


@dataclass(frozen=True)
class JobList:
    """A source of text whose entropy nobody knows."""

    listed: tuple[Job, ...]
    keeps_duplicates: bool = False

    def jobs(self) -> Sequence[Job]:
        """As they were listed."""
        return self.listed

    def entropy_by_context(self) -> tuple[float, ...]:
        """Not known."""
        return ()


def count(report: Report, name: str, number: int = 1) -> None:
    """Add to a count."""
    before = report.get(name, 0)
    assert isinstance(before, int)
    report[name] = before + number


def note(report: Report, name: str, *lines: str) -> None:
    """Add to a list of names; the list is there even if it stays empty."""
    before = report.setdefault(name, [])
    assert isinstance(before, list)
    before.extend(lines)


def merged(reports: Iterable[Report]) -> Report:
    """Counts added, lists joined."""
    total: Report = {}
    for report in reports:
        for name, value in report.items():
            if isinstance(value, int):
                count(total, name, value)
            else:
                note(total, name, *value)
    return total
