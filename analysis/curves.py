"""Training curves: ``metrics.jsonl`` read back and thinned to what an eye can tell apart.

A short log is read whole and its steps are averaged in bins. Of a long one only lines at places
spread evenly in log tokens are read, so that a million logged steps cost what a thousand do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from analysis.laws import Array

WHOLE_BYTES = 1_000_000
"""A longer log is sampled."""
SAMPLES = 1200
BLOCK = 4096
"""Bytes read at a place: more than a line has."""


@dataclass(frozen=True)
class Curve:
    """Training loss and load of one run, averaged over bins of equal width in log tokens."""

    tokens: Array
    """Mean position of each bin, in tokens."""
    loss: Array
    """Mean training loss of each bin, nats per token."""
    lines: int
    """Logged steps in the file; of a sampled one what its length says."""
    sampled: bool = False
    """Whether only some of its lines were read."""
    layers: tuple[int, ...] = ()
    """Blocks with routed experts; empty where none were logged."""
    max_vio: Array = field(default_factory=lambda: np.zeros((0, 0)))
    """Mean MaxVio of each bin and layer, over single batches, [bins, layers]."""


def read_curve(path: Path, bins: int = 120) -> Curve | None:
    """The curve in ``metrics.jsonl``, or None where no step was logged.

    A line cut off by a crash is the file's end; the steps before it stand.
    """
    if not path.exists():
        return None
    size = path.stat().st_size
    sampled = size > WHOLE_BYTES
    with path.open("rb") as file:
        lines = list(_sampled(file, size) if sampled else file)
    steps = [row for row in _rows(lines) if row.get("kind") == "train"]
    if not steps:
        return None
    tokens = np.array([step["tokens"] for step in steps], dtype=float)
    loss = np.array([step["train_loss_nats"] for step in steps], dtype=float)
    layers = tuple(steps[-1].get("layers", ()))
    max_vio = np.array([step.get("max_vio", ()) for step in steps], dtype=float)
    curve = thin(tokens, loss, bins, layers=layers, max_vio=max_vio)
    if sampled:
        per_line = sum(map(len, lines)) / len(lines)
        return replace(curve, lines=round(size / per_line), sampled=True)
    return curve


def thin(
    tokens: Array,
    loss: Array,
    bins: int,
    *,
    layers: tuple[int, ...] = (),
    max_vio: Array | None = None,
) -> Curve:
    """Means over at most ``bins`` bins of equal width in log tokens; empty bins are left out."""
    edges = np.geomspace(tokens[0], tokens[-1], bins + 1)
    which = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = count > 0

    def means(values: Array) -> Array:
        return np.asarray(np.bincount(which, values, bins)[filled] / count[filled])

    columns = [means(column) for column in max_vio.T] if max_vio is not None else []
    return Curve(
        tokens=means(tokens),
        loss=means(loss),
        lines=len(tokens),
        layers=layers,
        max_vio=np.stack(columns, axis=1) if columns else np.zeros((0, 0)),
    )


def _rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """The lines as mappings, up to the first that a crash tore."""
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            return


def _sampled(file: IO[bytes], size: int) -> Iterator[bytes]:
    """Whole lines at the start, at the end, and where log-spaced places between them fall."""
    yield file.readline()
    last = file.tell()
    for place in np.geomspace(last, size - BLOCK, SAMPLES):
        if place < last:
            continue
        file.seek(int(place))
        head, cut, rest = file.read(BLOCK).partition(b"\n")
        line, end, _ = rest.partition(b"\n")
        if cut and end:
            yield line
            last = int(place) + len(head) + len(line) + 1
    file.seek(max(last, size - BLOCK))
    yield from file.read(size - file.tell()).split(b"\n")[-2:-1]
