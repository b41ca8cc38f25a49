"""What every verb prints with: tables in 100 columns, numbers for people, progress with time left.

On a terminal a progress bar moves; piped output is plain lines, one every few seconds.
"""

from __future__ import annotations

import codecs
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import IO, Self

from rich import box
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from analysis.wording import WIDTH
from model.pauses import WorkingTime
from windtunnel.folding import Folded
from windtunnel.plain_table import PlainTable
from windtunnel.streams import silence_stdout

PLAIN = dict(zip("▁▂▃▄▅▆▇·\u00d7≤≥…─", ".,-~=+*.x<>.-", strict=True))
"""For a screen or a pipe that takes ASCII alone; anything else becomes a question mark."""
PLAIN_LINE_EVERY_S = 10.0
# An expected duration counts as much as having seen this share of the work.
EXPECTATION_WEIGHT = 0.1


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    unknown = error.object[error.start : error.end]
    return "".join(PLAIN.get(char, "?") for char in unknown), error.end


codecs.register_error("plainly", _plainly)


def speak_plainly() -> None:
    """Let standard output and error take every text, in whatever encoding they were opened."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="plainly")


class Heard(Console):
    """A console whose reader may leave: the work goes on unheard, to its own end and exit code."""

    def on_broken_pipe(self) -> None:
        """In place of rich's, which ends the program with 1 before its work is done."""
        self.quiet = True
        silence_stdout()


def make_console(file: IO[str] | None = None) -> Console:
    """A console that is 100 columns wide wherever no terminal says otherwise."""
    console = Heard(file=file, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console = Heard(file=file, highlight=False, width=WIDTH, color_system=None)
    return console


def say(console: Console, text: str) -> None:
    """A line of prose; left whole, so that paths in it can be copied and searched."""
    console.print(Text(text), soft_wrap=True)


def prose(console: Console, text: str) -> None:
    """``text`` in as many columns as there are; left whole are paths, to be copied and searched."""
    say(console, Folded(text).in_columns(console.width))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "", left: int = 1
) -> Table:
    """A plain table: the first ``left`` columns are words, the rest numbers, right-aligned.

    On a terminal too narrow for it the rows become a list; no number is ever cut.
    """
    made = PlainTable(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for index, column in enumerate(columns):
        is_word = index < left
        made.add_column(
            Text(column),
            min_width=len(column),
            justify="left" if is_word else "right",
            no_wrap=not is_word,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    return made


def si(value: float, digits: int = 3) -> str:
    """A count with k, M, G...: 1234567 -> ``1.23M``. Above 1e21 as 1.23e+22."""
    for power, suffix in enumerate(("", "k", "M", "G", "T", "P", "E"), start=1):
        limit = 1000.0**power
        if abs(value) < limit * (1 - 0.5 * 10.0**-digits):
            scaled = value / (limit / 1e3)
            decimals = max(0, digits - len(str(int(abs(scaled)))))
            return f"{value:g}" if suffix == "" else f"{scaled:.{decimals}f}{suffix}"
    return f"{value:.{digits - 1}e}"


def sci(value: float) -> str:
    """Three digits and a short exponent: 4.78e9, 3.1e-2."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def duration(seconds: float) -> str:
    """Seconds for people: ``0.4 s``, ``42 s``, ``3 min 20 s``, ``5 h 10 min``, ``3 d 4 h``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, size, lower, step in (("d", 86400, "h", 3600), ("h", 3600, "min", 60)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // step} {lower}"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


class Progress:
    """How far some long work is, in any unit; the time left comes from the pace so far.

    Use as a context manager; `advance_to` may be called as often as is convenient, `line` prints
    something lasting above the bar.
    """

    def __init__(
        self,
        console: Console,
        what: str,
        total: float,
        *,
        expected_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``total`` in any unit; ``expected_s`` is how long all that is left now should take."""
        self._console = console
        self._what = what
        self._total = total
        self._before = self._done = 0.0
        self._expected_s = expected_s
        self._clock = clock
        self._moved_at = self._printed = clock()
        self._working = WorkingTime()
        self._worked_s = 0.0
        self._bar: RichProgress | None = None
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TaskProgressColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
                transient=True,
            )
            self._task = self._bar.add_task(what, total=total, note="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def already(self, done: float) -> None:
        """Say how much was done before: it counts as progress but not as pace."""
        self._before = self._done = done
        self._moved_at, self._worked_s = self._clock(), 0.0
        if self._bar is not None:
            self._bar.update(self._task, completed=done)

    def advance_to(self, done: float, note: str = "") -> None:
        """Say how much is done by now, of ``total``."""
        if done > self._done:
            now = self._clock()
            self._worked_s += self._working.of(
                now - self._moved_at, done - self._done, self._pace()
            )
            self._moved_at = now
        self._done = done
        left = self.seconds_left()
        text = ", ".join(filter(None, [note, f"{duration(left)} left" if left is not None else ""]))
        if self._bar is not None:
            self._bar.update(self._task, completed=done, note=text)
        elif self._clock() - self._printed >= PLAIN_LINE_EVERY_S:
            self._printed = self._clock()
            share = done / self._total if self._total else 1.0
            self.line(f"{self._what}: {share:.0%}" + (f", {text}" if text else ""))

    def found(self, more: float) -> None:
        """Say that so much more than was known was done before, or was lost (below zero)."""
        self._before += more
        self._done += more

    def seconds_left(self) -> float | None:
        """At the pace of the time spent working, leaning on what was expected while little has
        moved."""
        pace = self._pace()
        return max(0.0, self._total - self._done) / pace if pace else None

    def _pace(self) -> float | None:
        """A second's part of the total; None before anything is known of it."""
        moved, worked_s = self._done - self._before, self._worked_s
        if self._expected_s is not None:
            moved += EXPECTATION_WEIGHT * (self._total - self._before)
            worked_s += EXPECTATION_WEIGHT * self._expected_s
        return moved / worked_s if moved > 0 and worked_s > 0 else None

    def line(self, text: str) -> None:
        """Print something that stays."""
        say(self._console, text)
