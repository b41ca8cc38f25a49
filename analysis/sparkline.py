"""A curve in a line of text, for a screen that draws nothing else."""

from __future__ import annotations

from collections.abc import Sequence

LEVELS = "_▁▂▃▄▅▆▇"


def sparkline(
    values: Sequence[float],
    width: int = 12,
    *,
    low: float | None = None,
    high: float | None = None,
) -> str:
    """A curve in ``width`` characters, its lowest value an underscore; empty for none.

    Curves that are to be compared share their ``low`` and ``high``.
    """
    if not values:
        return ""
    picked = [values[i * (len(values) - 1) // max(1, width - 1)] for i in range(width)]
    low = min(picked) if low is None else low
    span = (max(picked) if high is None else high) - low
    top = len(LEVELS) - 1
    return "".join(LEVELS[round(top * (value - low) / span) if span else 0] for value in picked)
