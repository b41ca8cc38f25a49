"""The report's numbers, rows and sentences against values worked out by hand."""

from __future__ import annotations

import base64
import math
import os
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

from analysis import plots_style
from analysis.exclusion import Exclusion
from analysis.plots import Evidence, draw_all
from analysis.plots_style import Drawing
from analysis.results import Interval, Prediction
from model.errors import ConfigError
from sweeps.attempt import Attempt
from windtunnel.report import chart, numbers, origins, page, theme
from windtunnel.report.content import Content, gather
from windtunnel.report.conventions import CONVENTIONS, own_view, views_of
from windtunnel.report.numbers import sentence
from windtunnel.report.sentences import facts, no_answer, strip, troubles, worst_misses
from windtunnel.report.sources import Sources
from windtunnel.report.unwell import unwell
from windtunnel.report.write import write_report


@pytest.fixture(scope="module")
def content(finished: Any) -> Content:
    return gather("quickstart", finished.root, made_at="", version="0")


@pytest.mark.parametrize(
    ("value", "digits", "shown"),
    [
        (1.5e9, 3, "1.50B"),
        (999.6e6, 3, "1.00B"),
        (999.4e6, 3, "999M"),
        (1e9, 2, "1.0B"),
        (95_400.0, 2, "95K"),
        (99_600.0, 2, "100K"),
        (999_500.0, 4, "999.5K"),
        (0.5, 1, "0.5"),
    ],
)
def test_counts_at_the_edge_of_a_unit(value: float, digits: int, shown: str) -> None:
    assert numbers.si(value, digits) == shown


def test_losses_intervals_and_shares() -> None:
    assert numbers.loss(1.23456) == "1.2346"
    assert numbers.loss(None) == ""
    found = Interval(value=1.5, low=1.25, high=1.75, level=0.9)
    assert str(numbers.interval(found, 2)) == "1.25 to 1.75"
    assert numbers.percent(0.01234) == "1.23%"
    assert str(numbers.flops(3.519e13)) == "3.52·10<sup>13</sup>"
    assert str(numbers.prose("do `a < b` now")) == "do <code>a &lt; b</code> now"


def test_a_sentence_of_nothing_is_nothing() -> None:
    assert sentence("  ") == ""
    assert sentence("one. two") == "One. two."
    assert sentence("first. a/b is a path") == "First. a/b is a path."


def test_where_things_stand_on_the_strip(content: Content) -> None:
    """From 1.9 to 2.1 about 2.0 with 35 % of the span on each side; then up to a loss of 2.2."""
    assert content.answer is not None
    entry = content.answer.entry
    assert entry is not None
    assert entry.outcome is not None
    forecast = Prediction(value=2.0, low=1.9, high=2.1, level=0.9, extrapolation_ratio=5.0)
    promotion = replace(content.answer.promotion, forecast=forecast)
    before = replace(content.answer, promotion=promotion, entry=None)
    # 0.07 of 0.34, 0.20 of 0.34, the middle.
    assert strip(before) == {"low": 20.59, "width": 58.82, "value": 50.0, "measured": None}
    entry = replace(entry, outcome=replace(entry.outcome, loss_nats=2.2))
    # A span of 0.3 on a strip of 0.51: 0.105, 0.205, 0.305 and 0.405 of it.
    found = strip(replace(before, entry=entry))
    assert found == {"low": 20.59, "width": 39.21, "value": 40.2, "measured": 79.41}


def test_the_facts_are_those_of_the_runs_done(content: Content, finished: Any) -> None:
    told = {name: (str(value), note) for name, value, note in facts(content)}
    records = finished.records
    flops = [record.train_flops for record in records]
    assert told["Runs done"] == (f"{len(records)} of {len(records)}", "")
    assert told["Span"] == (
        f"{max(flops) / min(flops):.3g} times",
        "largest run over the smallest",
    )
    # 2.6e5 FLOPs a token doubled four times; 65,536 tokens doubled three times.
    assert told["Token budgets"][0] == "65.5K to 524K"
    low, high = (f(record.total_params for record in records) for f in (min, max))
    assert told["Model sizes"][0] == f"{numbers.si(low)} to {numbers.si(high)}"
    assert told["Compute of one run"][1] == "FLOPs"
    first, *others = content.runs
    some = replace(content, runs=(replace(first, status="failed"), *others))
    (name, value, note), *_ = facts(some)
    assert (name, value, note) == ("Runs done", f"{len(others)} of {len(records)}", "1 failed")


