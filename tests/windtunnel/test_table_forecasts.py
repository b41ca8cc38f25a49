"""A table's forecast: registered before its run exists, closed by the table that holds it."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.law_study import LawStudy
from analysis.laws import LossSurface
from analysis.plots import Evidence, draw_all
from analysis.study import Study
from windtunnel import cli, runs_to_fit
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.closing import outcome_in_table
from windtunnel.ledger import Ledger, ledger_of
from windtunnel.ledger_rows import Entry, TableForecastRow, TableOutcomeRow
from windtunnel.report.content import gather
from windtunnel.report.page import render

Capture = pytest.CaptureFixture[str]
LAW = LossSurface(E=1.8, A=60.0, B=80.0, alpha=0.35, beta=0.37)
PLACE = (1e9, 2e9)
"""A run at three times the largest compute of the table."""
WORDS = (
    *("columns.params=N", "columns.tokens=D", "columns.loss=L"),
    *("fit.replicates=100", "fit.starts=300", "fit.holdout_budgets=1"),
)
AT = (f"at.params={PLACE[0]}", f"at.tokens={PLACE[1]}")
TRUTH = float(LAW(*PLACE))


def cells(scale: float = 1.0) -> list[tuple[float, float, float]]:
    """24 runs of LAW with the noise of 0.2 %; ``scale`` on the losses is another unit."""
    rng = np.random.default_rng(3)
    places = [(1e7 * 2.0**i, 1e8 * 2.0**j) for i in range(6) for j in range(4)]
    return [
        (n, d, scale * float(LAW(n, d)) * math.exp(0.002 * rng.standard_normal()))
        for n, d in places
    ]


def write(path: Path, rows: list[tuple[float, float, float | str]]) -> Path:
    lines = [",".join(x if isinstance(x, str) else f"{x:.12g}" for x in row) for row in rows]
    path.write_text("N,D,L\n" + "\n".join(lines) + "\n")
    return path


def with_run(loss: float | str, *more: tuple[float, float, float | str]) -> list:
    """The table with the run that was forecast, a little off its plan as real ones are."""
    return [*cells(), (1.006e9, 1.999e9, loss), *more]


def register(root: Path, table: Path, *words: str) -> int:
    given = [f"root={root}", f"records={table}", *WORDS, *AT, "register=true", *words]
    return cli.main(["fit", *given])


def close(root: Path, *words: str, name: str = "latest") -> int:
    return cli.main(["ledger", f"root={root}", f"close={name}", *words])


def only(root: Path) -> Entry:
    (entry,) = ledger_of(root).read().entries
    return entry


def said(capsys: Capture) -> str:
    return " ".join(capsys.readouterr().out.split())


def error_of(capsys: Capture) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table and the root its forecast was registered in."""
    folder = tmp_path_factory.mktemp("registered")
    write(folder / "runs.csv", cells())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert register(folder / "tunnel", Path("runs.csv")) == 0
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    monkeypatch.chdir(shutil.copytree(made, tmp_path / "work"))
    return tmp_path / "work"


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "tunnel"


@pytest.fixture
def table(folder: Path) -> Path:
    return folder / "runs.csv"


def test_what_is_registered_is_the_fits_own_forecast(root: Path, table: Path) -> None:
    study = Study.load(root / "fits/runs/fit.json")
    row = only(root).forecast
    assert isinstance(row, TableForecastRow)
    assert row.forecast == study.forecasts[0].forecast
    assert row.forecast.contains(TRUTH)
    assert row.forecast.extrapolation_ratio == pytest.approx(1e9 * 2e9 / (3.2e8 * 8e8))
    assert row.coefficients == study.surface.coefficients
    assert row.warnings == study.surface.warnings
    assert row.at == {"size": PLACE[0], "tokens": PLACE[1]}
    assert row.train_flops == pytest.approx(6 * PLACE[0] * PLACE[1])
    assert row.table.sha256 == hashlib.sha256(table.read_bytes()).hexdigest()
    assert (row.table.num_rows, len(row.table.fitted_rows)) == (24, 24)
    assert row.options["columns"]["loss"] == "L"
    assert row.options["fit"]["starts"] == 300
    passed = {"holdout_error", "interval_width", "extrapolation", "fit_health"}
    assert (set(row.passed_gates), set(row.failed_gates)) == (passed, {"noise_floor"})
    assert (row.after_the_fact, row.earlier, only(root).verdict) == (False, "", "open")


