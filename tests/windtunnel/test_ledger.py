"""The ledger keeps what was forecast: nothing doubled, altered unseen, or lost to a crash."""

import errno
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.results import Prediction
from model.errors import ConfigError
from windtunnel import cli
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.commands import ledger as ledger_command
from windtunnel.console import make_console
from windtunnel.ledger import Ledger
from windtunnel.ledger_rows import Entry, ForecastRow, OutcomeRow
from windtunnel.report.content import held_forecasts


def forecast(name: str, *, level: float = 0.9, after_the_fact: bool = False) -> ForecastRow:
    return ForecastRow(
        promotion_id=name,
        promotion_hash="hash of " + name,
        run_id="run-" + name,
        sweep="quickstart",
        target="next_rung-6x",
        registered_at="2026-11-23T10:00:00+00:00",
        train_flops=1.2e13,
        forecast=Prediction(value=2.0, low=1.9, high=2.1, level=level, extrapolation_ratio=6.0),
        after_the_fact=after_the_fact,
    )


def outcome(name: str, loss: float | None) -> OutcomeRow:
    return OutcomeRow(
        promotion_id=name,
        run_id="run-" + name,
        recorded_at="2026-11-23T11:00:00+00:00",
        status="diverged" if loss is None else "done",
        loss_nats=loss,
        inside=loss is not None and 1.9 <= loss <= 2.1,
    )


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "deep" / "ledger.jsonl")


@pytest.fixture
def three(ledger: Ledger) -> Ledger:
    """Inside, outside and still open."""
    for name in ("a", "b", "c"):
        ledger.register(forecast(name))
    ledger.record_outcome(outcome("a", 2.05))
    ledger.record_outcome(outcome("b", 2.2))
    return ledger


def edit(ledger: Ledger, change: Callable[[list[str]], list[str]]) -> None:
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("".join(line + "\n" for line in change(lines)))


def test_rows_come_back_as_they_were_written(three: Ledger) -> None:
    entries = three.read().entries
    assert [entry.forecast for entry in entries] == [forecast(name) for name in "abc"]
    assert [entry.verdict for entry in entries] == ["inside", "OUTSIDE", "open"]
    assert entries[1].outcome == outcome("b", 2.2)
    assert three.read().problems == ()


def test_a_forecast_is_on_disk_before_its_run_starts(tmp_path: Path, disk: Any) -> None:
    top = tmp_path / "new"
    ledger = Ledger(top / "tunnel" / "ledger.jsonl")
    for row in (forecast("a"), forecast("b")):
        ledger.register(row)
        assert [path.name for path in disk.lost(top)] == ["ledger.jsonl.lock"]
        disk.forget(ledger.path)
    ledger.record_outcome(outcome("a", 2.05))
    assert [path.name for path in disk.lost(top)] == ["ledger.jsonl.lock"]


def test_launching_again_doubles_nothing(three: Ledger) -> None:
    before = three.path.read_bytes()
    again = replace(forecast("a"), registered_at="2030-01-01T00:00:00+00:00")
    assert three.register(again) == forecast("a")
    assert three.record_outcome(outcome("a", 1.0)) == outcome("a", 2.05)
    assert three.path.read_bytes() == before


def test_another_forecast_of_the_same_name_is_refused(three: Ledger) -> None:
    with pytest.raises(ConfigError, match="another forecast named a"):
        three.register(replace(forecast("a"), promotion_hash="other"))


def test_an_outcome_needs_a_forecast_before_it(ledger: Ledger) -> None:
    with pytest.raises(ConfigError, match="no forecast of a was registered"):
        ledger.record_outcome(outcome("a", 2.0))
    assert ledger.read().entries == ()


@pytest.mark.parametrize(("old", "new"), [("2.1", "2.5"), ('"a"', '"z"'), ("false", "true")])
def test_an_altered_forecast_is_seen_and_never_counts(three: Ledger, old: str, new: str) -> None:
    def change(lines: list[str]) -> list[str]:
        assert old in lines[0]
        return [lines[0].replace(old, new), *lines[1:]]

    edit(three, change)
    assert three.read().is_damaged
    assert three.read().problems[0].startswith("line 1: altered")
    assert three.read().entries[0].verdict == "ALTERED"
    assert calibration(three.read().entries).num_forecasts == 1


def test_an_altered_forecast_refuses_its_own_launch(three: Ledger) -> None:
    edit(three, lambda lines: [lines[0].replace("2.1", "2.5"), *lines[1:]])
    for write in (
        lambda: three.register(forecast("a")),
        lambda: three.record_outcome(outcome("a", 2.0)),
    ):
        with pytest.raises(ConfigError, match=r"line 1: altered.*put the line back"):
            write()
    assert three.register(forecast("d")).promotion_id == "d"  # the others go on


