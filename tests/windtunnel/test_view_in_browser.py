"""The live page and the report in a real headless Chromium: what a reader sees and can do."""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from windtunnel.report.content import Content, gather
from windtunnel.report.page import render
from windtunnel.view import live as live_module
from windtunnel.view.live import Live
from windtunnel.view.server import Server
from windtunnel.view.table import RunTable

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: no page was opened in a browser"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: no page was opened in it"),
]
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
HOSTILE = "<script>document.title='owned'</script>\"'`&<img src=x onerror=alert(1)>" + "x" * 10_000
PATIENCE_MS = 60_000
# A path holds the dots of one colour and kind; each dot is a part of it that begins with a move.
DRAWN = """[...document.querySelectorAll('.chart-stage [data-runs]')].reduce((sum, path) => {
  const parts = path.getAttribute('d').match(/M/g).length;
  return parts === Number(path.dataset.runs) ? sum + parts : NaN; }, 0)"""


def until(page: Any, expression: str) -> None:
    """Wait for an expression to hold; asked from outside, as the page's policy forbids eval."""
    for _ in range(PATIENCE_MS // 100):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never held: {expression}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Any]:
    """Open an address; afterwards no script may have failed and nothing have left the machine."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    troubles: list[str] = []
    asked: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "console",
        lambda said: troubles.append(said.text) if said.type == "error" else None,
    )
    page.on("request", lambda request: asked.append(request.url))

    def go(address: str) -> Any:
        page.goto(address)
        return page

    yield go
    context.close()
    assert troubles == []
    outside = [url for url in asked if not re.match(r"http://127\.0\.0\.1:|file:|data:", url)]
    assert outside == []


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Serve a root on a free port, one figure only; every `refresh()` of the result is ours."""
    monkeypatch.setattr(live_module, "FIGURES", live_module.FIGURES[:1])
    running: list[tuple[Server, threading.Thread]] = []

    def start(root: Path) -> tuple[Live, str]:
        live = Live(root, "quickstart", every_s=60)
        live.refresh()
        server = Server("127.0.0.1", 0, live)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        running.append((server, thread))
        return live, server.address

    yield start
    for server, thread in running:
        server.shutdown()
        server.server_close()
        thread.join()


def test_the_live_page_draws_every_run_and_switches_to_the_coefficients_of_fit(
    finished: Any, serve: Any, visit: Any
) -> None:
    live, address = serve(finished.root)
    page = visit(address)
    page.wait_for_selector(".chart-stage [data-runs]")
    assert page.evaluate(DRAWN) == len(finished.records)
    page.locator(".chart-stage").focus()
    named = set()
    for _ in finished.records:
        page.keyboard.press("ArrowRight")
        named.add(page.locator(".tip strong").text_content())
    assert named == {record.run_id for record in finished.records}
    page.wait_for_selector("#runs-table tbody tr[data-run]")
    assert page.locator("#runs-table tbody tr[data-run]").count() == len(finished.plan.runs)
    views = live._views[1]
    page.wait_for_selector("[data-view]", state="attached")
    assert len(views) == 6
    for view in views:
        counted = page.get_by_role("radio", name=view.convention.counted, exact=True)
        counted.click()
        attention = "counted" if view.convention.attention else "not counted"
        page.get_by_role("radio", name=attention, exact=True).click()
        shown = page.locator("[data-view]:visible")
        assert shown.count() == 1
        text = "".join(shown.text_content().split())
        for name in ("E", "alpha", "beta"):
            found = view.surface.coefficients[name]
            assert f"{name}{found.value:.4g}{found.low:.4g}to{found.high:.4g}" in text


def test_the_live_page_follows_the_sweep_without_a_reload(
    finished: Any, known_sweep: ModuleType, serve: Any, visit: Any, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan = known_sweep.make(root)
    live, address = serve(root)
    page = visit(address)
    until(
        page,
        f"document.getElementById('now-text').textContent.includes('{len(plan.runs)} planned')",
    )
    page.evaluate("window.same = true")
    for run in plan.runs[:3]:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    known_sweep.fail(root, plan.runs[3].spec, HOSTILE)
    live.refresh()
    until(page, f"({DRAWN}) === 3")
    until(page, "document.getElementById('now-text').textContent.startsWith('3 done')")
    page.fill("#filter", "failed")
    until(page, "document.querySelectorAll('#runs-table tbody tr[data-run]').length === 1")
    assert HOSTILE in page.locator("#runs-table tbody tr[data-run]").text_content()
    # An answer that does not come through is asked for again.
    failing = ["not JSON"]
    page.route(
        "**/runs?*",
        lambda route: route.fulfill(body=failing.pop()) if failing else route.fallback(),
    )
    page.fill("#filter", "planned")
    left = len(plan.runs) - 4
    until(page, f"document.querySelectorAll('#runs-table tbody tr[data-run]').length === {left}")
    assert not failing
    assert page.evaluate("window.same") is True
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    # Status and loss are in sight beside the name of the run, without a scroll to the side.
    edge = page.evaluate("document.getElementById('runs-window').getBoundingClientRect().right")
    for column in ("run", "status", "loss"):
        box = page.locator(f"#runs-table th[data-column={column}]").bounding_box()
        assert box["x"] + box["width"] <= edge


def test_failed_runs_stand_above_the_live_table_and_many_reasons_are_folded(
    finished: Any, known_sweep: ModuleType, serve: Any, visit: Any, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    runs = [run.spec for run in known_sweep.make(root).runs]
    for spec in runs[:4]:
        known_sweep.fail(root, spec, "out of memory" if spec in runs[:2] else HOSTILE)
    live, address = serve(root)
    page = visit(address)
    items = "[...document.querySelectorAll('#runs .gates li')]"
    shown = f"{items}.filter((li) => li.checkVisibility()).length"
    until(page, f"{shown} === 2")
    assert page.locator("#runs details").count() == 0
    assert "and 1 more" in page.locator("#runs .gates li").first.text_content()
    for number, spec in enumerate(runs[4:8]):
        known_sweep.fail(root, spec, f"lost node {number}")
    live.refresh()
    until(page, "!!document.querySelector('#runs details')")
    assert page.locator("#runs summary").text_content() == "3 other reasons"
    assert page.evaluate(shown) == 3
    page.locator("#runs summary").click()
    assert page.evaluate(shown) == 6
    known_sweep.fail(root, runs[8], "lost node 9")
    live.refresh()
    until(page, f"{shown} === 7")  # new, and as unfolded as it was
    assert "owned" not in page.title()
    assert page.locator("img").count() == 0


def test_ten_thousand_rows_scroll_with_a_few_in_the_page(
    finished: Any, serve: Any, visit: Any
) -> None:
    live, address = serve(finished.root)
    row = gather("quickstart", finished.root, made_at="", version="0").runs[0]
    rows = [replace(row, run_id=f"run {n}", seed=n) for n in range(10_000)]
    live._show_rows(RunTable(rows))
    live._publish()
    page = visit(address)
    page.wait_for_selector("#runs-table tbody tr[data-run]")
    heights = "[...document.querySelectorAll('#runs-table tr[data-run]')].map(r => r.offsetHeight)"
    assert set(page.evaluate(heights)) == {34}
    pane = "document.getElementById('runs-window')"
    shown = f"""(() => {{ const box = {pane}.getBoundingClientRect();
      return [...document.querySelectorAll('#runs-table tr[data-run]')].filter((row) => {{
        const at = row.getBoundingClientRect();
        return at.top >= box.top && at.bottom <= box.bottom + 1; }}).map((row) => row.dataset.run);
      }})()"""
    for place, expected in (("5000 * 34", "run 5001"), ("1e9", "run 9999"), ("0", "run 1")):
        page.evaluate(f"{pane}.scrollTop = {place}")
        until(page, f"{shown}.includes('{expected}')")
        assert page.locator("#runs-table tr").count() < 120
    page.locator("#runs-table th[data-column=seed] button").click()
    page.locator("#runs-table th[data-column=seed] button").click()
    until(page, f"{shown}.includes('run 9999')")
    page.fill("#filter", "1234")
    until(page, "document.getElementById('filter-count').textContent === '1 of 10,000'")


def test_hostile_names_show_as_text_on_the_live_page(finished: Any, serve: Any, visit: Any) -> None:
    live, address = serve(finished.root)
    content = gather("quickstart", finished.root, made_at="", version="0")
    records = tuple(
        replace(r, rung=HOSTILE + r.rung, run_id=HOSTILE + r.run_id)
        for r in content.evidence.records
    )
    rows = tuple(replace(row, run_id=HOSTILE, reason=HOSTILE, rung=HOSTILE) for row in content.runs)
    poisoned: Content = replace(
        content,
        sweep=HOSTILE,
        runs=rows,
        problems=(HOSTILE,),
        protocol=((HOSTILE, HOSTILE),),
        evidence=replace(content.evidence, records=records, study=None),
    )
    live.sweep = HOSTILE
    live._show_rows(RunTable(rows))
    live._typeset(poisoned, ())
    page = visit(address)
    page.wait_for_selector(".chart-stage [data-runs]")
    page.locator(".chart-stage").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".tip strong").text_content().startswith(HOSTILE[:80])
    assert page.locator("h1").text_content() == HOSTILE
    struck = page.locator('.legend .key[aria-pressed="false"]').count()
    assert struck == 0, "without a fit no size is left out of it"
    page.wait_for_selector("#runs-table tbody tr[data-run]")
    assert page.locator("#runs-table tbody th").first.text_content() == HOSTILE
    assert page.locator("img").count() == 0
    assert page.title().startswith("<script>")


def test_the_report_hides_a_run_prints_and_loads_nothing(
    finished: Any, visit: Any, tmp_path: Path
) -> None:
    content = gather("quickstart", finished.root, made_at="2026-11-23", version="0")
    drawing = live_module.FIGURES[0](content.evidence)
    path = tmp_path / "index.html"
    path.write_text(render(content, (drawing,)))
    page = visit(f"file://{path}")
    page.wait_for_selector(".chart-stage [data-runs]")
    assert page.evaluate(DRAWN) == len(finished.records)
    page.locator(".legend .key").first.click()
    until(page, "document.getElementById('moved').textContent.startsWith('Without')")
    assert "forecast" in page.locator("#moved").text_content()
    page.emulate_media(media="print")
    assert page.locator("#chart").is_hidden()
    assert page.locator(".static svg").is_visible()
    for width in (1440, 800, 390):
        page.emulate_media(media="screen")
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_table_with_variants_fits_the_paper_and_its_heads_can_be_repeated(
    finished: Any, visit: Any, tmp_path: Path
) -> None:
    content = gather("quickstart", finished.root, made_at="2026-11-23", version="0")
    variant = "recipe.training.peak_lr_factor=0.0125, recipe.training.batch_factor=0.5"
    rows = tuple(replace(row, variant=variant) for row in content.runs)
    path = tmp_path / "index.html"
    drawing = live_module.FIGURES[0](content.evidence)
    path.write_text(render(replace(content, runs=rows), (drawing,)))
    page = visit(f"file://{path}")
    page.wait_for_selector("#runs-table thead button")
    rows_of = "[...document.querySelectorAll('#runs-table tr')]"
    tall = f"{rows_of}.map(row => row.getBoundingClientRect().height)"
    for width in (1440, 800, 390):
        page.set_viewport_size({"width": width, "height": 900})
        assert all(height == round(height) for height in page.evaluate(tall))
    page.emulate_media(media="print")
    width = 688  # of A4 between the margins; what is wider makes Chromium print everything smaller
    page.set_viewport_size({"width": width, "height": 900})
    assert variant in page.locator("#runs-table tbody tr").first.text_content()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = "[...document.querySelectorAll('thead button')].map(b => getComputedStyle(b).display)"
    assert set(page.evaluate(boxes)) == {"contents"}


def test_no_tick_of_the_chart_is_cut_on_a_phone(finished: Any, visit: Any, tmp_path: Path) -> None:
    content = gather("quickstart", finished.root, made_at="2026-11-23", version="0")
    # Without the promotion the axis ends close to a tick.
    content = replace(content, evidence=replace(content.evidence, promoted=None))
    path = tmp_path / "index.html"
    path.write_text(render(content, (live_module.FIGURES[0](content.evidence),)))
    page = visit(f"file://{path}")
    page.set_viewport_size({"width": 390, "height": 900})
    until(page, "document.querySelector('.chart-stage svg').getBoundingClientRect().width < 390")
    cut = """[...document.querySelectorAll('.chart-stage text')].filter((t) => {
      const own = t.getBoundingClientRect(), all = t.ownerSVGElement.getBoundingClientRect();
      return own.left < all.left - 1 || own.right > all.right + 1;
    }).map((t) => t.textContent)"""
    assert page.evaluate(cut) == []


def test_a_first_run_stands_on_an_axis_with_numbers(
    visit: Any, known_sweep: ModuleType, tmp_path: Path
) -> None:
    plan = known_sweep.make(tmp_path)
    known_sweep.finish(tmp_path, plan.runs[3].spec, known_sweep.measured(plan.runs[3].spec))
    content = gather("quickstart", tmp_path, made_at="2026-11-23", version="0")
    path = tmp_path / "index.html"
    path.write_text(render(content, (live_module.FIGURES[0](content.evidence),)))
    page = visit(f"file://{path}")
    until(page, "document.querySelectorAll('.chart-stage .tick.mid').length > 1")


def test_the_verdict_of_a_forecast_is_in_sight_at_every_width(
    finished: Any, visit: Any, tmp_path: Path
) -> None:
    content = gather("quickstart", finished.root, made_at="2026-11-23", version="0")
    path = tmp_path / "index.html"
    path.write_text(render(content, (live_module.FIGURES[0](content.evidence),)))
    page = visit(f"file://{path}")
    verdict = page.locator("#ledger .tag")
    assert verdict.text_content() == "inside"
    for width in (1440, 1200, 390):
        page.set_viewport_size({"width": width, "height": 900})
        seen = "[...document.querySelectorAll('#ledger .tag, #ledger .scroll')].map("
        tag, frame = sorted(page.evaluate(f"{seen}e => e.getBoundingClientRect().right)"))
        assert tag < frame <= width


def test_sorting_is_offered_where_the_page_can_sort(
    finished: Any, browser: Any, tmp_path: Path
) -> None:
    content = gather("quickstart", finished.root, made_at="2026-11-23", version="0")
    path = tmp_path / "index.html"
    path.write_text(render(content, (live_module.FIGURES[0](content.evidence),)))
    for scripts in (True, False):
        context = browser.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.goto(f"file://{path}")
        offer = page.get_by_text("Click a heading to sort.")
        assert offer.is_visible() is scripts
        page.emulate_media(media="print")
        assert offer.is_hidden()
        context.close()