def test_the_same_thing_is_one_row_whatever_the_file_is_called(
    root: Path, table: Path, folder: Path, capsys: Capture
) -> None:
    before = (root / "ledger.jsonl").read_bytes()
    (folder / "newest.csv").symlink_to(table)
    shutil.copy(table, folder / "copy.csv")
    for path in (folder / "newest.csv", folder / "copy.csv"):
        assert register(root, path) == 0
        assert f"Registered before, on {only(root).forecast.registered_at}" in said(capsys)
    assert (root / "ledger.jsonl").read_bytes() == before


def test_a_changed_table_is_another_row_that_says_so(
    root: Path, table: Path, capsys: Capture
) -> None:
    first = only(root)
    write(table, [*cells(), (6.4e8, 1e8, float(LAW(6.4e8, 1e8)))])
    assert register(root, table) == 0
    now = f"{first.name} forecast the same run before, from another content of the table (24 rows, "
    assert now + "now 25)" in said(capsys)
    entries = ledger_of(root).read().entries
    assert entries[0] == first
    assert isinstance(entries[1].forecast, TableForecastRow)
    assert entries[1].forecast.earlier == first.name
    assert [entry.verdict for entry in entries] == ["open", "open"]
    assert cli.main(["ledger", f"root={root}"]) == 0
    assert now in said(capsys)


def test_a_forecast_is_shown_whose_earlier_one_was_taken_out(
    root: Path, table: Path, capsys: Capture
) -> None:
    write(table, [*cells(), (6.4e8, 1e8, float(LAW(6.4e8, 1e8)))])
    assert register(root, table) == 0
    path = ledger_of(root).path
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    name = only(root).name
    capsys.readouterr()
    assert cli.main(["ledger", f"root={root}"]) == 2  # what was taken out shows in the chain
    assert f"{name}: size 1e+09, tokens 2e+09, by law=hoffmann" in said(capsys)


def test_the_table_with_the_run_closes_it(root: Path, table: Path, capsys: Capture) -> None:
    """The nearest row to the place is the run; another that is near as well is told of."""
    write(table, with_run(2.0, (1.015e9, 2e9, 9.0), (2e9, 2e9, 1.0)))
    assert close(root) == 0
    entry = only(root)
    inside = entry.forecast.forecast.contains(2.0)
    assert entry.verdict == ("inside" if inside else "OUTSIDE")
    assert (entry.measured, entry.kind) == (2.0, "table")
    assert isinstance(entry.outcome, TableOutcomeRow)
    assert (entry.outcome.row, entry.outcome.num_rows) == ("row 26", 27)
    assert entry.outcome.at == {"size": 1.006e9, "tokens": 1.999e9}
    assert "row 26 of runs.csv, at size 1.006e+09, tokens 1.999e+09, the nearest of 2 there" in (
        said(capsys).replace(f"{table.parent}/", "")
    )
    write(table, with_run(TRUTH))
    assert close(root, name=entry.name) == 0
    assert "Closed before" in said(capsys)
    assert only(root) == entry
    assert "1 measured losses inside" in calibration_sentence(calibration([entry]))


def test_a_run_that_is_measured_already_is_no_forecast(
    root: Path, table: Path, capsys: Capture
) -> None:
    """Kept for a test or dropped as odd, for what it measured."""
    write(table, with_run(1.9 * TRUTH))
    for words in (("test.N=1.006e9",), ("table.drop_highest_losses=1",)):
        assert register(root, table, *words) == 0
        assert "row 26 of the table is that run, measured" in said(capsys)
    first, *late = ledger_of(root).read().entries
    assert not first.forecast.after_the_fact
    assert [entry.forecast.after_the_fact for entry in late] == [True] * 2
    assert close(root) == 0
    assert ledger_of(root).read().entries[-1].verdict == "OUTSIDE (after the fact)"
    assert calibration(ledger_of(root).read().entries).num_forecasts == 0


