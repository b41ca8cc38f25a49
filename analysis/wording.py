"""Numbers and lists as words, for every screen and page alike."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100
"""Columns of every screen."""


def counted(count: int, one: str, many: str) -> str:
    """``1 run``, ``23 runs``."""
    return f"{count} {one if count == 1 else many}"


def joined(words: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def largest_budgets(count: int) -> str:
    """``largest budget``, ``3 largest budgets``."""
    return "largest budget" if count == 1 else f"{count} largest budgets"


def level_text(*levels: float) -> str:
    """``90%``, of several ``80% and 90%``; as it was asked for, never rounded up to 100%."""
    return " and ".join(f"{100 * level:.10g}%" for level in sorted(set(levels)))


def brief(text: str, most: int = 240) -> str:
    """One line of at most ``most`` characters; a log has the rest.

    A word that no line could hold, such as a long path, keeps its two ends.
    """
    longest = WIDTH - 10
    line = " ".join(
        word
        if len(word) <= longest
        else f"{word[: longest // 2 - 2]}...{word[-longest // 2 + 2 :]}"
        for word in text.split()
    )
    return line if len(line) <= most else f"{line[: most - 4]} ..."
