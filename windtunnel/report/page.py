"""The page: content and figures typeset by one template, everything from outside escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from analysis.plots_style import Drawing
from windtunnel.calibration import calibration, calibration_sentence
from windtunnel.console import duration
from windtunnel.report import sentences, theme
from windtunnel.report.chart import chart_data
from windtunnel.report.content import Content
from windtunnel.report.conventions import views_of
from windtunnel.report.numbers import flops, interval, loss, number, percent, prose, sentence, si

LARGEST_CSV_BYTES = 400_000
"""Larger data stays beside the page, so that the page opens at once."""


def render(content: Content, drawings: Sequence[Drawing]) -> str:
    """The whole HTML text."""
    environment = Environment(
        loader=PackageLoader("windtunnel.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "si": si,
        "flops": flops,
        "loss": loss,
        "interval": interval,
        "percent": percent,
        "number": number,
        "duration": duration,
        "prose": prose,
        "sentence": sentence,
    }
    answer, views = content.answer, views_of(content.evidence)
    told, told_class = sentences.outcome(answer) if answer else ("", "")
    assets = files("windtunnel.report") / "templates"
    return environment.get_template("page.html").render(
        content=content,
        drawings=drawings,
        inline_svg=theme.inline_svg,
        csv_link=csv_link,
        chart=chart_data(content.evidence, views),
        views=views,
        asked=sentences.asked(content),
        facts=sentences.facts(content),
        troubles=sentences.troubles(content),
        no_answer=sentences.no_answer(content),
        no_fit=sentences.no_fit(content),
        outcome=told,
        outcome_class=told_class,
        strip=sentences.strip(answer) if answer else None,
        recommended=sentences.recommended(answer) if answer else (),
        loads=sentences.loads(answer),
        calibration=calibration_sentence(calibration(content.ledger)),
        fit_sentence=sentences.fit_sentence(content) if content.study else "",
        warnings=sentences.warnings(content),
        runs_sentence=sentences.runs_sentence(content),
        has_variants=any(row.variant for row in content.runs),
        light=Markup(theme.variables(dark=False)),
        dark=Markup(theme.variables(dark=True)),
        style=Markup((assets / "page.css").read_text(encoding="utf-8")),
        page_script=Markup((assets / "page.js").read_text(encoding="utf-8")),
        law_script=Markup((assets / "law.js").read_text(encoding="utf-8")),
        chart_script=Markup((assets / "chart.js").read_text(encoding="utf-8")),
    )


def csv_link(drawing: Drawing) -> str | None:
    """The figure's data as a link that works without its file; None where it is too large."""
    text = drawing.data.to_csv(index=False).encode()
    if len(text) > LARGEST_CSV_BYTES:
        return None
    return "data:text/csv;base64," + base64.b64encode(text).decode()