def test_a_fit_says_that_a_forecast_can_be_closed(root: Path, table: Path, capsys: Capture) -> None:
    """Of this table by these columns, while it is open."""
    words = ["fit", f"root={root}", *WORDS]
    write(table, with_run(TRUTH))
    assert cli.main([*words, "records=runs.csv"]) == 0
    name = only(root).name
    assert f"the run that {name} forecast is in the table by now" in said(capsys)
    shutil.copy(table, table.with_name("else.csv"))
    assert cli.main([*words, "records=else.csv"]) == 0
    assert close(root) == 0
    assert cli.main([*words, "records=runs.csv"]) == 0
    assert "is in the table by now" not in said(capsys)


def test_a_forecast_after_the_outcome_is_known_is_none(root: Path, table: Path) -> None:
    """Though the table no longer holds the run."""
    write(table, with_run(TRUTH))
    assert close(root) == 0
    write(table, cells()[:-1])
    assert register(root, table) == 0
    assert [e.forecast.after_the_fact for e in ledger_of(root).read().entries] == [False, True]


def test_other_losses_of_the_fitted_rows_are_another_measure(
    root: Path, table: Path, folder: Path, capsys: Capture
) -> None:
    """It is on record and no evidence, until a table that has the rows takes its place."""
    other = write(folder / "other.csv", [(1e9, 2e9, TRUTH), *cells()[2:], (*cells()[1][:2], 3.0)])
    assert close(root, f"records={other}") == 0
    assert "2 rows that the law was fitted to can't be found there as before" in said(capsys)
    assert (only(root).verdict, only(root).counts) == ("inside (table changed)", False)
    write(table, with_run(TRUTH))
    assert close(root, name=only(root).name) == 0
    assert (only(root).verdict, only(root).counts) == ("inside", True)
    assert len(ledger_of(root).lines()) == 3, "nothing is rewritten"


def test_a_stated_loss_is_kept_and_no_evidence(root: Path, table: Path, capsys: Capture) -> None:
    stated = (f"loss_nats={TRUTH}", "source=W&B, run 7")
    assert close(root, *stated) == 0
    assert "not measured here but stated (W&B, run 7)" in said(capsys)
    assert (only(root).verdict, only(root).counts) == ("inside (stated)", False)
    write(table, with_run(TRUTH))
    assert close(root, name=only(root).name) == 0
    assert only(root).counts
    assert close(root, *stated, name=only(root).name) == 0
    assert only(root).counts, "what was measured stays"


def test_a_run_that_diverged_is_a_miss(root: Path, table: Path, capsys: Capture) -> None:
    """It is not made good by a run that is trained again."""
    assert close(root, "diverged=loss of 9, from step 4,000 on") == 0
    assert "the run diverged (loss of 9, from step 4,000 on): the forecast missed" in said(capsys)
    write(table, with_run(TRUTH))
    assert close(root, name=only(root).name) == 0
    assert (only(root).verdict, only(root).counts) == ("DIVERGED", True)
    found = calibration([only(root)])
    assert (found.num_inside, found.by_kind) == (0, {"table": (0, 1)})


