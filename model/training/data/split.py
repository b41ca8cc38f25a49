"""Which documents are never trained on: decided by the hash of their content.

A document keeps its side when others are added or removed, on every machine and in every run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from model.errors import ConfigError
from model.training.data.documents import Document


class Split(NamedTuple):
    """The two sides of one domain."""

    train: tuple[Document, ...]
    heldout: tuple[Document, ...]


def hash_position(digest: str) -> float:
    """Where in [0, 1) a digest falls; uniform over contents."""
    return int(digest[:13], 16) / 16**13


def split_documents(documents: Iterable[Document], heldout_frac: float) -> dict[str, Split]:
    """Held out are the documents whose hash falls below ``heldout_frac``; by domain.

    In a domain so small that no hash does (or every one), the lowest is held out and the others
    are trained on, so that every domain with two documents has both sides.

    Raises:
        ConfigError: when a domain has a single document and cannot have both.
    """
    by_domain: dict[str, list[Document]] = {}
    for document in documents:
        by_domain.setdefault(document.domain, []).append(document)
    return {
        domain: _split_domain(domain, sorted(members, key=lambda d: d.digest), heldout_frac)
        for domain, members in sorted(by_domain.items())
    }


def _split_domain(domain: str, ordered: Sequence[Document], heldout_frac: float) -> Split:
    if len(ordered) < 2:
        raise ConfigError(
            f"data: domain {domain!r} has a single document ({len(ordered[0].text)} bytes), so "
            "none can be held out; add text to it, lower data.document_bytes, or join domains"
        )
    num_heldout = sum(hash_position(d.digest) < heldout_frac for d in ordered)
    num_heldout = min(max(num_heldout, 1), len(ordered) - 1)
    return Split(train=tuple(ordered[num_heldout:]), heldout=tuple(ordered[:num_heldout]))
