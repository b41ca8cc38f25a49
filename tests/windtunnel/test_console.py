"""Numbers for people, tables in 100 columns, progress as a bar or as plain lines."""

import io

import pytest
from rich.console import Console

from analysis.wording import WIDTH, brief
from windtunnel.console import (
    Progress,
    duration,
    folded,
    make_console,
    sci,
    si,
    table,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (1000, "1.00k"),
        (65536, "65.5k"),
        (999_950, "1.00M"),
        (1.26e9, "1.26G"),
        (1.5e14, "150T"),
        (3e18, "3.00E"),
        (3e21, "3.00e+21"),
    ],
)
def test_counts(value: float, text: str) -> None:
    assert si(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.9, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 0 min"),
        (18_600, "5 h 10 min"),
        (86_400 * 3 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_short_exponents_and_brief_lines() -> None:
    assert (sci(4.784e9), sci(0.000336), sci(1)) == ("4.78e9", "3.36e-4", "1.00e0")
    assert brief("a\n  b") == "a b"
    assert len(brief("word " * 100)) == 240
    path = f"/data/{'folder/' * 40}train.jsonl"
    told = folded(f"failed: r1 w48: {brief(f'no such file: {path}, it is gone')}").plain
    assert all(len(line) <= WIDTH for line in told.splitlines())
    assert "/data/folder" in told
    assert "train.jsonl, it is gone" in " ".join(told.split())


def test_piped_tables_are_plain_and_fit() -> None:
    pipe = io.StringIO()
    wide = "w" * 150
    make_console(pipe).print(table(["name", "number"], [[wide, 12_345], ["[bold]x[/bold]", 1]]))
    lines = pipe.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert "\x1b" not in pipe.getvalue()
    assert "12345" in pipe.getvalue(), "numbers are never cut"
    assert "[bold]x[/bold]" in pipe.getvalue(), "data is not markup"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_piped_progress_prints_a_line_every_ten_seconds() -> None:
    pipe, clock = io.StringIO(), Clock()
    with Progress(make_console(pipe), "sweep", 100.0, clock=clock) as progress:
        progress.already(50.0)
        for second in range(1, 21):
            clock.now = float(second)
            progress.advance_to(50.0 + second, "1 running")
    assert pipe.getvalue().splitlines() == [
        "sweep: 60%, 1 running, 40 s left",
        "sweep: 70%, 1 running, 30 s left",
    ]


def test_time_left_leans_on_the_expectation_at_first_and_on_the_pace_later() -> None:
    clock = Clock()
    progress = Progress(make_console(io.StringIO()), "x", 1000.0, expected_s=100.0, clock=clock)
    assert progress.seconds_left() == pytest.approx(100.0)
    # Ten times slower than expected.
    clock.now = 900.0
    progress.advance_to(900.0)
    assert progress.seconds_left() == pytest.approx(100 * 910 / 1000)
    unknown = Progress(make_console(io.StringIO()), "x", 1000.0, clock=clock)
    assert unknown.seconds_left() is None


def test_on_a_terminal_a_bar_is_drawn_and_lines_stay_above_it() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, highlight=False)
    with Progress(console, "sweep", 10.0) as progress:
        progress.advance_to(5.0, "2 running")
        progress.line("done  r0")
    drawn = screen.getvalue()
    assert "50%" in drawn
    assert "2 running" in drawn
    assert "done  r0" in drawn


def test_a_pipe_that_takes_ascii_alone_gets_every_line() -> None:
    raw = io.BytesIO()
    pipe = io.TextIOWrapper(raw, encoding="ascii", errors="plainly")
    make_console(pipe).print(table(["law", "curve"], [["15.7·C^0.45", "▇▅▃▁_"], ["é", "≤"]]))
    pipe.flush()
    text = raw.getvalue().decode("ascii")
    assert "15.7.C^0.45" in text
    assert "*=-._" in text
    assert "?" in text