@pytest.mark.parametrize(
    ("wrong", "unit"), [(TRUTH / math.log(2), "bits"), (math.exp(TRUTH), "a perplexity")]
)
def test_a_loss_in_another_unit_is_asked_about(
    root: Path, table: Path, wrong: float, unit: str, capsys: Capture
) -> None:
    assert close(root, f"loss_nats={wrong}", "source=x") == 2
    assert f"read as {unit} it would be {TRUTH:.4g} nats" in error_of(capsys)
    write(table, with_run(wrong))
    assert close(root) == 2
    assert f"the loss of row 26 is {wrong:.4g}" in error_of(capsys)
    assert only(root).outcome is None
    assert close(root, "check_units=false") == 0
    assert only(root).verdict == "OUTSIDE"


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.1, 1.25, 1.9])
def test_a_miss_is_not_taken_for_a_unit(root: Path, factor: float) -> None:
    """Nothing but what a unit explains is asked about."""
    assert close(root, f"loss_nats={factor * TRUTH}", "source=x") == 0
    assert only(root).verdict.startswith("OUTSIDE")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("close=latest", "loss_nats=nan", "source=x"), "loss_nats"),
        (("close=latest", "loss_nats=-1", "source=x"), "loss_nats must be positive, got -1.0"),
        (("close=latest", "loss_nats=2"), "needs source='...'"),
        (("close=latest", "source=x"), "belongs to loss_nats"),
        (("loss_nats=2", "source=x"), "say which one, close=NAME"),
        (("close=latest", "loss_nats=2", "source=x", "records=runs.csv"), "give one"),
        (("close=latest", "loss_nats=2", "source=x", "diverged=spike"), "the run has one end"),
        (("diverged=spike",), "diverged=spike closes a table's forecast: say which one"),
        (("close=latest", "records=nowhere.csv"), "nowhere.csv: no such file"),
        (("close=latest", "records=tunnel"), "tunnel"),
        (("close=latest", "tolerance=0"), "tolerance must be positive"),
        (("close=runs-0",), "no such forecast of a table is open. Open ones: runs-"),
        (("close=latest",), "within 0.02 of size 1e+09, tokens 2e+09; the nearest is row 25 at"),
    ],
)
def test_what_cannot_close_it_gives_one_line(
    root: Path, words: tuple[str, ...], message: str, capsys: Capture
) -> None:
    before = (root / "ledger.jsonl").read_bytes()
    assert cli.main(["ledger", f"root={root}", *words]) == 2
    assert message in error_of(capsys)
    assert (root / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("cell", ["", "NaN", "diverged"])
def test_a_run_without_a_loss_is_named(root: Path, table: Path, cell: str, capsys: Capture) -> None:
    write(table, with_run(cell))
    assert close(root) == 2
    assert "No measurement: row 26: 'L' (columns.loss) is" in error_of(capsys)
    assert only(root).outcome is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("at={}",), "say which run is forecast, e.g. at.params=7e9"),
        (("law=power",), "does not forecast a loss"),
        (("law=isoflop",), "does not forecast a loss"),
        (("records=tunnel",), "is for the law of a table"),
        (("records=nowhere.csv",), "no such file"),
        (("at={flops: 1e20}",), "at.size: missing"),
        (("root=runs.csv/tunnel",), "runs.csv is a file, where a folder should be"),
    ],
)
def test_what_cannot_be_registered_gives_one_line(
    root: Path, table: Path, words: tuple[str, ...], message: str, capsys: Capture
) -> None:
    at = () if words[0].startswith("at=") else AT
    options = (*WORDS, *at, f"root={root}", f"records={table}", *words)
    given = {option.partition("=")[0]: option for option in options}
    assert cli.main(["fit", *given.values(), "register=true"]) == 2
    assert message in error_of(capsys)
    assert len(ledger_of(root).lines()) == 1


