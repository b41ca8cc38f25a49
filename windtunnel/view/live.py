"""What the server serves, kept up to date by one thread: sections, figures, the chart's numbers.

Three things of unlike price are made apart. How far the runs are is looked at every few seconds.
Sections are typeset anew when a run has ended, a fit was made or a forecast written. Figures come
last, one by one. None of it takes more than a tenth of a core on average, because the runs that are
watched need the machine.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from analysis.plots import FIGURES, Drawing
from analysis.study import Study
from sweeps.plan import Plan
from sweeps.plan_file import skim_plan
from windtunnel.commands.status import known_plan
from windtunnel.report.chart import chart_data
from windtunnel.report.content import Content, gather
from windtunnel.report.conventions import View, own_view, views_of
from windtunnel.report.page import environment, values
from windtunnel.report.sources import Sources, stamp_of
from windtunnel.view.now import curve_data, now_of
from windtunnel.view.table import Question, RunTable

logger = logging.getLogger(__name__)

PARTS = ("asked", "answer", "ledger", "law", "unwell", "protocol", "provenance")
FIGURE_NAMES = tuple(draw.__name__ for draw in FIGURES)
BUSY_SHARE = 0.1
"""Of one core, at most, spent on typesetting and drawing."""


@dataclass(frozen=True)
class Part:
    """A piece of the page as bytes; its version is a hash of them."""

    body: bytes

    @property
    def version(self) -> str:
        """Changes whenever the text does."""
        return hashlib.sha1(self.body, usedforsecurity=False).hexdigest()[:12]


class Live:
    """One sweep, watched. Handlers read what the watching thread last put in place."""

    def __init__(self, root: Path, sweep: str, every_s: float) -> None:
        self.sweep = sweep
        self.every_s = every_s
        self._sources = Sources(root)
        known_plan(self._sources.store, sweep, read=skim_plan)  # refuses an unknown sweep at once
        self._parts: dict[str, Part] = {}
        self._versions: dict[str, str] = {}
        self._table = RunTable(())
        self._tables = 0
        self._now: dict[str, Any] = {}
        self._state = b"{}"
        self._seen: object = None
        self._views: tuple[Study | None, tuple[View, ...]] = (None, ())
        self._launched: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Watch until :meth:`stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the watching thread."""
        self._stop.set()
        self._thread.join(timeout=30)

    # ---- for the handlers -------------------------------------------------------------------

    def state(self) -> bytes:
        """Versions of all parts and what happens now, as JSON."""
        return self._state

    def part(self, name: str) -> bytes | None:
        """A section or figure as HTML, or ``chart`` as JSON; None where there is none yet."""
        part = self._parts.get(name)
        return part.body if part else None

    def rows(self, question: Question, *, first: int, count: int) -> bytes:
        """A window of the table of runs, as JSON."""
        return _json(self._table.window(question, first=first, count=count))

    def curve(self, run_id: str) -> bytes | None:
        """The training curve of a run of this sweep, as JSON; None for an unknown run."""
        if not self._table.holds(run_id):
            return None
        return _json(curve_data(self._sources.curve(run_id)))

    # ---- the watching thread ----------------------------------------------------------------

    def _watch(self) -> None:
        while not self._stop.is_set():
            began = time.thread_time()
            try:
                self.refresh()
            except Exception as error:  # a file may be replaced under our hands: look again
                logger.exception("the page could not be brought up to date")
                self._now["trouble"] = f"{type(error).__name__}: {error}"
                self._publish()
            spent = time.thread_time() - began
            self._stop.wait(max(self.every_s, spent * (1 / BUSY_SHARE - 1)))

    def refresh(self) -> None:
        """Look at everything once and make anew what has changed."""
        plan = self._look()
        seen = self._what_is_there(plan)
        if seen == self._seen:
            return
        content = gather(
            self.sweep,
            self._sources.root,
            made_at="",
            version=version("windtunnel-moe"),
            sources=self._sources,
        )
        promotion = content.answer.promotion if content.answer else None
        self._launched = promotion.run_id if promotion else None
        self._show_rows(RunTable(content.runs))
        is_fitted_anew = self._views[0] is not content.study
        own = own_view(content.evidence)
        if not is_fitted_anew or own is None:
            self._typeset(content, self._views_of(content))
        else:
            self._typeset(content, (own,))
        self._draw(content)
        if is_fitted_anew:  # each other convention is a fit of all runs: last, and once a fit
            self._typeset(content, self._views_of(content))
        self._seen = seen

    def _look(self) -> Plan:
        """How far the runs are."""
        plan = known_plan(self._sources.store, self.sweep, read=skim_plan)
        self._now = now_of(plan, self._sources, self._launched)
        self._publish()
        return plan

    def _what_is_there(self, plan: Plan) -> object:
        """Equal as long as no run ended, no fit, trial or forecast was made, no launch got on."""
        root, counts = self._sources.root, self._now["counts"]
        ended = {name: count for name, count in counts.items() if name != "running"}
        launched = self._launched and self._sources.metrics_path(self._launched)
        return (
            ended,
            len(plan.runs),
            stamp_of(self._sources.fit_path(self.sweep)),
            stamp_of(root / "ledger.jsonl"),
            stamp_of(root / "promotions"),
            tuple(map(stamp_of, self._sources.trial_paths(self.sweep))),
            stamp_of(launched) if launched else None,
        )

    def _typeset(self, content: Content, views: tuple[View, ...]) -> None:
        shared = values(content, (), views, live=True)
        for name in PARTS:
            template = environment().get_template(f"parts/{name}.html")
            self._put(name, template.render(shared).encode())
        self._put("chart", _json(chart_data(content.evidence, views)))
        self._publish()

    def _views_of(self, content: Content) -> tuple[View, ...]:
        """The law in every convention; fitted again only when the sweep's own fit is a new one."""
        if self._views[0] is not content.study or content.study is None:
            found = []
            for view in views_of(content.evidence):
                found.append(view)
                if self._stop.is_set():
                    break
                self._look()  # a fit of very many runs takes longer than a reader should wait
            self._views = (content.study, tuple(found))
        return self._views[1]

    def _draw(self, content: Content) -> None:
        for draw in FIGURES:
            if self._stop.is_set():
                return
            drawing = draw(content.evidence)
            self._put(f"figure-{drawing.name}", _figure(content, drawing).encode())
            self._publish()

    def _show_rows(self, table: RunTable) -> None:
        """In this order: who is told of a new table must find it."""
        self._table = table
        self._tables += 1

    def _put(self, name: str, body: bytes) -> None:
        part = Part(body)
        self._parts[name] = part
        self._versions[name] = part.version

    def _publish(self) -> None:
        self._state = _json({"versions": self._versions, "table": self._tables, "now": self._now})


def _figure(content: Content, drawing: Drawing) -> str:
    shared = values(content, (drawing,), (), live=True)
    main = drawing.name == FIGURE_NAMES[0]
    template = environment().get_template("parts/figure.html")
    return template.render(shared, drawing=drawing, main=main)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
