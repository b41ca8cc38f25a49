"""A table that cuts nothing off: where the terminal is too narrow for its columns, a list.

Words are folded to fit, numbers are not: a number that lost its last digits would be another
number. Where even folded words leave too little room for the numbers, each row becomes a short
paragraph of its own, its numbers by name.
"""

from __future__ import annotations

from itertools import chain

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

from windtunnel.folding import lines_of

FOLDED = 12
"""Columns that words are folded to at the least."""
BETWEEN = 2
"""Columns between two of a table's."""


class PlainTable(Table):
    """A rich table of :class:`~rich.text.Text` cells; columns that may wrap hold words."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self._least_width() <= options.max_width:
            yield from super().__rich_console__(console, options)
        else:
            yield from self._as_list(options.max_width)

    def _least_width(self) -> int:
        return sum(_least_width(column) + BETWEEN for column in self.columns)

    def _as_list(self, width: int) -> RenderResult:
        if self.title:
            yield Text(f"{self.title}\n")
        names = [str(column.header) for column in self.columns]
        words = next((i for i, c in enumerate(self.columns) if c.no_wrap), len(self.columns))
        for row in zip(*(column.cells for column in self.columns), strict=True):
            cells = [str(cell).strip() for cell in row]
            head = "  ".join(cell for cell in cells[:words] if cell)
            named = [
                f"{name} {cell}".strip()
                for name, cell in zip(names[words:], cells[words:], strict=True)
                if cell
            ]
            body = lines_of(", ".join(_held_together(named)), width, first="  ", later="  ")
            yield Text("\n".join([head, *body]).replace(HELD, " ").strip("\n"))
        yield Text("")


HELD = "\0"
"""In place of a space at which a line may not break: a number stands with its name."""


def _held_together(phrases: list[str]) -> list[str]:
    return [phrase.replace(" ", HELD) for phrase in phrases]


def _least_width(column: Column) -> int:
    widest = max(len(str(cell)) for cell in chain([column.header], column.cells))
    if column.no_wrap:
        return widest
    return max(len(str(column.header)), min(widest, FOLDED))
