"""The page: content and figures typeset by one template, everything from outside escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.catalogue import cut_ends
from analysis.plots_style import Drawing
from analysis.wording import brief, counted, level_text
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.console import duration
from windtunnel.quoting import under
from windtunnel.report import sentences, theme
from windtunnel.report.chart import chart_data
from windtunnel.report.content import Content
from windtunnel.report.conventions import View, views_of
from windtunnel.report.numbers import (
    flops,
    interval,
    loss,
    number,
    percent,
    prose,
    sentence,
    si,
    signed,
)
from windtunnel.report.unwell import unwell

LARGEST_CSV_BYTES = 400_000
"""Larger data stays beside the page, so that the page opens at once."""

MOST_UNWELL = 12
"""Reasons for failed, diverged and excluded runs above the table; the table has them all."""
MOST_OPEN = 3
"""Of them on the live page, where they come and go and the table should stay near; the others are
folded. A report may be printed, and shows them."""

CHART_SCRIPTS = (
    "numbers",
    "scales",
    "frames",
    "law",
    "moved",
    "marks",
    "controls",
    "pointer",
    "chart",
)
"""In the order in which they build on each other."""

MOST_HELD_OUT = 12
"""Runs listed of each hold-out; fit.json has them all."""

SECTIONS = (
    ("asked", "What was asked"),
    ("answer", "The answer"),
    ("ledger", "Forecast ledger"),
    ("evidence", "The evidence"),
    ("law", "The law"),
    ("runs", "Runs"),
    ("protocol", "Protocol"),
    ("provenance", "Provenance"),
)
"""Anchor and heading, in the order of the decision."""


def render(content: Content, drawings: Sequence[Drawing]) -> str:
    """The whole HTML text."""
    views = tuple(views_of(content.evidence))
    return (
        environment()
        .get_template("page.html")
        .render(
            **values(content, drawings, views, live=False),
            **look("theme", "page"),
            sections=SECTIONS,
            chart=chart_data(content.evidence, views),
            runs_sentence=sentences.runs_sentence(content),
            has_variants=any(row.variant for row in content.runs),
        )
    )


@cache
def environment(package: str = "windtunnel.report") -> Environment:
    """Jinja with the page's filters; everything from outside is escaped."""
    made = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "si": si,
        "flops": flops,
        "loss": loss,
        "interval": interval,
        "level": level_text,
        "percent": percent,
        "number": number,
        "signed": signed,
        "duration": duration,
        "prose": prose,
        "sentence": sentence,
        "brief": brief,
    }
    return made


def values(
    content: Content, drawings: Sequence[Drawing], views: Sequence[View], *, live: bool
) -> dict[str, Any]:
    """What the parts of the page are typeset from; ``live``: served, not kept as a file."""
    answer = content.answer
    told, told_class = sentences.outcome(answer, content.root) if answer else ("", "")
    return {
        "live": live,
        "content": content,
        "under_root": under(content.root),
        "study": content.study,
        "answer": answer,
        "drawings": drawings,
        "views": views,
        "inline_svg": theme.inline_svg,
        "csv_link": csv_link,
        "asked": sentences.asked(content),
        "facts": sentences.facts(content),
        "troubles": sentences.troubles(content, live=live),
        "no_answer": sentences.no_answer(content),
        "no_fit": sentences.no_fit(content),
        "outcome": told,
        "outcome_class": told_class,
        "strip": sentences.strip(answer) if answer else None,
        "recommended": sentences.recommended(answer) if answer else (),
        "loads": sentences.loads(answer),
        "ledger_levels": sorted({level_text(e.forecast.forecast.level) for e in content.ledger}),
        "calibration": calibration_sentence(calibration(content.ledger)),
        "fit_sentence": sentences.fit_sentence(content) if content.study else "",
        "warnings": sentences.warnings(content),
        "most_held_out": MOST_HELD_OUT,
        "worst_misses": sentences.worst_misses,
        "unwell": unwell(content),
        "most_open": MOST_OPEN if live else MOST_UNWELL,
        "most_unwell": MOST_UNWELL,
        "counted": counted,
        "cut_ends": cut_ends,
    }


def look(*scripts: str) -> dict[str, Any]:
    """Style, both themes, and the scripts a page needs: the chart's between those named."""
    first, *last = scripts
    names = (first, *CHART_SCRIPTS, *last)
    return {
        "light": Markup(theme.variables(dark=False)),
        "dark": Markup(theme.variables(dark=True)),
        "style": asset("page.css"),
        "scripts": [asset(f"{name}.js") for name in names],
    }


def asset(name: str, package: str = "windtunnel.report") -> Markup:
    """A shipped stylesheet or script."""
    return Markup((files(package) / "templates" / name).read_text(encoding="utf-8"))


def csv_link(drawing: Drawing) -> str | None:
    """The figure's data as a link that works without its file; None where it is too large."""
    text = drawing.data.to_csv(index=False).encode()
    if len(text) > LARGEST_CSV_BYTES:
        return None
    return "data:text/csv;base64," + base64.b64encode(text).decode()