def test_the_worst_misses_are_shown_and_few_as_they_are(finished: Any) -> None:
    holdout = finished.study.holdouts[-1]
    assert len(holdout.points) > 3
    assert worst_misses(holdout, len(holdout.points)) == list(holdout.points)
    errors = sorted((abs(point.error) for point in holdout.points), reverse=True)
    shown = worst_misses(holdout, 3)
    assert [abs(point.error) for point in shown] == errors[:3]


def test_runs_whose_layers_fell_back_are_named_three_at_most(content: Content) -> None:
    def told(count: int) -> str:
        rows = [
            replace(row, record=replace(row.record, provenance={"fp8_fallen": ["blocks.0"]}))
            if row.record and index < count
            else row
            for index, row in enumerate(content.runs)
        ]
        records = tuple(row.record for row in rows if row.record)
        changed = replace(
            content, runs=tuple(rows), evidence=replace(content.evidence, records=records)
        )
        return " ".join(troubles(changed))

    ids = [row.run_id for row in content.runs]
    assert ids[0] not in told(0)
    assert all(name in told(3) for name in ids[:3])
    assert "others" not in told(3)
    assert ids[3] not in told(4)
    assert "; and others" in told(4)


def test_runs_left_out_of_the_fit_are_counted(content: Content) -> None:
    study = content.study
    assert study is not None
    label = study.points.label
    for count, said in ((1, "1 run was left out of the fit"), (2, "2 runs were left out")):
        left = tuple(Exclusion(label=name, reason="odd") for name in label[:count])
        changed = replace(study, exclusions=left)
        evidence = replace(content.evidence, study=changed)
        assert any(said in text for text in troubles(replace(content, evidence=evidence)))
        rows = unwell(replace(content, evidence=evidence))
        assert [(group.what, len(group.run_ids)) for group in rows] == [("left out", count)]
    assert not any("left out" in text for text in troubles(content))
    assert unwell(content) == []


def test_what_to_do_without_an_answer(content: Content) -> None:
    none = replace(content.evidence, study=None)
    assert "no run has finished" in no_answer(replace(content, evidence=replace(none, records=())))
    assert (
        f"first fit the law with `windtunnel fit sweep=quickstart root={content.root}`"
        in no_answer(replace(content, evidence=none))
    )
    assert "No configuration has been promoted" in no_answer(content)


def test_provenance_is_counted_by_value_or_shown_as_a_range(finished: Any) -> None:
    one, two, three, *_ = finished.records
    made = [
        (one, {"host": "a", "attempts": [1], "seconds": 3.0, "started": 0.0, "ended": 60.0}),
        (two, {"host": "b", "attempts": [1, 2], "seconds": 12.5, "started": 3600.0, "ended": 90.0}),
        (three, {"host": "a", "attempts": [1], "seconds": 7.0, "started": None, "ended": 86_400.0}),
    ]
    records = [replace(record, provenance=told) for record, told in made]
    commands = [f"worker {record.run_id} --fast".split() for record in records]
    records = [
        replace(record, provenance={**record.provenance, "command": command})
        for record, command in zip(records, commands, strict=True)
    ]
    assert dict(origins.provenance_rows(records)) == {
        "host": "a (2 runs), b (1 run)",
        "attempts": "1 (2 runs), 2 (1 run)",
        "seconds": "3 to 12.5",
        "command": "worker RUN --fast",
        "first start": "1970-01-01 00:00 UTC",
        "last end": "1970-01-02 00:00 UTC",
    }
    assert origins.provenance_rows([]) == ()


def test_many_values_are_cut_short_and_numbers_become_a_range(finished: Any) -> None:
    records = finished.records[:6]
    words = [replace(r, provenance={"v": f"w{n % 5}"}) for n, r in enumerate(records)]
    (row,) = origins.provenance_rows(words)
    assert row == ("v", "w0 (2 runs), w1 (1 run), w2 (1 run), w3 (1 run), and 1 other value")
    counts = [replace(r, provenance={"v": n % 5}) for n, r in enumerate(records)]
    assert origins.provenance_rows(counts) == (("v", "0 to 4"),)
    few = [replace(r, provenance={"v": n % 2}) for n, r in enumerate(records)]
    assert origins.provenance_rows(few) == (("v", "0 (3 runs), 1 (3 runs)"),)


def test_nested_values_are_rows_with_paths() -> None:
    nested = {"a": {"b": [1, "x"], "c": []}, "d": 0.1 + 0.2, "e": None, "f": 3}
    assert origins.flat(nested) == [
        ("a.b", "1, x"),
        ("a.c", "none"),
        ("d", "0.3"),
        ("e", "none"),
        ("f", "3"),
    ]


