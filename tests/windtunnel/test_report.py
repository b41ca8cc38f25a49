"""The report: stands alone, repeats what was measured, escapes everything, says what is missing."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.text import Text
from rich.console import Console

from analysis.descent import minimise
from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.plots import Evidence, draw_all
from analysis.points import Points, points_from_records, take
from analysis.records import RecordSet, RunRecord
from analysis.results import Fit
from analysis.settings import FitSettings
from analysis.solving import make_law, solve
from model.errors import ConfigError
from model.training.config import JsonlTracker, WandbTracker
from windtunnel.commands import report
from windtunnel.composition import load
from windtunnel.report import numbers
from windtunnel.report.content import Content, gather
from windtunnel.report.conventions import CONVENTIONS
from windtunnel.report.numbers import sentence, si
from windtunnel.report.origins import protocol_rows
from windtunnel.report.page import render
from windtunnel.report.sentences import facts, troubles
from windtunnel.report.unwell import unwell
from windtunnel.yaml_folders import config_dirs

HOSTILE = "<script>document.title='owned'</script>\"'`&<img src=x onerror=alert(1)>"
LONG = "x" * 10_000
NONE = JsonlTracker()
NO_GATES = ("gates.holdout_error=9", "gates.interval_width=9", "gates.refuse_statuses=[]")
DIRS = config_dirs()
VOID = {"meta", "link", "br", "hr", "img", "input", "base", "wbr"}
CHROMIUM = next(
    (
        path
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (path := shutil.which(name))
    ),
    None,
)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium or Chrome here: the page was not opened in a browser"
)


class Page(HTMLParser):
    """The page parsed strictly: every tag closed in order, every attribute kept."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)

    def text(self) -> str:
        """What a reader sees, white space squeezed."""
        shown = (data for tag, data in self.texts if tag not in ("script", "style"))
        return " ".join(" ".join(shown).split())


def page_of(root: Path, change: Callable[[Content], Content] = lambda content: content) -> str:
    content = change(gather("quickstart", root, made_at="2026-11-23", version="0"))
    return render(content, draw_all(content.evidence))


def words_of(root: Path) -> str:
    """What a reader reads."""
    return Page(bare_page(root)).text()


def bare_page(root: Path) -> str:
    """Without its figures, which take most of the time."""
    content = gather("quickstart", root, made_at="2026-11-23", version="0")
    return render(content, draw_all(Evidence(records=())))


def chart_of(text: str) -> Any:
    found = re.search(
        r'<script type="application/json" id="chart-data">(.*?)</script>', text, re.DOTALL
    )
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def html(finished: Any) -> str:
    return page_of(finished.root)


@pytest.fixture
def started(known_sweep: ModuleType, finished: Any, tmp_path: Path) -> Any:
    """A root of its own with the same plan and no run, to do anything to."""
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    return root, known_sweep.make(root)


def test_the_page_is_well_formed_and_every_id_is_unique(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    anchors = {attributes["href"] for tag, attributes in page.tags if tag in ("a", "use")}
    for anchor in anchors:
        assert anchor is not None
        assert anchor.startswith("data:") or anchor[1:] in ids


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "img", "base")
        assert "src" not in attributes
        assert attributes.get("href", "#")[:1] in ("#", "d")  # type: ignore[index]
    css = "".join(data for tag, data in page.texts if tag == "style")
    assert "@import" not in css
    assert "url(" not in css
    assert "default-src 'none'" in html
    scripts = "".join(data for tag, data in page.texts if tag == "script")
    for door in ("fetch(", "XMLHttpRequest", "WebSocket", "import(", "sendBeacon", "innerHTML"):
        assert door not in scripts


def test_the_chart_holds_every_run_and_the_registered_forecast(html: str, finished: Any) -> None:
    chart = chart_of(html)
    found = {p["id"]: (p["flops"], p["tokens"], p["loss"], p["rung"]) for p in chart["points"]}
    assert len(chart["points"]) == len(finished.records)
    assert found == {
        r.run_id: (r.train_flops, r.tokens, r.loss_nats, r.rung) for r in finished.records
    }
    forecast = finished.promotion.forecast
    promoted = chart["views"][0]["promoted"]
    assert promoted["loss"] == forecast.value
    assert (promoted["low"], promoted["high"]) == (forecast.low, forecast.high)
    assert promoted["measured"] == finished.outcome.loss_nats
    held = {p["id"] for p in chart["points"] if p["low"] is not None}
    assert held == {point.label for point in finished.study.holdouts[-1].points}


