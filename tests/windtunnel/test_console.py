"""Numbers for people, tables in 100 columns, progress as a bar or as plain lines."""

import io

import pytest
from rich.console import Console

from analysis.wording import WIDTH, brief
from windtunnel.console import (
    Progress,
    duration,
    make_console,
    prose,
    sci,
    si,
    table,
)
from windtunnel.folding import Folded, refolded


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
    told = Folded(f"failed: r1 w48: {brief(f'no such file: {path}, it is gone')}").plain
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


def test_time_left_is_by_the_time_spent_working() -> None:
    """One unit a second for 100 s, then stopped for an hour, then on as before."""
    clock = Clock()
    progress = Progress(make_console(io.StringIO()), "x", 1000.0, expected_s=1000.0, clock=clock)
    for second in range(1, 101):
        clock.now = float(second)
        progress.advance_to(float(second))
    assert progress.seconds_left() == pytest.approx(900.0)
    clock.now += 3600
    assert progress.seconds_left() == pytest.approx(900.0), "nothing is known of the stop yet"
    for second in range(1, 11):
        clock.now += 1
        progress.advance_to(100.0 + second)
        assert progress.seconds_left() == pytest.approx(900.0 - second)


def test_what_was_done_before_is_no_pace() -> None:
    clock = Clock()
    progress = Progress(make_console(io.StringIO()), "x", 1000.0, clock=clock)
    progress.found(600.0)
    assert progress.seconds_left() is None
    clock.now = 10.0
    progress.advance_to(610.0)
    assert progress.seconds_left() == pytest.approx(390.0)
    progress.found(-100.0)  # a worker died and its last checkpoint is so much older
    assert progress.seconds_left() == pytest.approx(490.0)


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


NUMBERS = ["2026-11-27", "1.1865..1.3445", "1.2529", "7.405e+12"]


@pytest.mark.parametrize("width", [100, 70, 60, 40, 24])
def test_no_number_of_a_table_is_ever_cut(width: int) -> None:
    """A narrow terminal folds words, and where that is not enough the rows become a list."""
    made = table(["promotion", "registered", "interval", "measured", "used"], [])
    made.add_row("seed_1-next_rung-5.2x-448ca055", *NUMBERS)
    made.add_row("an open one", "2026-11-28", "", "", "3e21")
    made.title = "Forecasts"
    out = io.StringIO()
    Console(file=out, width=width).print(made)
    lines = out.getvalue().splitlines()
    words = out.getvalue().replace(",", " ").split()
    assert all(number in words for number in (*NUMBERS, "2026-11-28", "3e21"))
    assert max(map(len, lines)) <= max(width, len("  interval 1.1865..1.3445,"))
    assert lines[0].strip() == "Forecasts"
    if width >= 70:
        assert any(line.split() == ["promotion", "registered", "interval", "measured", "used"]
                   for line in lines)  # fmt: skip
    else:
        assert "seed_1-next_rung-5.2x-448ca055" in " ".join(words) or width < 30
        # An empty cell has no name either.
        assert sum(line.count("measured") for line in lines) == 1


@pytest.mark.parametrize("width", [140, 100, 80, 60])
def test_sentences_are_folded_to_the_terminal(width: int) -> None:
    """At no more than 100 columns, later lines set in, a path whole so that it can be copied."""
    path = f"/data/{'folder/' * 20}train.jsonl"
    out = io.StringIO()
    console = Console(file=out, width=width)
    console.print(Folded("Note: " + "the law asks for more tokens than there are " * 5))
    prose(console, f"kept as {path} for good")
    lines = out.getvalue().splitlines()
    assert path in lines[-2:][0] + lines[-1]
    others = [line for line in lines if path not in line]
    assert max(map(len, others)) <= min(width, 100)
    assert all(line.startswith("  ") for line in others[1:3])
    assert "".join(out.getvalue().split()) == "".join(
        ("Note: " + "the law asks for more tokens than there are " * 5 + f"kept as {path} for good")
        .split()
    )  # fmt: skip


def test_a_summary_made_for_100_columns_is_folded_anew() -> None:
    """Sentences flow, rows of a table and separate lines stay; no word is lost."""
    text = """Fit of a: 23 points

  hold-out    without the largest budget: 1 point up to 1.4 times beyond, off by 0.20% on average, 1
              of 1 inside the interval
  N 8e+04     2.362 to 1.837 over 4 token counts
              loss from few tokens to many, on one logarithmic scale
  Laws            mean  -1 budgets  -2 budgets  -3 budgets      inside     parameters     and more
    hoffmann     1.40%       0.20%       1.37%       2.63%      6 of 7              5         none
"""
    assert refolded(text, 100) == refolded(text, 140) == text
    lines = refolded(text, 60).split("\n")
    assert refolded(text, 60).split() == text.split()
    assert lines[2:5] == [
        "  hold-out    without the largest budget: 1 point up to 1.4",
        "              times beyond, off by 0.20% on average, 1 of 1",
        "              inside the interval",
    ]
    assert lines[5] == "  N 8e+04     2.362 to 1.837 over 4 token counts"
    assert lines[-3:] == text.split("\n")[-3:], "rows keep their columns"
