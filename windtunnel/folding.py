"""Sentences folded to the screen: at 100 columns, or at a narrower terminal's."""

from __future__ import annotations

import re
from textwrap import wrap

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from analysis.wording import WIDTH


def lines_of(text: str, width: int, *, first: str = "", later: str = "") -> list[str]:
    """``text`` folded at ``width`` between words; a long path or name stays whole, even beyond."""
    return wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=later,
        break_on_hyphens=False,
        break_long_words=False,
    )


class Folded:
    """Sentences in lines of 100 columns, or of a narrower terminal's, the later ones set in."""

    def __init__(self, text: str) -> None:
        self._text = text

    @property
    def plain(self) -> str:
        """In 100 columns."""
        return self.in_columns(WIDTH)

    def in_columns(self, width: int) -> str:
        """A long path or name stays whole, even beyond ``width``."""
        text = self._text
        inner = " " * (len(text) - len(text.lstrip()) + 2)
        return "\n".join(lines_of(text, min(width, WIDTH), later=inner))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self.in_columns(options.max_width))


def refolded(text: str, width: int) -> str:
    """Lines that were folded at 100 columns, folded at ``width`` where that is less.

    A line and the next, if it is set in further, are one sentence where the next word had found no
    room. Rows of a table stay as they are.
    """
    if width >= WIDTH:
        return text
    made: list[str] = []
    paragraph: list[str] = []
    for line in text.split("\n"):
        if paragraph and _continues(paragraph, line):
            paragraph.append(line)
        else:
            made += _narrower(paragraph, width)
            paragraph = [line]
    return "\n".join([*made, *_narrower(paragraph, width)])


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_row(line: str) -> bool:
    return len(re.findall(r"\S {3,}(?=\S)", line)) > 1


def _continues(paragraph: list[str], line: str) -> bool:
    if _indent(line) <= _indent(paragraph[0]) or not line.strip() or _is_row(paragraph[0]):
        return False
    return len(paragraph[-1]) + 1 + len(line.split(maxsplit=1)[0]) > WIDTH


def _narrower(lines: list[str], width: int) -> list[str]:
    if not lines or max(map(len, lines)) <= width or _is_row(lines[0]):
        return lines
    first, later = lines[0], lines[1:]
    label = re.match(r"\s*\S+(?: \S+)*\s{2,}", first)  # of a row, and the gap after it
    hang = _indent(later[0]) if later else label.end() if label else _indent(first) + 2
    head = first[:hang] if later or label else first[: _indent(first)]
    text = " ".join([first[len(head) :].strip(), *map(str.strip, later)])
    return lines_of(text, width, first=head, later=" " * hang)
