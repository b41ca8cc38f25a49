"""Numbers and lists as words, for every screen and page alike."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, one: str, many: str) -> str:
    """``1 run``, ``23 runs``."""
    return f"{count} {one if count == 1 else many}"


def joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def largest_budgets(count: int) -> str:
    """``largest budget``, ``3 largest budgets``."""
    return "largest budget" if count == 1 else f"{count} largest budgets"