def commands_on(page: Page) -> list[list[str]]:
    """What can be pasted: every command set as code that has an argument."""
    code = [data for tag, data in page.texts if tag == "code"]
    words = [shlex.split(text) for text in code if text.startswith("windtunnel ")]
    return [command[1:] for command in words if len(command) > 2]


def test_commands_on_the_page_run_where_the_page_was_made(
    known_sweep: ModuleType, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("of the lab") / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan, found = known_sweep.make(root), []

    def look() -> None:
        found.extend(commands_on(Page(bare_page(root))))

    look()
    for run in plan.runs[:-1]:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    look()
    known_sweep.fit(root, plan)
    known_sweep.finish(root, plan.runs[-1].spec, known_sweep.measured(plan.runs[-1].spec))
    look()
    known_sweep.fit(root, plan)
    known_sweep.promote(root, *NO_GATES)
    look()
    assert {command[0] for command in found} == {"fit", "promote", "launch", "report"}
    for verb, *words in found:
        config = load(verb, import_module(f"windtunnel.commands.{verb}").Config, words, DIRS)
        assert config.root == root, (verb, words)


def test_intervals_are_called_by_the_level_they_have(
    known_sweep: ModuleType, finished: Any, tmp_path: Path
) -> None:
    root = shutil.copytree(finished.root, tmp_path / "tunnel", symlinks=True)
    (root / "ledger.jsonl").unlink()
    study = known_sweep.fit(root, finished.plan, replace(known_sweep.QUICK, level=0.8))
    known_sweep.promote(root, "level=0.995")
    content = gather("quickstart", root, made_at="2026-11-23", version="0")
    drawings = draw_all(content.evidence)
    page = Page(render(content, drawings)).text()
    assert "90%" not in page
    assert "100%: " not in page
    assert page.count("80% interval") > 3
    assert "99.5% interval" in page
    drawn = {drawing.name: drawing for drawing in drawings}
    law = drawn["loss_compute"].data.query("series == 'law along the optimum'")
    best = [study.surface.law.optimum(flops) for flops in law["train_flops"]]
    places = [b.size for b in best], [b.tokens for b in best]
    _, low, high = study.surface.predict_many(*places, level=0.8)
    np.testing.assert_allclose(law["loss_nats_low"], low)
    np.testing.assert_allclose(law["loss_nats_high"], high)
    chart = chart_of(render(content, drawings))["views"][0]["law"]
    assert np.interp(np.log(law["train_flops"]), np.log(chart["flops"]), chart["low"]) == (
        pytest.approx(low, rel=2e-3)
    )
    for name in ("isoflop", "contours", "residuals", "loss_compute", "expert_balance"):
        legends = [text.get_text() for text in drawn[name].figure.findobj(Text)]
        assert not any("90%" in text for text in (*legends, drawn[name].how_to_read)), name
        assert "80%" in drawn[name].how_to_read, name


def test_every_planned_run_is_a_row_of_the_table(html: str, finished: Any) -> None:
    rows = [
        attributes["data-run"] for tag, attributes in Page(html).tags if "data-run" in attributes
    ]
    assert sorted(rows) == sorted(run.run_id for run in finished.plan.runs)  # type: ignore[type-var]


def test_the_answer_tells_forecast_interval_outcome_and_every_gate(
    html: str, finished: Any
) -> None:
    text, promotion = Page(html).text(), finished.promotion
    forecast, measured = promotion.forecast, finished.outcome.loss_nats
    assert f"{forecast.value:.4f}" in text
    assert f"{forecast.low:.4f} to {forecast.high:.4f}" in text
    verdict = "inside" if forecast.low <= measured <= forecast.high else "OUTSIDE"
    assert f"Measured {measured:.4f}: {verdict} the interval" in text
    for gate in promotion.gates:
        assert f"{'passed' if gate.passed else 'failed'} {gate.name}" in text


def test_an_outside_result_is_shown_as_such(
    known_sweep: ModuleType, finished: Any, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    (root / "ledger.jsonl").unlink()
    shutil.rmtree(root / "runs" / finished.promotion.run_id)
    missed = replace(finished.outcome, loss_nats=finished.promotion.forecast.high * 1.1)
    known_sweep.launch(root, finished.promotion, missed)
    text = words_of(root)
    assert f"Measured {missed.loss_nats:.4f}: OUTSIDE the interval" in text
    assert "0 of 1 measured losses inside the interval" in text


def test_coefficients_stand_with_their_intervals(html: str, finished: Any) -> None:
    text = Page(html).text()
    for fit in (finished.study.surface, finished.study.compute_law):
        exponent = fit.coefficients["alpha" if "alpha" in fit.coefficients else "b"]
        assert f"{exponent.value:.4g} {exponent.low:.4g} to {exponent.high:.4g}" in text


def test_hostile_text_is_shown_and_never_run(finished: Any, html: str) -> None:
    name = HOSTILE + LONG

    def poison(content: Content) -> Content:
        evidence = content.evidence
        records = tuple(replace(r, rung=name + r.rung) for r in evidence.records)
        rows = tuple(
            replace(row, run_id=name, rung=name, reason=name, variant=name, use=name, role=name)
            for row in content.runs
        )
        return replace(
            content,
            sweep=name,
            version=name,
            runs=rows,
            evidence=replace(evidence, records=records),
            problems=(name,),
            protocol=((name, name),),
            provenance=((name, name),),
        )

    text = page_of(finished.root, poison)
    page, sound = Page(text), Page(html)
    assert page.count("script") == sound.count("script")
    assert page.count("img") == 0
    assert not any(key.startswith("on") for _, attributes in page.tags for key in attributes)
    assert "<script>document" not in text
    assert page.text().count(HOSTILE.replace("`", "")[:30]) > 20
    assert chart_of(text)["rungs"][0]["name"].startswith(HOSTILE)
    assert next(a["title"] for _, a in page.tags if "data-run" not in a and "title" in a) == name


def test_before_the_first_run_every_section_says_what_to_do(started: Any) -> None:
    root, _ = started
    text = Page(page_of(root)).text()
    assert "no run has finished" in text
    assert "the windtunnel sweep command that planned them" in text
    assert "No run has finished yet, so there is nothing to draw." in text
    assert "No forecast has been registered yet" in text


def test_a_sweep_whose_runs_all_failed_lists_their_reasons(
    started: Any, known_sweep: ModuleType
) -> None:
    root, plan = started
    for number, run in enumerate(plan.runs):
        known_sweep.fail(root, run.spec, f"out of memory at step {number}")
    text = words_of(root)
    assert f"{len(plan.runs)} runs failed or diverged" in text
    for number in range(len(plan.runs)):
        assert f"out of memory at step {number}" in text


def test_a_diverged_run_without_a_loss_has_an_empty_cell(
    started: Any, known_sweep: ModuleType
) -> None:
    root, plan = started
    first = plan.runs[0].run_id

    def broken(record: RunRecord) -> RunRecord:
        if record.run_id != first:
            return record
        none = {"loss_nats": None, "bits_per_byte": None, "by_domain": {}, "load_by_layer": ()}
        return replace(record, status="diverged", reason="loss is nan at step 7", **none)

    known_sweep.finish_all(root, plan, broken)
    html = page_of(root)
    assert "loss is nan at step 7" in html
    assert "None" not in html
    assert len(chart_of(html)["points"]) == len(plan.runs) - 1


def test_without_a_fit_the_runs_are_shown_and_the_next_command_is_named(
    started: Any, known_sweep: ModuleType
) -> None:
    root, plan = started
    known_sweep.finish_all(root, plan)
    html = page_of(root)
    assert "windtunnel fit sweep=quickstart" in Page(html).text()
    chart = chart_of(html)
    assert chart["views"][0]["law"] is None
    assert len(chart["points"]) == len(plan.runs)


def test_a_fit_older_than_its_runs_is_called_so(started: Any, known_sweep: ModuleType) -> None:
    root, plan = started
    late = plan.runs[-1]
    for run in plan.runs[:-1]:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    known_sweep.fit(root, plan)
    known_sweep.finish(root, late.spec, known_sweep.measured(late.spec))
    text = words_of(root)
    assert "The fit is older than 1 finished" in text
    assert "No configuration has been promoted from this sweep yet" in text


def test_an_altered_promotion_is_named_and_not_believed(finished: Any, tmp_path: Path) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    path = root / "promotions" / f"{finished.promotion.id}.yaml"
    path.write_text(path.read_text().replace("level: 0.9", "level: 0.5"))
    text = words_of(root)
    assert "altered after it was made" in text
    assert "No configuration has been promoted from this sweep yet" in text


@pytest.mark.slow
def test_the_command_writes_the_page_and_every_figure(finished: Any, tmp_path: Path) -> None:
    screen = io.StringIO()
    config = report.Config(
        root=finished.root, sweep="quickstart", out=tmp_path / "out", tracker=NONE
    )
    assert report.run(config, Console(file=screen, width=200)) == 0
    assert str(tmp_path / "out" / "index.html") in screen.getvalue()
    assert "No figure recipe: This sweep varied neither" in screen.getvalue()
    Page((tmp_path / "out" / "index.html").read_text(encoding="utf-8"))
    names = {path.stem for path in (tmp_path / "out").glob("*.svg")}
    assert {"loss_compute", "isoflop", "contours", "expert_load"} <= names
    for name in names:
        ElementTree.parse(tmp_path / "out" / f"{name}.svg")
        for suffix in ("png", "pdf", "csv"):
            assert (tmp_path / "out" / f"{name}.{suffix}").stat().st_size > 0


def test_an_unknown_sweep_is_one_sentence(finished: Any, tmp_path: Path) -> None:
    config = report.Config(root=finished.root, sweep="nope", out=None, tracker=NONE)
    with pytest.raises(ConfigError, match=r"no such sweep.*quickstart"):
        report.run(config, Console(file=io.StringIO()))


def test_coefficients_are_written_in_digits_where_those_can_be_read() -> None:
    values = (0, 5.784e-4, 0.001, 0.40658, 11_670, 58_060, 123_456)
    written = ("0", "5.784·10^-4", "0.001", "0.4066", "11670", "58060", "1.235·10^5")
    shown = [str(numbers.number(x)).replace("<sup>", "^").replace("</sup>", "") for x in values]
    assert shown == list(written)


def test_runs_in_trouble_stand_above_the_table_with_their_reasons(
    known_sweep: ModuleType, started: Any
) -> None:
    root, plan = started
    for run in plan.runs[2:]:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    known_sweep.fail(root, plan.runs[0].spec, HOSTILE)
    words = words_of(root)
    assert "1 run failed or diverged" in words
    assert "1 run is not finished" in words
    listed = words[words.index("Failed, diverged or left out") :]
    listed = listed[: listed.index("Bits per byte")]
    assert HOSTILE in listed
    assert plan.runs[1].run_id not in listed
    known_sweep.fail(root, plan.runs[1].spec, f"no such file: /data/{'deep/' * 200}train.jsonl")
    told = words_of(root)
    listed = told[told.index("Failed, diverged or left out") : told.index("Bits per byte")]
    assert "train.jsonl" in listed
    assert "deep/" * 100 not in listed  # the table has the whole of it
    assert "deep/" * 200 in told


def test_runs_under_way_are_no_trouble_on_the_live_page(finished: Any) -> None:
    content = gather("quickstart", finished.root, made_at="", version="0")
    first, second, *others = content.runs
    going = replace(first, status="running"), replace(second, status="planned")
    under_way = replace(content, runs=(*going, *others))
    told = "2 runs are not finished, 1 of them running at that moment."
    assert told in troubles(under_way)
    assert not any("not finished" in text for text in troubles(under_way, live=True))
    left = replace(content, runs=(going[1], second, *others))
    for live in (False, True):
        assert any("1 run is not finished: the same" in text for text in troubles(left, live=live))


def test_what_every_done_run_shares_is_one_value(finished: Any) -> None:
    content = gather("quickstart", finished.root, made_at="", version="0")
    tokens = finished.records[0].tokens
    same = tuple(record for record in finished.records if record.tokens == tokens)
    alike = replace(content, evidence=replace(content.evidence, records=same))
    shown = {name: value for name, value, _ in facts(alike)}
    assert shown["Token budgets"] == numbers.si(tokens)
    assert " to " in shown["Model sizes"]


def test_one_reason_is_said_once_and_that_of_most_runs_first(finished: Any) -> None:
    content = gather("quickstart", finished.root, made_at="", version="0")
    reasons = ["rare", HOSTILE, HOSTILE, "also rare", HOSTILE]
    failed = [
        replace(row, status="failed", reason=f"failed: {reason}")
        for row, reason in zip(content.runs, reasons, strict=False)
    ]
    groups = unwell(replace(content, runs=(*failed, *content.runs[5:])))
    assert [group.reason for group in groups] == [HOSTILE, "rare", "also rare"]
    assert groups[0].run_ids == tuple(failed[n].run_id for n in (1, 2, 4))
    assert {group.what for group in groups} == {"failed"}


@pytest.mark.slow
def test_wandb_gets_the_figures_the_curves_and_the_promotion(
    finished: Any, tmp_path: Path, wandb_files: ModuleType
) -> None:
    words = [f"root={finished.root}", "sweep=quickstart", f"out={tmp_path / 'out'}"]
    words += ["tracker=wandb", f"tracker.dir={tmp_path}", "tracker.tags=[mine]"]
    program = "from windtunnel.cli import main; raise SystemExit(main())"
    done = subprocess.run(
        [sys.executable, "-c", program, "report", *words],
        env={**os.environ, "WANDB_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"wandb sync {tmp_path / 'wandb'}" in done.stdout
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    kept = wandb_files.read(folder)
    assert (kept.run.run_group, kept.run.job_type) == ("quickstart", "report")
    assert list(kept.run.tags) == ["mine"]
    surface = finished.study.surface.coefficients
    assert kept.summary["law/alpha"] == surface["alpha"].value
    assert kept.summary["forecast/measured_nats"] == finished.outcome.loss_nats
    assert "figures/loss_compute/path" in kept.history[0]
    kinds = {artifact.type: artifact for artifact in kept.artifacts}
    assert set(kinds) == {"report", "scaling-law", "promotion"}
    law = {entry.path for entry in kinds["scaling-law"].manifest.contents}
    assert {"fit.json", "loss_compute.csv", "isoflop.csv"} <= law
    (promoted,) = kinds["promotion"].manifest.contents
    assert promoted.path == f"{finished.promotion.id}.yaml"


def test_a_wandb_that_fails_leaves_the_report(
    finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = report.Config(
        root=finished.root,
        sweep="quickstart",
        out=tmp_path / "out",
        tracker=WandbTracker(dir=tmp_path),
    )
    told = io.StringIO()
    assert report.run(config, Console(file=told, width=200)) == 0
    assert "W&B did not take the report" in told.getvalue()
    drawn = len(list((tmp_path / "out").glob("*.png")))
    assert f"{drawn} figures (PNG, SVG, PDF, CSV) in {tmp_path / 'out'}" in told.getvalue()
    assert (tmp_path / "out" / "index.html").exists()


# ---- in a real browser --------------------------------------------------------------------------


def opened(text: str, folder: Path, act: str = "") -> Page:
    """The page after Chromium ran it and ``act``, a script of the test's; no request may leave."""
    assert CHROMIUM is not None
    path = folder / "page.html"
    watch = (
        "<script>window.troubles = [];"
        "addEventListener('error', (e) => troubles.push(e.message));"
        "addEventListener('securitypolicyviolation', (e) => troubles.push(e.blockedURI));"
        "</script>"
    )
    tell = (
        f"<script>addEventListener('load', () => {{ {act};"
        "document.body.dataset.troubles = JSON.stringify(troubles);"
        "document.body.dataset.loaded = JSON.stringify("
        "performance.getEntriesByType('resource').map((entry) => entry.name)); });</script>"
    )
    path.write_text(text.replace("<head>", "<head>" + watch).replace("</body>", tell + "</body>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={folder / 'profile'}",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1200,900",
        "--virtual-time-budget=2000",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--dump-dom",
        f"file://{path}",
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    page = Page(shown.stdout.replace("<!DOCTYPE html>", ""))
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    assert json.loads(body["data-troubles"] or "null") == []
    assert json.loads(body["data-loaded"] or "null") == []
    return page


@needs_chromium
def test_the_browser_draws_every_run_sorts_the_table_and_switches_the_theme(
    html: str, finished: Any, tmp_path: Path
) -> None:
    act = """
      document.getElementById('theme').click();
      const head = [...document.querySelectorAll('#runs-table thead th')]
        .findIndex((cell) => cell.textContent.startsWith('Loss'));
      for (const order of ['rising', 'falling']) {
        document.querySelectorAll('#runs-table thead th button')[head].click();
        document.body.dataset[order] = JSON.stringify(
          [...document.querySelectorAll('#runs-table tbody tr')].map((row) => row.dataset.run));
      }
      const stage = document.querySelector('.chart-stage');
      stage.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
      document.body.dataset.tip = stage.querySelector('.tip').textContent;
    """
    page = opened(html, tmp_path, act)
    paths = [attributes for _, attributes in page.tags if "data-runs" in attributes]
    assert sum((path["d"] or "").count("M") for path in paths) == len(finished.records)
    assert sum(a.get("class") == "measured" for _, a in page.tags) == 1
    root = next(attributes for tag, attributes in page.tags if tag == "html")
    assert root["data-theme"] == "dark"
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    by_loss = [r.run_id for r in sorted(finished.records, key=lambda record: record.loss_nats)]
    assert json.loads(body["data-rising"] or "") == by_loss
    assert json.loads(body["data-falling"] or "") == by_loss[::-1]
    assert (body["data-tip"] or "").startswith(chart_of(html)["points"][0]["id"])


@needs_chromium
def test_the_convention_switch_shows_the_coefficients_of_windtunnel_fit(
    html: str, finished: Any, tmp_path: Path
) -> None:
    records = RecordSet(records=tuple(finished.records), excluded=())
    act = """
      const [counted, attention] = document.querySelectorAll('.switch');
      for (const one of counted.children) for (const other of attention.children) {
        one.click();
        other.click();
        const shown = [...document.querySelectorAll('[data-view]')].filter((node) => !node.hidden);
        document.body.setAttribute('data-' + shown[0].dataset.view,
          shown.map((node) => node.textContent.replace(/\\s+/g, ' ')).join('|'));
      }
    """
    body = next(a for tag, a in opened(html, tmp_path, act).tags if tag == "body")
    for size in CONVENTIONS:
        points, _ = points_from_records(records, size)
        law = fit_surface(points, finished.study.settings)
        shown = body[f"data-{size}"] or ""
        assert "|" not in shown
        for coefficient in ("E", "alpha", "beta"):
            found = law.coefficients[coefficient]
            expected = f"{coefficient}{found.value:.4g}{found.low:.4g}to{found.high:.4g}"
            assert expected in "".join(shown.split())


@needs_chromium
def test_leaving_runs_out_moves_the_law_as_a_fit_without_them(
    html: str, finished: Any, tmp_path: Path
) -> None:
    act = """
      document.querySelectorAll('.legend .key')[4].click();
      const note = document.getElementById('moved');
      document.body.dataset.moved = note.dataset.law;
      document.body.dataset.told = note.textContent;
      document.querySelectorAll('.legend .key')[4].click();
      document.body.dataset.back = note.textContent;
      for (const key of document.querySelectorAll('.legend .key')) key.click();
      document.body.dataset.none = note.textContent;
    """
    body = next(a for tag, a in opened(html, tmp_path, act).tags if tag == "body")
    points, largest = finished.study.points, max(finished.study.points.size)
    rest = take(points, [i for i, size in enumerate(points.size) if size < largest])
    expected, objective = fitted_by(finished.study.surface, rest, finished.study.settings)
    moved = json.loads(body["data-moved"] or "")
    law = LossSurface(**{name: moved[name] for name in LossSurface.PARAMETERS})
    assert objective(law) <= objective(expected) * (1 + 1e-6)
    promoted = finished.promotion
    there = (promoted.flops_per_token, promoted.spec.train.tokens)
    assert float(law(*there)) == pytest.approx(float(expected(*there)), rel=1e-4)
    assert f"forecast {float(law(*there)):.4f}" in (body["data-told"] or "")
    assert body["data-back"] == ""
    assert "too little is left" in (body["data-none"] or "")


def fitted_by(
    fit: Fit, points: Points, settings: FitSettings
) -> tuple[LossSurface, Callable[[LossSurface], float]]:
    """The law of ``points`` under another fit's objective, its weights of seeds too; and that."""
    assert fit.weighting is not None
    settings = replace(settings, huber_delta=fit.objective.delta)
    columns = [points.array("size"), points.array("tokens")]
    solved = solve(LossSurface, columns, points.array("loss"), settings)
    seeds = Counter(points.cell)
    weight_N = np.array([fit.weighting.of_cell(seeds[c]) / seeds[c] for c in points.cell])
    log_N = np.log(points.array("loss"))
    found = minimise(solved.form.logsum, solved.theta_P[None], log_N, weight_N, solved.loss)
    law = make_law(replace(solved, theta_P=found.theta_BP[0]), {"flops_per_size_token": 1.0})
    assert isinstance(law, LossSurface)
    delta = fit.objective.delta

    def objective(other: LossSurface) -> float:
        size = np.abs(log_N - np.log(other(*columns)))
        each = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
        return float(np.sum(weight_N * each))

    return law, objective


@needs_chromium
def test_hostile_names_show_as_text_in_the_browser(finished: Any, tmp_path: Path) -> None:
    def poison(content: Content) -> Content:
        records = tuple(
            replace(r, rung=HOSTILE + r.rung, run_id=HOSTILE + LONG + r.run_id)
            for r in content.evidence.records
        )
        rows = tuple(replace(row, run_id=HOSTILE + LONG, reason=HOSTILE) for row in content.runs)
        evidence = replace(content.evidence, records=records, study=None)
        return replace(content, runs=rows, evidence=evidence)

    act = """
      const stage = document.querySelector('.chart-stage');
      stage.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight' }));
      document.body.dataset.tip = stage.querySelector('.tip').textContent;
      document.body.dataset.title = document.title;
      document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth;
    """
    page = opened(page_of(finished.root, poison), tmp_path, act)
    body = next(attributes for tag, attributes in page.tags if tag == "body")
    assert "owned" not in (body["data-title"] or "")
    assert (body["data-tip"] or "").startswith(HOSTILE)
    assert int(body["data-wide"] or "1") <= 0
    assert page.count("img") == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no run is done", "No run is done."),
        ("tunnel/promotions/a.yaml: changed", "tunnel/promotions/a.yaml: changed."),
        ("data: it changed!", "Data: it changed!"),
        ("variant=x names none", "variant=x names none."),
    ],
)
def test_a_fragment_becomes_a_sentence_and_a_path_stays_a_path(text: str, shown: str) -> None:
    assert sentence(text) == shown


def test_where_protocols_differ_the_runs_are_counted_by_value(finished: Any) -> None:
    records = [record for record in finished.records if record.role == "grid"]
    assert dict(protocol_rows(records, None))["precision"] == "fp32"
    other = {**records[0].protocol, "precision": "fp8"}
    mixed = [*records[1:], replace(records[0], protocol=other, protocol_fingerprint="f" * 16)]
    rows = dict(protocol_rows(mixed, None))
    assert rows["precision"] == f"fp32 ({len(records) - 1} runs), fp8 (1 run)"
    assert f"{'f' * 16} (1 run)" in rows["fingerprint"]
    assert rows["balance.rule"] == "zero_mean_sign"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, ""),
        (0.0, "0"),
        (0.04567, "0.0457"),
        (1.0, "1.00"),
        (12.345, "12.3"),
        (950.4, "950"),
        (999.4, "999"),
        (999.6, "1.00K"),
        (1_234_567.0, "1.23M"),
        (-2.5e9, "-2.50B"),
        (17.1e12, "17.1T"),
    ],
)
def test_counts_are_shown_to_three_digits(value: float | None, shown: str) -> None:
    assert si(value) == shown