def test_without_runs_the_fit_s_own_protocol_is_shown(finished: Any) -> None:
    rows = dict(origins.protocol_rows([], finished.study))
    assert rows["fingerprint"] == finished.study.protocol_fingerprints[0]
    assert rows["precision"] == "fp32"
    assert origins.protocol_rows([], None) == ()


def test_a_figure_s_data_travel_in_the_page_up_to_a_size() -> None:
    def drawing(rows: int, name: str = "x") -> Drawing:
        """The heading and a line's end, and four bytes a row."""
        data = pd.DataFrame({name: [100] * rows})
        return Drawing(name="f", title="", how_to_read="", distrust="", data=data, figure=None)

    link = page.csv_link(drawing(2))
    assert link is not None
    kind, _, text = link.partition(",")
    assert kind == "data:text/csv;base64"
    assert base64.b64decode(text) == b"x\n100\n100\n"
    assert page.csv_link(drawing(99_999, "xyz")) is not None  # 400,000 bytes
    assert page.csv_link(drawing(99_999, "wxyz")) is None  # 400,001


def test_marks_on_one_place_are_drawn_once() -> None:
    """Half a point is the grid: 1.0 and 1.2 are one place, 1.3 is the next."""

    def mark(href: str, x: float, y: float) -> str:
        return f'<use xlink:href="#{href}" x="{x}" y="{y}" style="fill: red"/>'

    first, near = mark("a", 1.0, 5.0), mark("a", 1.2, 5.0)
    further, higher = mark("a", 1.3, 5.0), mark("a", 1.0, 5.3)
    other = mark("b", 1.0, 5.0)
    text = "".join((first, near, further, higher, other, "<path/>"))
    assert theme.drawn_once(text) == "".join((first, further, higher, other, "<path/>"))


def test_both_themes_name_every_colour() -> None:
    light, dark = theme.variables(dark=False), theme.variables(dark=True)

    def names(css: str) -> list[str]:
        return [part.split(":")[0].strip() for part in css.split(";") if part.strip()]

    assert names(light) == names(dark)
    for name in ("--ink", "--forecast", "--size-0", "--load-0"):
        assert name in names(light)
    assert f"--ink: {theme.DARK['ink']};" in dark
    assert theme.color_variable(theme.LIGHT["forecast"]) == "var(--forecast)"


