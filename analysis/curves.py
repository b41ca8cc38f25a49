"""Training curves: ``metrics.jsonl`` read back and thinned to what an eye can tell apart."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.laws import Array


@dataclass(frozen=True)
class Curve:
    """Training loss of one run, averaged over bins of equal width in log tokens."""

    tokens: Array
    """Mean position of each bin, in tokens."""
    loss: Array
    """Mean training loss of each bin, nats per token."""
    lines: int
    """Logged steps behind the curve."""


def read_curve(path: Path, bins: int = 120) -> Curve | None:
    """The curve in ``metrics.jsonl``, or None where no step was logged.

    A line cut off by a crash is the file's end; the steps before it stand.
    """
    if not path.exists():
        return None
    rows = np.array(list(_steps(path)), dtype=float).reshape(-1, 2)
    return thin(rows[:, 0], rows[:, 1], bins) if len(rows) else None


def thin(tokens: Array, loss: Array, bins: int) -> Curve:
    """Means over at most ``bins`` bins of equal width in log tokens; empty bins are left out."""
    edges = np.geomspace(tokens[0], tokens[-1], bins + 1)
    which = np.clip(np.searchsorted(edges, tokens, side="right") - 1, 0, bins - 1)
    count = np.bincount(which, minlength=bins)
    filled = count > 0
    return Curve(
        tokens=np.bincount(which, tokens, bins)[filled] / count[filled],
        loss=np.bincount(which, loss, bins)[filled] / count[filled],
        lines=len(tokens),
    )


def _steps(path: Path) -> Iterator[tuple[float, float]]:
    """(tokens, training loss) of each step logged; evaluations and other lines are passed over."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                return
            if "train_loss_nats" in row and "tokens" in row:
                yield row["tokens"], row["train_loss_nats"]
