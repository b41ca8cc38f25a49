"""Training documents that are nearly a held-out one, found without comparing every pair.

A document is the set of its shingles (all runs of 16 bytes, letters in lower case and white space
as single blanks; of 8 tokens where it came as tokens). Two documents are as alike as their sets:
common shingles over all (Jaccard). One hash of every shingle, the smallest in each of 128 ranges,
is a sketch of which a share of that size agrees between the two (one-permutation MinHash, Li, Owen
and Zhang, arXiv:1208.1259; empty ranges take the next one's value, Shrivastava and Li,
arXiv:1406.4784). Documents that agree in 4 neighbouring ranges anywhere are compared in full:
at a similarity of 0.8 a pair is missed with probability (1 - 0.8^4)^32 = 5e-8, so what is found
are near-duplicates by the definition, not by the sketch.

Only the held-out side's sketches are kept, 384 bytes a document.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.training.data.documents import Document
from model.training.data.spool import Spool

SHINGLE_BYTES = 16
SHINGLE_TOKENS = 8
NUM_RANGES = 128
RANGES_PER_BAND = 4
NUM_BANDS = NUM_RANGES // RANGES_PER_BAND

Hashes = NDArray[np.uint64]


class Similar(NamedTuple):
    """A training document, by its place in the index, and the held-out one it is like."""

    train: int
    heldout: int
    similarity: float


@dataclass(frozen=True)
class SketchTask:
    """Documents ``first`` .. ``last - 1`` of an index on disk."""

    spool: Spool
    index_path: Path
    first: int
    last: int


@dataclass(frozen=True)
class CompareTask:
    """The same, to be held against held-out documents whose sketches are on disk."""

    sketch: SketchTask
    heldout_path: Path
    bands_path: Path
    """[bands, held-out documents]: sorted within each band."""
    places_path: Path
    """[bands, held-out documents]: the document each of those belongs to."""
    limit: float


def band_hashes(task: SketchTask) -> Hashes:
    """[documents, bands] of a portion of documents."""
    index = np.load(task.index_path, mmap_mode="r")[task.first : task.last]
    sketches = np.empty((len(index), NUM_RANGES), dtype=np.uint64)
    with task.spool.reader() as reader:
        for place, row in enumerate(index):
            sketches[place] = sketch(shingles(reader.document(row)))
    return _bands(sketches)


def sorted_bands(bands: Hashes) -> tuple[Hashes, NDArray[np.uint32]]:
    """Each band's hashes in order, and which document each belongs to: [bands, documents]."""
    by_band = np.ascontiguousarray(bands.T)
    order = np.argsort(by_band, axis=1, kind="stable")
    return np.take_along_axis(by_band, order, axis=1), order.astype(np.uint32)


def find_similar(task: CompareTask) -> list[Similar]:
    """Documents of the portion that are at least ``limit`` like a held-out one."""
    mine = band_hashes(task.sketch)
    bands = np.load(task.bands_path, mmap_mode="r")
    places = np.load(task.places_path, mmap_mode="r")
    pairs: set[tuple[int, int]] = set()
    for band in range(NUM_BANDS):
        low = np.searchsorted(bands[band], mine[:, band], side="left")
        high = np.searchsorted(bands[band], mine[:, band], side="right")
        for document in np.flatnonzero(high > low).tolist():
            near = places[band, low[document] : high[document]].tolist()
            pairs.update((document, other) for other in near)
    if not pairs:
        return []
    index = np.load(task.sketch.index_path, mmap_mode="r")[task.sketch.first : task.sketch.last]
    heldout = np.load(task.heldout_path, mmap_mode="r")
    found: dict[int, Similar] = {}
    with task.sketch.spool.reader() as reader:
        for document, other in sorted(pairs):
            if document in found:
                continue
            alike = jaccard(
                shingles(reader.document(index[document])),
                shingles(reader.document(heldout[other])),
            )
            if alike >= task.limit:
                found[document] = Similar(task.sketch.first + document, other, alike)
    return list(found.values())


def shingles(document: Document) -> Hashes:
    """The hash of every shingle, at least one; repeated ones repeat."""
    if document.is_tokens:
        symbols = np.frombuffer(document.text, dtype="<u4").astype(np.uint64)
        width = SHINGLE_TOKENS
    else:
        symbols = np.frombuffer(_plain(document.text), dtype=np.uint8).astype(np.uint64)
        width = SHINGLE_BYTES
    if len(symbols) < width:
        symbols = np.pad(symbols, (0, width - len(symbols)))
    # A polynomial in an odd base, modulo 2^64. Runs of 1, 2, 4, ... symbols: that of 2n is made of
    # the two of n.
    hashes = symbols + np.uint64(1)
    for span, power in _POWERS:
        if span < width:
            hashes = hashes[:-span] * power + hashes[span:]
    return _mixed(hashes)


def sketch(hashes: Hashes) -> Hashes:
    """[ranges]: the smallest hash of each; an empty one takes the next one's, marked by how far."""
    smallest = np.full(NUM_RANGES, _LARGEST)
    np.minimum.at(smallest, (hashes >> _RANGE_SHIFT).astype(np.intp), hashes)
    filled = np.flatnonzero(smallest < _LARGEST)
    if len(filled) == NUM_RANGES:
        return smallest
    # The next filled range at or after each, going round.
    place = np.searchsorted(filled, np.arange(NUM_RANGES))
    owner = filled[place % len(filled)]
    distance = (owner - np.arange(NUM_RANGES)) % NUM_RANGES
    return smallest[owner] + distance.astype(np.uint64) * np.uint64(0xD1B54A32D192ED03)


def jaccard(left: Hashes, right: Hashes) -> float:
    """Common shingles over all, each counted once."""
    left, right = np.unique(left), np.unique(right)
    common = len(np.intersect1d(left, right, assume_unique=True))
    return common / (len(left) + len(right) - common)


def _bands(sketches: Hashes) -> Hashes:
    parts = sketches.reshape(len(sketches), NUM_BANDS, RANGES_PER_BAND)
    joined = np.zeros(parts.shape[:2], dtype=np.uint64)
    for member in range(RANGES_PER_BAND):
        joined = _mixed(joined * np.uint64(0x9E3779B97F4A7C15) + parts[:, :, member])
    return joined


def _mixed(values: Hashes) -> Hashes:
    """A bijection that lets every bit depend on all (Stafford's variant 13)."""
    shifted = values >> np.uint64(30)
    mixed = (values ^ shifted) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= np.right_shift(mixed, np.uint64(27), out=shifted)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= np.right_shift(mixed, np.uint64(31), out=shifted)
    return mixed


def _plain(text: bytes) -> bytes:
    """``b" ".join(text.lower().split())`` in a third of its time (2026-11-26)."""
    plain = text.translate(_PLAIN)
    while b"  " in plain:
        plain = plain.replace(b"  ", b" ")
    return plain.strip(b" ")


_PLAIN = bytes(ord(" ") if bytes([byte]).isspace() else byte for byte in range(256)).lower()
_POWERS = tuple(
    (2**n, np.uint64(pow(0x9E3779B97F4A7C15, 2**n, 2**64)))
    for n in range(max(SHINGLE_BYTES, SHINGLE_TOKENS).bit_length() - 1)
)
"""(run, the base to its power)."""
_LARGEST = np.uint64(2**64 - 1)
_RANGE_SHIFT = np.uint64(64 - (NUM_RANGES - 1).bit_length())
