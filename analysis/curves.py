"""Training curves: ``metrics.jsonl`` read back and thinned to what an eye can tell apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analysis.laws import Array


@dataclass(frozen=True)
class Curve:
    """Training loss and load of one run, averaged over bins of equal width in log tokens."""

    tokens: Array
    """Mean position of each bin, in tokens."""
    loss: Array
    """Mean training loss of each bin, nats per token."""
    lines: int
    """Logged steps behind the curve."""
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
    steps = list(_steps(path))
    if not steps:
        return None
    tokens = np.array([step["tokens"] for step in steps], dtype=float)
    loss = np.array([step["train_loss_nats"] for step in steps], dtype=float)
    layers = tuple(steps[-1].get("layers", ()))
    max_vio = np.array([step.get("max_vio", ()) for step in steps], dtype=float)
    return thin(tokens, loss, bins, layers=layers, max_vio=max_vio)


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


def _steps(path: Path) -> Iterator[dict[str, Any]]:
    """The training lines; evaluations and other kinds are passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return
            if row.get("kind") == "train":
                yield row
