"""How a finished run used its experts: what its last evaluation holds beside losses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.laws import Array

TAIL_BYTES = 8_000_000
"""Read of a long log. The line of a run with 64 layers of 256 experts and 4 domains has 2 MB."""


@dataclass(frozen=True)
class ExpertUse:
    """Routing over held-out text at a run's end. Shapes: L mixture layers, E experts."""

    layers: tuple[int, ...]
    load_by_domain: dict[str, Array]
    """Share of the choices of a domain's tokens [L, E]; each row sums to 1."""
    paired_experts: tuple[tuple[int, ...], ...]
    """By layer the experts with the strongest partners, ascending."""
    pairs: tuple[Array, ...]
    """By layer: the share of the row's tokens that the column's expert got too."""


def read_expert_use(path: Path) -> ExpertUse | None:
    """From ``metrics.jsonl``; None where the run has not ended or measured no experts."""
    if not path.exists():
        return None
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        lines = file.read().split(b"\n")
    for text in reversed(lines):
        if b'"load_by_domain"' not in text:
            continue
        try:
            line = json.loads(text)
        except ValueError:
            return None  # its beginning lies before what was read
        return ExpertUse(
            layers=tuple(line["layers"]),
            load_by_domain={
                name: np.array(load, dtype=float) for name, load in line["load_by_domain"].items()
            },
            paired_experts=tuple(tuple(pairs["experts"]) for pairs in line["pairs"]),
            pairs=tuple(np.array(pairs["share"], dtype=float) for pairs in line["pairs"]),
        )
    return None
