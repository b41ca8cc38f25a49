"""A report on disk: the page, and each figure beside it as PNG, SVG, PDF and CSV."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from analysis.plots_style import Drawing, save
from model.files import write_atomic


def write_report(folder: Path, html: str, drawings: Sequence[Drawing]) -> Path:
    """Write the figures, then the page; returns the page's path."""
    for drawing in drawings:
        save(drawing, folder)
    page = folder / "index.html"
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(page, html.encode())
    return page