def test_a_changed_row_with_a_fresh_hash_breaks_the_chain(three: Ledger, tmp_path: Path) -> None:
    """Whoever recomputes the row's own hash is betrayed by the row after it."""
    forger = Ledger(tmp_path / "forged.jsonl")
    wide = Prediction(value=2.0, low=1.0, high=9.0, level=0.9, extrapolation_ratio=6.0)
    forger.register(replace(forecast("a"), forecast=wide))
    forged = forger.path.read_text().splitlines()[0]
    edit(three, lambda lines: [forged, *lines[1:]])
    assert three.read().is_damaged
    assert "line 2: a row before this one was taken out" in three.read().problems[0]


def test_a_row_taken_out_or_moved_is_seen(three: Ledger) -> None:
    edit(three, lambda lines: [lines[0], *lines[2:]])
    assert [problem[:7] for problem in three.read().problems] == ["line 2:"]
    assert three.read().is_damaged


@pytest.mark.parametrize("keep", [1, 40, -1])
def test_a_line_torn_by_a_crash_is_survived(three: Ledger, keep: int) -> None:
    """Whatever prefix of the last row reached the disk, the rows before it stay and the next one
    is written whole, behind the torn one."""
    text = three.path.read_text()
    last = text.splitlines()[-1]
    three.path.write_text(text[: -len(last) - 1] + last[:keep])
    assert [entry.verdict for entry in three.read().entries] == ["inside", "open", "open"]
    assert not three.read().is_damaged
    assert "line 5: cannot be read" in three.read().problems[0]
    three.record_outcome(outcome("b", 2.2))
    assert [entry.verdict for entry in three.read().entries] == ["inside", "OUTSIDE", "open"]
    assert three.read().problems == (
        "line 5: torn while it was written; the rows after it show that none was lost",
    )
    assert not three.read().is_damaged


def test_a_last_line_without_its_newline_is_whole(three: Ledger) -> None:
    three.path.write_text(three.path.read_text().rstrip("\n"))
    three.record_outcome(outcome("c", 2.0))
    assert [entry.verdict for entry in three.read().entries] == ["inside", "OUTSIDE", "inside"]
    assert three.read().problems == ()


@pytest.mark.parametrize("garbage", ["\x00garbage", "[" * 100_000])
def test_a_corrupted_line_in_the_middle_is_told_from_a_torn_one(
    three: Ledger, garbage: str
) -> None:
    edit(three, lambda lines: [lines[0], garbage, *lines[2:]])
    assert three.read().problems == (
        "line 2: corrupted: a row that stood here can no longer be read",
    )
    assert three.read().is_damaged
    assert [entry.forecast.promotion_id for entry in three.read().entries] == ["a", "c"]


def test_bytes_that_are_no_text_are_one_bad_line(three: Ledger) -> None:
    lines = three.path.read_bytes().split(b"\n")
    three.path.write_bytes(b"\n".join([lines[0], b"\xff\xfe{", *lines[2:]]))
    assert [problem[:7] for problem in three.read().problems] == ["line 2:"]


def test_a_row_of_another_version_is_named(three: Ledger) -> None:
    """Its hash is right, so it was not altered, but its fields are not ours."""
    from sweeps.files import content_hash

    row = json.loads(three.path.read_text().splitlines()[0])
    del row["hash"]
    row["mood"] = "hopeful"
    row["hash"] = content_hash(row, digits=64)
    edit(three, lambda lines: [json.dumps(row), *lines[1:]])
    assert "line 1: not a row of this version" in three.read().problems[0]


def test_launches_at_once_keep_the_chain(ledger: Ledger) -> None:
    """Each with a lock of its own, as processes have: the lock is the open file's."""

    def register_many(name: str) -> None:
        for index in range(20):
            Ledger(ledger.path).register(forecast(f"{name}{index}"))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(register_many, name) for name in "wxyz"]:
            done.result()
    assert len(ledger.read().entries) == 80
    assert ledger.read().problems == ()


