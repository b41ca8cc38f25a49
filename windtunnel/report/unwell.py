"""Runs that failed, diverged or were left out of the fit, those of one reason together."""

from __future__ import annotations

from dataclasses import dataclass

from windtunnel.report.content import Content, RunRow

BAD = ("failed", "diverged")


@dataclass(frozen=True, kw_only=True)
class Unwell:
    """What happened to one run or to several."""

    what: str
    """failed, diverged or left out."""
    reason: str
    run_ids: tuple[str, ...]


def unwell(content: Content) -> list[Unwell]:
    """What happened to most runs first; among equals in the ladder's order.

    One mistake fails a hundred runs: said a hundred times, it would hide what failed the others.
    """
    excluded = content.evidence.excluded
    found: dict[tuple[str, str], list[str]] = {}
    for row in content.runs:
        if row.status in BAD or (row.status == "done" and row.run_id in excluded):
            found.setdefault(_happened(row), []).append(row.run_id)
    groups = [
        Unwell(what=what, reason=reason, run_ids=tuple(ids))
        for (what, reason), ids in found.items()
    ]
    return sorted(groups, key=lambda group: -len(group.run_ids))


def _happened(row: RunRow) -> tuple[str, str]:
    """The status in a word, and the reason without it."""
    what = row.status if row.status in BAD else "left out"
    return what, (row.reason or row.use).removeprefix(f"{what}: ")