def test_files_are_read_again_only_when_they_change(
    finished: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sources = Sources(finished.root)
    run_id = finished.records[0].run_id
    assert sources.record(run_id) is sources.record(run_id)
    reads: list[int] = []

    def read() -> int:
        reads.append(len(reads))
        return reads[-1]

    path = tmp_path / "file"
    assert [sources._once("kind", str(path), read) for _ in range(2)] == [0, 1], "not there yet"
    path.write_text("one")
    assert [sources._once("kind", str(path), read) for _ in range(2)] == [2, 2]
    os.utime(path, ns=(1, 1))
    assert sources._once("kind", str(path), read) == 3
    assert sources._once("another", str(path), read) == 4
    with pytest.raises(ConfigError, match="no such sweep"):
        sources.plan("nope")


def test_a_run_under_way_is_read_from_its_newest_attempt(
    finished: Any, known_sweep: ModuleType, tmp_path: Path
) -> None:
    sources = Sources(finished.root)
    done = sources.store.run_dir(finished.records[0].run_id) / "metrics.jsonl"
    assert sources.metrics_path(finished.records[0].run_id) == done
    other = Sources(tmp_path)
    spec = finished.plan.runs[0].spec
    run_dir = other.store.create(spec)
    assert other.metrics_path(run_dir.name) == run_dir / "metrics.jsonl"
    first = Attempt.claim(run_dir, after=0, now=0.0)
    second = Attempt.claim(run_dir, after=1, now=0.0)
    assert other.metrics_path(run_dir.name) == second.dir / "metrics.jsonl"
    assert first.dir != second.dir


def test_a_failure_without_a_reason_is_told_by_its_use(content: Content) -> None:
    first, *others = content.runs
    failed = replace(first, status="failed", reason="", use="not measured")
    (group,) = unwell(replace(content, runs=(failed, *others)))
    assert (group.what, group.reason) == ("failed", "not measured")


def test_a_report_is_written_where_no_folder_is_yet(tmp_path: Path) -> None:
    written = write_report(tmp_path / "new" / "report", "<p>text</p>", [])
    assert written == tmp_path / "new" / "report" / "index.html"
    assert written.read_text() == "<p>text</p>"


def test_a_kept_page_tells_of_runs_under_way(content: Content) -> None:
    """A live page would not: its table changes before one's eyes."""
    first, *others = content.runs
    evidence = replace(content.evidence, study=None)
    going = replace(content, runs=(replace(first, status="running"), *others), evidence=evidence)
    text = page.render(going, draw_all(Evidence(records=())))
    assert "1 run is not finished, 1 of them running at that moment" in text


def test_a_figure_is_one_element_of_its_own_ids_and_the_page_s_colours(content: Content) -> None:
    (drawing,) = [one for one in draw_all(content.evidence) if one.name == "loss_tokens"]
    text = str(theme.inline_svg(drawing))
    assert text.startswith('<svg role="img" aria-label="Loss against training tokens, by size"')
    assert text.rstrip().endswith("</svg>")
    assert ElementTree.fromstring(text).get("width") is None
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert ids
    assert all(name.startswith("loss_tokens-") for name in ids)
    for found in re.findall(r'href="#([^"]*)"|url\(#([^)]*)\)', text):
        assert set(filter(None, found)) <= set(ids)
    for color in plots_style.SIZES:
        assert color not in text
    assert "var(--size-" in text
    assert "xmlns" not in text


def test_of_many_runs_the_furthest_off_are_drawn_and_the_others_can_be_refitted(
    content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chart, "MOST_MARKS", 10)
    monkeypatch.setattr(chart, "MOST_OUTLIERS", 2)
    evidence, study = content.evidence, content.study
    assert study is not None
    data = chart.chart_data(evidence, [own_view(evidence)])
    drawn = {point["id"] for point in data["points"]}
    law, points = study.surface.law, study.points
    missed = {
        label: abs(math.log(loss / float(law(size, tokens))))
        for label, size, tokens, loss in zip(
            points.label, points.size, points.tokens, points.loss, strict=True
        )
    }
    assert set(sorted(missed, key=missed.__getitem__)[-2:]) <= drawn
    assert {evidence.done[0].run_id, evidence.done[-1].run_id} <= drawn
    assert 8 <= len(drawn) <= 10
    others = [record for record in evidence.done if record.run_id not in drawn]
    assert data["rest"]["runs"] == len(others)
    sent = sorted(loss for cell in data["rest"]["cells"] for loss in cell["losses"])
    kept = sorted(r.heldout_nats for r in others if r.run_id in evidence.fitted)
    assert sent == pytest.approx(kept, rel=1e-6)
    for cell in data["rest"]["cells"]:
        rung = evidence.rungs[cell["rung"]]
        size = data["sizes"][cell["sizes"]]["flops_per_token"]
        assert {r.flops_per_token for r in others if r.rung == rung} == {size}


def test_the_chart_tells_each_law_its_band_and_its_own_forecast(content: Content) -> None:
    evidence, study = content.evidence, content.study
    assert study is not None
    assert evidence.promoted is not None
    views = list(views_of(evidence))
    data = chart.chart_data(evidence, views)
    assert [view["key"] for view in data["views"]] == list(CONVENTIONS)
    own, *others = data["views"]
    promoted = evidence.promoted
    assert own["promoted"]["note"] == "5.2 times the largest run's compute"
    assert own["fit"]["parameters"] == dict(
        zip(("E", "A", "B", "alpha", "beta"), study.surface.law.parameters, strict=True)
    )
    for shown, view in zip(others, views[1:], strict=True):
        forecast = view.surface.predict(promoted.sizes[view.key], promoted.tokens, level=0.9)
        assert shown["promoted"]["loss"] == forecast.value
        assert shown["promoted"]["low"] == forecast.low
        assert shown["promoted"]["note"].endswith("; not the registered forecast")
        assert shown["promoted"]["measured"] == promoted.measured
    law = own["law"]
    largest = max(record.train_flops for record in evidence.done)
    assert law["measured_to"] == largest
    assert law["flops"][0] == pytest.approx(min(r.train_flops for r in evidence.done), rel=1e-6)
    assert law["flops"][-1] == pytest.approx(1.15 * promoted.flops, rel=1e-6)
    assert pytest.approx(largest, rel=1e-6) in law["flops"]
    for flops, loss, low, high in zip(
        law["flops"], law["loss"], law["low"], law["high"], strict=True
    ):
        best = study.surface.law.optimum(flops)
        assert loss == pytest.approx(best.loss, rel=1e-5)
        assert low < loss < high
    held = {point.label: point.forecast for point in study.holdouts[-1].points}
    for point in data["points"]:
        forecast = held.get(point["id"])
        ends = (forecast.low, forecast.high) if forecast else (None, None)
        assert (point["low"], point["high"]) == ends
        assert point["fitted"]
        assert not point["excluded"]