def test_calibration_counts_hits_misses_and_divergence(three: Ledger) -> None:
    three.record_outcome(outcome("c", None))
    found = calibration(three.read().entries)
    assert (found.num_forecasts, found.num_inside) == (3, 1)
    assert found.num_expected == pytest.approx(2.7)
    assert found.median_error == pytest.approx(((2.05 - 2) / 2.05 + (2.2 - 2) / 2.2) / 2)
    assert found.median_width == pytest.approx(0.1)
    assert found.hit_rate is not None
    # Clopper-Pearson, by its definition: one hit of three is a 5% event at either end.
    low, high = found.hit_rate.low, found.hit_rate.high
    assert 1 - (1 - low) ** 3 == pytest.approx(0.05)
    assert (1 - high) ** 3 + 3 * high * (1 - high) ** 2 == pytest.approx(0.05)


def test_calibration_leaves_out_what_was_known_before(ledger: Ledger) -> None:
    ledger.register(forecast("late", after_the_fact=True))
    ledger.record_outcome(outcome("late", 2.0))
    assert ledger.read().entries[0].verdict == "inside (after the fact)"
    found = calibration(ledger.read().entries)
    assert found.num_forecasts == 0
    assert "no forecast has been held" in calibration_sentence(found)


def test_forecasts_that_lean_to_one_side_are_called_out(ledger: Ledger) -> None:
    """Every loss is inside its interval of 1.9 to 2.1, and below the 2.0 that was forecast."""
    for index in range(6):
        found = calibration(ledger.read().entries)
        assert "biased" not in calibration_sentence(found)  # five heads in a row do happen
        ledger.register(forecast(str(index)))
        ledger.record_outcome(outcome(str(index), 1.96))
    found = calibration(ledger.read().entries)
    assert (found.num_inside, found.num_below, found.num_above) == (6, 6, 0)
    assert found.side_chance == pytest.approx(2 / 2**6)
    assert found.median_offset == pytest.approx(-0.02)
    sentence = calibration_sentence(found)
    assert "6 of 6 measured losses lie below their forecasts (-2.00% in the median)" in sentence
    assert "do not hold" not in sentence


def test_figures_show_what_was_forecast_before_it_was_measured(three: Ledger) -> None:
    three.record_outcome(outcome("c", None))  # diverged: no loss to show
    three.register(forecast("late", after_the_fact=True))
    three.record_outcome(outcome("late", 2.0))
    shown = held_forecasts(three.read().entries)
    assert [(one.measured, one.inside) for one in shown] == [(2.05, True), (2.2, False)]
    edit(three, lambda lines: [lines[0].replace("2.1", "2.5"), *lines[1:]])
    assert [one.measured for one in held_forecasts(three.read().entries)] == [2.2]


def test_sides_that_balance_are_no_bias(three: Ledger) -> None:
    """A run that diverged has no side, and one that met its forecast has none either."""
    three.record_outcome(outcome("c", None))
    found = calibration(three.read().entries)
    assert found.num_below + found.num_above == 2
    assert "biased" not in calibration_sentence(found)


def test_intervals_that_never_hold_are_called_out(ledger: Ledger) -> None:
    for index in range(4):
        ledger.register(forecast(str(index)))
        ledger.record_outcome(outcome(str(index), 3.0))
    found = calibration(ledger.read().entries)
    assert found.chance == pytest.approx(1e-4)  # four misses of one in ten each
    assert "do not hold what they promise" in calibration_sentence(found)


def measured(name: str, loss: float | None, level: float = 0.9) -> Entry:
    return Entry(forecast(name, level=level), outcome(name, loss))


def test_what_few_and_many_forecasts_say() -> None:
    """Nine are too few, ten are judged; the expected number is the sum of their own levels."""
    nine = [measured(str(n), 2.0) for n in range(9)]
    told = calibration_sentence(calibration(nine))
    assert told.startswith(
        "9 of 9 measured losses inside the interval; 8.1 were to be expected. Hit rate 100%, 90% "
        "interval 72% to 100%; median miss 0.00%, median interval 10.00% of the forecast wide"
    )
    assert told.endswith(". Too few yet to judge the intervals")
    ten = calibration([*nine, measured("9", 2.3)])
    assert (ten.num_inside, ten.num_expected) == (9, pytest.approx(9.0))
    assert ten.chance == 1.0, "nine of ten, as they say"
    assert "Too few" not in calibration_sentence(ten)
    half = calibration([*nine, measured("9", 2.3, level=0.5)])
    assert half.num_expected == pytest.approx(9 * 0.9 + 0.5)
    assert half.chance is None, "of two levels"


def test_a_run_forecast_twice_is_one_run() -> None:
    first, second = measured("a", 2.0), measured("b", 2.0)
    again = replace(second, forecast=replace(second.forecast, run_id="run-a"))
    found = calibration([first, again])
    assert (found.num_forecasts, found.num_runs) == (2, 1)
    assert calibration_sentence(found).endswith("They are of 1 run, some forecast repeatedly")
    assert "repeatedly" not in calibration_sentence(calibration([first, second]))


