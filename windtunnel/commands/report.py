"""Write a sweep's report: one HTML page that opens offline, and every figure as files.

The page says what was asked, what is recommended and how certain that is, shows the evidence, and
lists every run. It can be written at any time: where something is still missing, it says so. The
figures are stored beside it as PNG, SVG and PDF, each with its data as CSV. With `tracker=wandb`
they, the fitted curves and the promotion also go to W&B, offline unless `tracker.mode=online`.

Example:
  windtunnel report sweep=quickstart
  windtunnel report sweep=quickstart tracker=wandb
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from analysis.wording import counted
from model.training.config import TensorboardTracker, TrackerConfig, WandbTracker


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/report.yaml``."""

    root: Path
    sweep: str
    """Name of a sweep on disk."""
    out: Path | None
    """Folder of the report; null: ``root/sweeps/<sweep>/report``."""
    tracker: TrackerConfig
    """Who is given the report besides."""


def run(config: Config, console: Console) -> int:
    """Gather, draw, typeset, write."""
    from analysis.plots import draw_all
    from windtunnel.console import prose, say
    from windtunnel.report.content import gather
    from windtunnel.report.page import render
    from windtunnel.report.write import write_report
    from windtunnel.tracking import located, tell_mirror

    content = gather(
        config.sweep,
        config.root,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=version("windtunnel-moe"),
    )
    drawings = draw_all(content.evidence)
    folder = config.out or config.root / "sweeps" / config.sweep / "report"
    page = write_report(folder, render(content, drawings), drawings)
    for drawing in drawings:
        if drawing.missing:
            prose(console, f"No figure {drawing.name}: {drawing.missing}")
    drawn = sum(drawing.figure is not None for drawing in drawings)
    console.print(
        f"{counted(drawn, 'figure', 'figures')} (PNG, SVG, PDF, CSV) in {folder}", markup=False
    )
    console.print(f"Report: {page}", markup=False, soft_wrap=True)
    tracker = located(config.tracker, config.root, config.sweep)
    if isinstance(tracker, WandbTracker):
        from windtunnel.report.publish import publish_report

        tracker = replace(tracker, job_type="report")
        trouble = publish_report(tracker, content, drawings, folder, config.root)
        if trouble:
            say(console, trouble)
        else:
            tell_mirror(console, tracker)
    elif isinstance(tracker, TensorboardTracker):
        say(console, "TensorBoard holds runs; a report goes to W&B alone (tracker=wandb).")
    return 0