def test_a_table_that_is_written_while_it_is_read_is_refused(
    root: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    load = runs_to_fit.load_table

    def meanwhile(path: Path, *rest: object) -> object:
        loaded = load(path, *rest)
        write(path, with_run(TRUTH))
        return loaded

    monkeypatch.setattr(runs_to_fit, "load_table", meanwhile)
    assert register(root, table) == 2
    assert "was written while it was read" in error_of(capsys)
    assert len(ledger_of(root).lines()) == 1


def test_an_altered_forecast_is_seen_and_can_not_be_closed(
    root: Path, table: Path, capsys: Capture
) -> None:
    path = root / "ledger.jsonl"
    low = only(root).forecast.forecast.low
    path.write_text(path.read_text().replace(f'"low": {low}', '"low": 0.5', 1))
    write(table, with_run(TRUTH))
    assert close(root) == 2
    assert "line 1: altered after it was written" in error_of(capsys)
    assert cli.main(["ledger", f"root={root}"]) == 2
    assert "ALTERED" in said(capsys)


def test_both_kinds_stand_together_and_are_told_apart(
    root: Path, known_promotion_rows: Callable[[Ledger], None], table: Path, capsys: Capture
) -> None:
    known_promotion_rows(ledger_of(root))
    write(table, with_run(TRUTH))
    assert close(root) == 0
    assert cli.main(["ledger", f"root={root}"]) == 0
    text = said(capsys)
    assert "1 of 2 measured losses inside the interval (0 of 1 of sweeps, 1 of 1 of tables)" in text
    assert ": size 1e+09, tokens 2e+09, by law=hoffmann of runs.csv; a launch would" in text
    assert close(root, name="promoted") == 2
    assert f"`windtunnel launch promotion=promoted root={root}` closes it" in error_of(capsys)


@pytest.fixture
def known_promotion_rows() -> Callable[[Ledger], None]:
    from analysis.results import Prediction
    from windtunnel.ledger_rows import ForecastRow, OutcomeRow

    def add(ledger: Ledger) -> None:
        foretold = Prediction(value=2.0, low=1.9, high=2.1, level=0.9, extrapolation_ratio=6.0)
        ledger.register(
            ForecastRow(
                promotion_id="promoted",
                promotion_hash="x",
                run_id="r",
                sweep="s",
                target="t",
                registered_at="2026-11-23T10:00:00+00:00",
                train_flops=1e13,
                forecast=foretold,
            )
        )
        ledger.record_outcome(
            OutcomeRow(
                promotion_id="promoted",
                run_id="r",
                recorded_at="2026-11-23T11:00:00+00:00",
                status="done",
                loss_nats=2.2,
                inside=False,
            )
        )

    return add


def test_the_report_shows_both_kinds(
    finished: Any, root: Path, table: Path, tmp_path: Path
) -> None:
    """A table's beside the launched promotion's; a law without FLOPs has an empty cell."""
    report = shutil.copytree(finished.root, tmp_path / "reported", symlinks=True)
    ledger, row = ledger_of(report), only_first(root / "ledger.jsonl")
    ledger.register(row)
    ledger.register(replace(row, promotion_id="b", content_id="b", run_id="b", train_flops=None))
    write(table, with_run(TRUTH))
    ledger.record_outcome(outcome_in_table(row, table, 0.02, check_units=True))
    content = gather("quickstart", report, made_at="2026-11-27", version="0")
    assert [one.evidence for one in content.evidence.forecasts] == ["quickstart", "runs"]
    html = render(content, draw_all(Evidence(records=())))
    (part,) = re.findall(r'<section id="ledger">.*?</section>', html, re.DOTALL)
    rows = [re.sub(r"<[^>]+>", " ", one).split() for one in part.split("<tr>")[2:]]
    assert [one[-3] for one in rows] == ["sweep", "table", "table"]  # before date and time
    assert [one[1] for one in rows] == ["inside", "inside", "open"]
    assert f"{TRUTH:.4f}" in rows[1]
    assert "of 1 of sweeps, 1 of 1 of tables)" in part


def test_a_promotions_rows_are_still_those_of_version_2(
    root: Path, known_promotion_rows: Callable[[Ledger], None]
) -> None:
    """A program of that version reads them, and can follow the chain across a table's rows."""
    known_promotion_rows(ledger_of(root))
    lines = (root / "ledger.jsonl").read_text().splitlines()
    table_row, forecast, outcome = map(json.loads, lines)
    fields = "kind version promotion_id promotion_hash run_id sweep target registered_at "
    fields += "train_flops forecast overrides after_the_fact previous hash"
    assert list(forecast) == fields.split()
    fields = "kind version promotion_id run_id recorded_at status reason loss_nats inside trained "
    assert list(outcome) == f"{fields}stated_by previous hash".split()
    assert (forecast["version"], outcome["version"], table_row["version"]) == (2, 2, 3)
    assert {"promotion_id", "previous", "hash"} <= set(table_row)
    assert forecast["previous"] == table_row["hash"]


def test_any_law_of_a_loss_and_any_place(root: Path, folder: Path) -> None:
    """By its own variables; where the place says no FLOPs there are none."""
    rows = "".join(f"{d:g},{1.7 + 400 / d**0.3:.5f}\n" for d in 1e7 * 2.0 ** np.arange(9))
    (folder / "tokens.csv").write_text(f"D,L\n{rows}")
    words = ["columns.tokens=D", "columns.loss=L", *WORDS[3:], "law=tokens", "at.tokens=1e10"]
    records = f"records={folder / 'tokens.csv'}"
    assert cli.main(["fit", f"root={root}", records, *words, "register=true"]) == 0
    row = ledger_of(root).read().entries[-1].forecast
    assert isinstance(row, TableForecastRow)
    study = LawStudy.from_json((root / "fits/tokens/fit.json").read_text())
    assert row.forecast == study.forecasts[0].forecast
    assert (row.law, row.at, row.train_flops) == ("tokens", {"tokens": 1e10}, None)
    (folder / "tokens.csv").write_text(f"D,L\n{rows}1.01e10,2.1\n")
    assert close(root) == 0
    assert ledger_of(root).read().entries[-1].verdict in ("inside", "OUTSIDE")
    assert cli.main(["ledger", f"root={root}"]) == 0


NO_LOCKS = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = refuse
"""
REGISTERING = """
import sys
from dataclasses import replace
from pathlib import Path
from windtunnel.ledger import Ledger
ledger = Ledger(Path(sys.argv[1]))
first = ledger.read().entries[0].forecast
for n in range(int(sys.argv[3])):
    name = f"{sys.argv[2]}-{n}"
    row = replace(first, promotion_id=name, content_id=name, run_id=name)
    ledger.register(row)
    print(name, flush=True)
"""


def registering(path: Path, prefix: str, count: int, before: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", before + REGISTERING, str(path), prefix, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("before", ["", NO_LOCKS], ids=["flock", "no_locks"])
def test_processes_at_once_keep_every_forecast(root: Path, before: str) -> None:
    """Of the same things two of them make one row each; on a file system without locks as well."""
    path = root / "ledger.jsonl"
    running = [registering(path, prefix, 15, before) for prefix in ("one", "one", "two")]
    assert all(len(process.communicate()[0].split()) == 15 for process in running)
    read = Ledger(path).read()
    assert read.problems == ()
    names = sorted(entry.name for entry in read.entries[1:])
    assert names == sorted(f"{prefix}-{n}" for prefix in ("one", "two") for n in range(15))


def test_a_killed_registration_loses_nothing(root: Path) -> None:
    """What was said to be registered is there whole, and the next one goes on behind it."""
    path = root / "ledger.jsonl"
    process = registering(path, "killed", 10_000)
    assert process.stdout is not None
    told = [process.stdout.readline().strip() for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    told += process.communicate()[0].split()
    row = replace(only_first(path), promotion_id="after", content_id="after", run_id="after")
    assert Ledger(path).register(row).promotion_id == "after"
    read = Ledger(path).read()
    assert not read.is_damaged
    names = [entry.name for entry in read.entries]
    assert names[1 : 1 + len(told)] == told
    assert names[-1] == "after"
    assert len(names) - len(told) <= 3, "at most one was registered that could not be told any more"


def only_first(path: Path) -> TableForecastRow:
    row = Ledger(path).read().entries[0].forecast
    assert isinstance(row, TableForecastRow)
    return row


def test_a_read_only_root_gives_one_line(root: Path, table: Path, capsys: Capture) -> None:
    write(table, with_run(TRUTH))

    def mount(*words: str) -> bool:
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0

    if not (mount("--bind", str(root), str(root)) and mount("-o", "remount,bind,ro", str(root))):
        pytest.skip("mounting a folder read-only needs root")
    try:
        assert close(root) == 2
        assert "Read-only file system" in error_of(capsys)
        assert register(root, table) == 2
        assert f"root={root}: can't be written (Read-only file system)" in error_of(capsys)
        assert cli.main(["ledger", f"root={root}"]) == 0, "it can be read"
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)
    assert only(root).verdict == "open"
