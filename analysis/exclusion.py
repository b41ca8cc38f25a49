"""What was left out and why; by itself, so that reading records needs no numpy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """A point left out of a fit, and why."""

    label: str
    """Run id, or ``row 17`` of a table."""
    reason: str