@pytest.mark.parametrize(("loss", "side", "offset"), [(2.05, "above", 2.5), (1.95, "below", -2.5)])
def test_a_bias_is_told_with_its_side(loss: float, side: str, offset: float) -> None:
    """Eight of nine on one side: nine ways and one, both ways, of 512 are as uneven."""
    other = 4.0 - loss
    found = calibration([measured("x", other), *(measured(str(n), loss) for n in range(8))])
    assert {found.num_below, found.num_above} == {1, 8}
    assert found.side_chance == pytest.approx(2 * (1 + 9) / 2**9)
    assert (
        f"8 of 9 measured losses lie {side} their forecasts ({offset:+.2f}% in the median): the "
        "forecasts are biased (p = 0.039)"
    ) in calibration_sentence(found)


def test_a_diverged_run_alone_has_no_error_to_tell() -> None:
    found = calibration([measured("a", None)])
    assert (found.median_error, found.median_offset, found.side_chance) == (None, None, None)
    told = calibration_sentence(found)
    assert told.startswith("0 of 1 outcomes inside the interval, 1 run diverged; 0.9 were")
    assert "median" not in told


def test_the_command_reads_the_file_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it shows and what it says is wrong are of one moment, whatever a launch appends."""
    kept = Ledger(tmp_path / "ledger.jsonl")
    kept.register(forecast("a"))
    lines, read = Ledger.lines, []
    monkeypatch.setattr(Ledger, "lines", lambda self: read.append(self.path) or lines(self))
    assert ledger_command.run(ledger_command.Config(root=tmp_path), make_console()) == 0
    assert "no forecast has been held" in capsys.readouterr().out
    assert read == [kept.path]


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line on stderr."""
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    return line


@pytest.mark.parametrize("close", [[], ["close=latest", "loss_nats=2", "source=x"]])
def test_a_ledger_that_is_no_file_is_one_clear_line(
    close: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "ledger.jsonl"
    words = ["ledger", f"root={tmp_path}", *close]
    place.mkdir()
    assert cli.main(words) == 2
    assert f"{place}: a folder, where a file should be" in complaint(capsys)
    place.rmdir()
    away = tmp_path / "disk" / "ledger.jsonl"
    place.symlink_to(away)
    assert cli.main(words) == 2
    assert f"{place}: a link to {away}, where there is no file now" in complaint(capsys)
    with pytest.raises(ConfigError, match="where there is no file now"):
        Ledger(place).register(forecast("a"))
    assert not away.parent.exists(), "no second ledger is begun beside the one that is away"
    place.unlink()
    place.symlink_to(place)
    assert cli.main(words) == 2
    assert f"{place}: a link that leads to itself" in complaint(capsys)
    (tmp_path / "file").touch()
    assert cli.main(["ledger", f"root={tmp_path / 'file'}", *close]) == 2
    assert "is a file, where a folder should be; name the folder" in complaint(capsys)


def test_a_ledger_that_may_not_be_read_is_one_clear_line(
    three: Ledger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = three.path.read_bytes()

    def refused(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as only_here:
        only_here.setattr(Path, "read_bytes", refused)
        assert cli.main(["ledger", f"root={three.path.parent}"]) == 2
        with pytest.raises(PermissionError):
            three.register(forecast("d"))
    assert f"{three.path}: Permission denied; it may be another user's" in complaint(capsys)
    assert three.path.read_bytes() == before


def test_an_empty_ledger_says_so_and_takes_the_next_forecast(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger.path.parent.mkdir()
    ledger.path.touch()
    words = ["ledger", f"root={ledger.path.parent}"]
    assert cli.main(words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"{ledger.path}: the file is empty; if it held forecasts before, bring")
    ledger.path.write_bytes(bytes(8))  # a crash may leave a file's length and not its content
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "line 1: cannot be read" in " ".join(said.split())
    assert "registered" not in said, "there is no table of nothing"
    ledger.register(forecast("a"))
    assert [entry.name for entry in ledger.read().entries] == ["a"]
    assert not ledger.read().is_damaged


def test_intervals_of_other_levels_are_told_apart(
    three: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ledger", f"root={three.path.parent}"]
    assert cli.main(words) == 0
    assert "90% interval" in capsys.readouterr().out.splitlines()[2]
    three.register(forecast("d", level=0.995))
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "% interval" not in said.splitlines()[2]
    assert said.count("1.9000..2.1000 (90%)") == 3
    assert said.count("1.9000..2.1000 (99.5%)") == 1
