"""The live page with very many runs: what a reader waits for, in a headless Chromium.

Makes, once, a finished sweep of RUNS runs with LINES logged lines each (losses drawn from a known
surface, nothing trained), serves it, and prints in milliseconds: first paint, and from an event
to the frame that shows it for hover, zoom, another width, the choice of convention, leaving a run
and a size out (a refit of all points), an update of the chart, sorting, scrolling and filtering the
table, and a run's curve.

    python benchmarks/live_page.py /tmp/large 10000 1000
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
import time
from pathlib import Path
from types import ModuleType
from typing import Any

from analysis.records import RunRecord
from sweeps.attempt import Attempt, Outcome
from sweeps.files import write_json
from sweeps.plan import Plan
from sweeps.store import Store
from windtunnel.view.live import Live
from windtunnel.view.server import Server

CELLS = 20
"""Sizes times budgets of the ladder; the rest of the runs are further seeds."""
FRAME = "await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));"
CHROMIUM = "/usr/bin/chromium"


def known_sweep() -> ModuleType:
    """The tests' module that makes finished sweeps."""
    path = Path(__file__).resolve().parents[1] / "tests" / "known_sweep.py"
    spec = importlib.util.spec_from_file_location("known_sweep", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["known_sweep"] = module
    spec.loader.exec_module(module)
    return module


def make(root: Path, runs: int, lines: int) -> None:
    """The root, unless it is there: every run has a record, their metrics share a few files."""
    if (root / "sweeps" / "quickstart" / "fit.json").exists():
        return
    known = known_sweep()
    seeds = ",".join(map(str, range(max(1, runs // CELLS))))
    plan: Plan = known.make(root, "ladder.noise_seeds=[]", f"axes.ladder.seed=[{seeds}]")
    metrics = root / "metrics.jsonl"
    metrics.write_text("".join(_line(step, lines) for step in range(1, lines + 1)))
    store = Store(root)
    for run in plan.runs:
        if store.record(run.run_id) is None:
            _finish(root, run.spec, known.measured(run.spec), metrics)
    quick = known.QUICK
    known.fit(root, plan, quick)
    known.promote(root)


def _line(step: int, lines: int) -> str:
    loss = 2.0 + 3.5 * (1 + step / 8) ** -0.9
    return (
        f'{{"step": {step}, "tokens": {step * 256}, "kind": "train", "train_loss_nats": {loss}}}\n'
    )


def _finish(root: Path, spec: Any, record: RunRecord, metrics: Path) -> None:
    from model.typed import to_plain

    run_dir = Store(root).create(spec)
    attempt = Attempt.claim(run_dir, after=0, now=time.time())
    os.link(metrics, attempt.dir / "metrics.jsonl")
    write_json(attempt.dir / "record.json", to_plain(record))
    attempt.publish()
    attempt.end(Outcome(status=record.status, reason=record.reason, ended=time.time()))


def timed(page: Any, act: str, until: str = "true", times: int = 5) -> str:
    """Milliseconds from ``act`` to the frame in which ``until`` holds: median and largest."""
    script = f"""async (i) => {{
      const began = performance.now();
      {act}
      do {{ {FRAME} }} while (!({until}) && performance.now() - began < 20000);
      return performance.now() - began;
    }}"""
    found = sorted(page.evaluate(script, i) for i in range(times))
    return f"{found[len(found) // 2]:6.0f} {found[-1]:6.0f}"


def timed_update(page: Any, live: Live, times: int = 5) -> str:
    """From the arrival of a changed chart to the frame that shows it."""
    chart = json.loads(live.part("chart") or b"{}")
    found = []
    for i in range(times):
        chart["points"][0]["loss"] *= 1 + 1e-6 * (i + 1)
        page.evaluate("window.stage = document.querySelector('.chart-stage')")
        live._put("chart", json.dumps(chart).encode())
        live._publish()
        script = f"""async () => {{
          const began = performance.now();
          do {{ {FRAME} }} while (document.querySelector('.chart-stage') === window.stage
            && performance.now() - began < 20000);
          const asked = performance.getEntriesByType('resource');
          const came = asked.filter((one) => one.name.includes('/part/chart')).at(-1);
          const shown = performance.now() - came.responseEnd;
          performance.clearResourceTimings();
          return shown;
        }}"""
        found.append(page.evaluate(script))
    found.sort()
    return f"{found[len(found) // 2]:6.0f} {found[-1]:6.0f}"


def measure(page: Any, live: Live, address: str) -> None:
    """Open the page and print what it takes."""
    page.goto(address)
    page.wait_for_selector(".chart-stage [data-runs]")
    page.wait_for_selector("#runs-table tbody tr[data-run]")
    page.wait_for_timeout(3000)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    nodes = page.evaluate("document.querySelectorAll('*').length")
    print(f"first paint {paint:.0f} ms; {nodes} nodes in the page")
    stage = "document.querySelector('.chart-stage')"
    table = "document.querySelector('#runs-table tbody')"
    first_row = f"{table}.querySelector('[data-run]').dataset.run"
    point = "clientX: box.left + 200 + 60 * i, clientY: box.top + 150, bubbles: true"
    print("median and largest, ms")
    hover = f"""const box = {stage}.getBoundingClientRect();
      {stage}.dispatchEvent(new PointerEvent('pointermove', {{ {point} }}));"""
    print("hover          ", timed(page, hover))
    zoom = f"""const box = {stage}.getBoundingClientRect();
      for (const [type, dx] of [['pointerdown', 0], ['pointerup', 150]]) {stage}.dispatchEvent(
        new PointerEvent(type, {{ pointerType: 'mouse', pointerId: 1, bubbles: true,
          clientX: box.left + 150 + dx, clientY: box.top + 60 + dx }}));"""
    page.evaluate("Element.prototype.setPointerCapture = () => {}")  # the events are made up
    print("zoom           ", timed(page, zoom))
    page.evaluate("document.querySelector('.chart-bar > button').click()")
    resize = "document.querySelector('#chart').style.width = `${900 - i}px`;"
    print("another width  ", timed(page, resize))
    switch = """const all = document.querySelectorAll('.switch button');
      all[i % all.length].click();"""
    print("convention     ", timed(page, switch, times=10))
    pin = f"""{stage}.focus();
      {stage}.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'ArrowRight' }}));
      {stage}.dispatchEvent(new KeyboardEvent('keydown', {{ key: 'Enter' }}));
      document.querySelector('.tip button').click();"""
    print("run left out   ", timed(page, pin))
    leave = "document.querySelectorAll('.legend .key')[i >> 1].click();"
    print("size left out  ", timed(page, leave, times=8))
    print("chart updated  ", timed_update(page, live))
    sort = f"""window.before = {first_row};
      document.querySelector('#runs-table th[data-column="loss"] button').click();"""
    print("sort by loss   ", timed(page, sort, f"{first_row} !== before"))
    scroll = f"""window.before = {first_row};
      document.getElementById('runs-window').scrollTop = 9000 * (i + 1);"""
    print("scroll         ", timed(page, scroll, f"{first_row} !== before"))
    # Ever longer words, so that every answer has another count.
    words = """window.counted = document.getElementById('filter-count').textContent;
      const box = document.getElementById('filter'); box.value = WORDS[i];
      box.dispatchEvent(new Event('input'));"""
    words = words.replace("WORDS", "['w', 'w32', 'w32 s1', 's12', 's123']")
    answered = "document.getElementById('filter-count').textContent !== counted"
    print("filter         ", timed(page, words, answered))
    curve = f"""document.getElementById('one-run').replaceChildren();
      {table}.querySelectorAll('[data-run]')[i].click();"""
    print("a run's curve  ", timed(page, curve, "document.querySelector('#one-run svg')"))


def main() -> None:
    root, runs, lines = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    began = time.perf_counter()
    make(root, runs, lines)
    print(f"the sweep is there after {time.perf_counter() - began:.0f} s")
    from playwright.sync_api import sync_playwright

    live = Live(root, "quickstart", every_s=600)
    began = time.process_time()
    live.refresh()
    print(f"read, typeset and drawn in {time.process_time() - began:.1f} s of CPU")
    server = Server("127.0.0.1", 0, live)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    if "dry" in sys.argv:
        return
    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.on("pageerror", lambda error: print("error", error))
        measure(page, live, server.address)
        browser.close()
    server.shutdown()


if __name__ == "__main__":
    main()
