"""Documents, and the one shape every source of them has.

A source reads raw material (files, a generator) and gives documents: pieces of text that belong
together, each in a domain. What a run trains on is a function of the documents' contents alone,
never of their names or of the order a disk lists them in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Progress = Callable[[str, int, int], None]
"""Called as ``progress(what, done, total)`` while something long goes on."""


def no_progress(what: str, done: int, total: int) -> None:
    """The progress of someone who does not look."""


def sha256(data: bytes) -> str:
    """Content hash, as hexadecimal text."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class Document:
    """A piece of text of one domain, as UTF-8 bytes."""

    domain: str
    text: bytes
    digest: str
    """sha256 of ``text``; decides the split and the order."""

    @classmethod
    def of(cls, domain: str, text: bytes) -> Document:
        """A document with its digest."""
        return cls(domain, text, sha256(text))


@dataclass(frozen=True)
class Collection:
    """What a source gave, and what it left out and why."""

    documents: tuple[Document, ...]
    report: dict[str, int | list[str]] = field(default_factory=dict)
    """Counts and names for people: files read, files that do not parse, duplicates removed."""
    entropy_by_context: tuple[float, ...] = ()
    """Synthetic only: exact nats per token of the source, given 0, 1, ... tokens of context."""


class Source(Protocol):
    """Raw material that can be turned into documents."""

    def key(self) -> str:
        """Changes whenever ``collect`` would give other documents; cheap, so that what was
        prepared before is found without preparing it again."""

    def collect(self, progress: Progress) -> Collection:
        """Make the documents."""


def without_duplicates(documents: Sequence[Document]) -> tuple[tuple[Document, ...], int]:
    """The first of every set of equal documents, ordered by domain and digest; and how many went.

    A text that occurs twice could be trained on and held out at the same time.
    """
    first_by_digest: dict[str, Document] = {}
    for document in sorted(documents, key=lambda d: (d.domain, d.digest)):
        first_by_digest.setdefault(document.digest, document)
    return tuple(first_by_digest.values()), len(documents) - len(first_by_digest)
