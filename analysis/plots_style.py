"""The look of every figure, and how one is written: PNG, SVG, PDF, and its data as CSV.

Figures are drawn at the width of one journal column with type that is legible there. Colours are
safe for the common colour-vision deficiencies: model sizes run along one hue path of falling
lightness, so that they keep their order in grey, and what is forecast is vermilion, always with its
own marker as well. Text from outside (run names, reasons) goes through :func:`safe_label`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

COLUMN_WIDTH = 3.4
"""Inches; a two-column journal page gives one column about 86 mm."""

INK = "#1c1f24"
MUTED = "#606873"
LINE = "#d9dbd8"
PAPER = "#ffffff"
FORECAST = "#c8470f"
EXCLUDED = "#8a9099"
# Small to large models: teal to indigo. Light enough to tell apart, dark enough to see on white.
SIZES = (
    "#4fbfa8",
    "#3fb0ab",
    "#379fab",
    "#338faa",
    "#347fa6",
    "#386fa1",
    "#3d5f99",
    "#41508a",
    "#3f4377",
    "#383660",
    "#2f2a4b",
)
# Below to above a balanced load: blue, near-white, brown; lightness falls both ways.
LOADS = (
    "#1d3f6e",
    "#3a6aa3",
    "#7ba3cb",
    "#bcd2e4",
    "#eeeeea",
    "#f2d5b0",
    "#e0a667",
    "#b8702e",
    "#7a3f10",
)

_PREFERRED_FONTS = ("Inter", "Helvetica Neue", "Helvetica", "Arial", "Liberation Sans")


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """One figure with what has to stand beside it, or the sentence that stands in its place."""

    name: str
    """File stem, such as ``loss_compute``."""
    title: str
    how_to_read: str
    distrust: str
    """What the figure can't show, or shows only under an assumption."""
    data: pd.DataFrame
    """What was drawn; units in the column names."""
    figure: Figure | None
    missing: str = ""
    """Why there is no figure; empty where there is one."""


@cache
def _fonts() -> tuple[str, ...]:
    installed = set(font_manager.get_font_names())
    return (*(name for name in _PREFERRED_FONTS if name in installed), "DejaVu Sans")


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for everything drawn or saved here; nothing global is changed."""
    settings: dict[Any, Any] = {
        "font.family": list(_fonts()),
        "mathtext.fontset": "custom",
        **{f"mathtext.{face}": _fonts()[0] for face in ("rm", "it", "bf", "cal", "sf", "tt")},
        "mathtext.default": "regular",
        "font.size": 7.5,
        "axes.titlesize": 7.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 7.5,
        "axes.labelcolor": INK,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "text.color": INK,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 7,
        "ytick.labelsize": 7,
        "xtick.major.size": 2.5,
        "ytick.major.size": 2.5,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.fontsize": 6.5,
        "legend.frameon": False,
        "legend.handlelength": 1.4,
        "legend.borderaxespad": 0.2,
        "legend.labelspacing": 0.3,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.6,
        "figure.dpi": 100,
        "savefig.dpi": 300,
        "figure.facecolor": PAPER,
        "axes.facecolor": PAPER,
        "svg.fonttype": "none",
        "pdf.fonttype": 42,
        "svg.hashsalt": "windtunnel",
    }
    with matplotlib.rc_context(settings):
        yield


def new_figure(
    height: float, rows: int = 1, *, first_share: float = 1.0
) -> tuple[Figure, list[Axes]]:
    """One column wide, ``height`` inches high, ``rows`` panels above each other.

    The first panel is ``first_share`` times as high as each of the others.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.02, w_pad=0.02)
    figure = Figure(figsize=(COLUMN_WIDTH, height), layout=layout)
    shares = [first_share] + [1.0] * (rows - 1)
    axes = figure.subplots(rows, 1, squeeze=False, height_ratios=shares)
    return figure, list(axes[:, 0])


def size_colors(count: int) -> list[str]:
    """``count`` colours from small to large models, out of :data:`SIZES`."""
    if count == 1:
        return [SIZES[len(SIZES) // 2]]
    return [SIZES[round(i * (len(SIZES) - 1) / (count - 1))] for i in range(count)]


def safe_label(text: str, limit: int = 24) -> str:
    """``text`` from outside as a label: one line, cut to ``limit``, no formulas, known glyphs."""
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return "".join(c if _drawable(c) else "?" for c in line).replace("$", r"\$")


@cache
def _drawable(character: str) -> bool:
    paths = (font_manager.findfont(name) for name in _fonts())
    return any(FT2Font(path).get_char_index(ord(character)) for path in paths)


def si(value: float, digits: int = 2) -> str:
    """``value`` with a metric prefix, such as 131K, 2.4M, 16B (K, M, B, T as papers write them)."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor * 0.9995:
            return f"{_significant(value / factor, digits)}{suffix}"
    return _significant(value, digits)


def told_apart(values: Sequence[float], most: int = 6) -> list[str]:
    """Each as :func:`si` has it, with as many digits as it takes for no two to look alike."""
    for digits in range(2, most + 1):
        labels = [si(value, digits) for value in values]
        if len({*labels}) == len({*values}):
            break
    return labels


def _significant(value: float, digits: int) -> str:
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def power_of_ten(value: float) -> str:
    """``2.5e13`` as mathtext 2.5·10¹³."""
    exponent = math.floor(math.log10(value) + 1e-9)
    mantissa = value / 10**exponent
    front = "" if abs(mantissa - 1) < 1e-6 else f"{mantissa:.3g}·"
    return f"{front}$10^{{{exponent}}}$"


def log_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round values between ``low`` and ``high`` for a logarithmic axis: 1, 2, 5 or decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**d for d in decades for s in steps]
        inside = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(inside) <= most:
            return inside
    stride = math.ceil(len(inside) / most)
    return inside[::stride]


def even_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Evenly spaced round values between ``low`` and ``high``, for a narrow logarithmic axis."""
    span = high - low
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * f for f in (1, 2, 5, 10) if span / (step * f) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(k * step, 10) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def flops_axis(
    axis: Axis, low: float, high: float, label: str = "Training compute (FLOPs)"
) -> None:
    """A logarithmic axis of compute, ticks as powers of ten."""
    low, high = _at_least(low, high, 10.0)
    _log_axis(axis, low, high, log_ticks(low, high), power_of_ten)
    axis.set_label_text(label)


def count_axis(axis: Axis, low: float, high: float, label: str) -> None:
    """A logarithmic axis of tokens, parameters or FLOPs per token, ticks as 10K, 2M, 5B."""
    low, high = _at_least(low, high, 2.0)
    _log_axis(axis, low, high, _at_least_two(low, high), si)
    axis.set_label_text(label)


def rate_axis(axis: Axis, low: float, high: float, label: str = "Peak learning rate") -> None:
    """A logarithmic axis of learning rates, ticks as 0.002 or 5e-05."""
    _log_axis(axis, low, high, _at_least_two(low, high), lambda value: f"{value:g}")
    axis.set_label_text(label)


def loss_axis(axis: Axis, low: float, high: float, label: str = "Loss (nats per token)") -> None:
    """A logarithmic axis of loss with evenly spaced ticks, as losses span less than a decade."""
    ticks = even_ticks(low, high, most=8) if high / low < 8 else log_ticks(low, high)
    _log_axis(axis, low, high, ticks, lambda value: f"{value:.4g}")
    axis.set_label_text(label)


def _at_least_two(low: float, high: float) -> list[float]:
    """Round ticks, evenly spaced where only one would be: one tick gives no scale."""
    ticks = log_ticks(low, high)
    return ticks if len(ticks) > 1 else even_ticks(low, high)


def _at_least(low: float, high: float, factor: float) -> tuple[float, float]:
    """The same middle, the ends at least ``factor`` apart: room for two round ticks."""
    if high / low >= factor:
        return low, high
    middle = math.sqrt(low * high)
    return middle / math.sqrt(factor), middle * math.sqrt(factor)


def _log_axis(axis: Axis, low: float, high: float, ticks: Sequence[float], text: object) -> None:
    set_scale = axis.axes.set_xscale if axis.axis_name == "x" else axis.axes.set_yscale  # type: ignore[attr-defined]
    set_limits = axis.axes.set_xlim if axis.axis_name == "x" else axis.axes.set_ylim  # type: ignore[attr-defined]
    set_scale("log")
    set_limits(low, high)
    axis.set_major_locator(FixedLocator(list(ticks)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))  # type: ignore[operator]


def padded(values: Sequence[float] | np.ndarray, share: float = 0.06) -> tuple[float, float]:
    """Smallest and largest of positive ``values``, widened by ``share`` of their log range."""
    low, high = float(np.min(values)), float(np.max(values))
    pad = (high / low) ** share if high > low else 1.05
    return low / pad, high * pad


def light_grid(axes: Axes, which: str = "y") -> None:
    """Hairlines behind the data, along the axis that is read off."""
    axes.grid(True, axis=which, color=LINE, linewidth=0.5)  # type: ignore[arg-type]


def _settle(figure: Figure) -> None:
    """Find the layout once; every format then shares it, and saving takes half the time."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def to_svg(drawing: Drawing) -> str:
    """The figure as SVG text, the same for the same data."""
    if drawing.figure is None:
        raise ValueError(f"{drawing.name} has no figure: {drawing.missing}")
    buffer = io.StringIO()
    with style():
        _settle(drawing.figure)
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True)
    return buffer.getvalue()


def save(drawing: Drawing, folder: Path) -> list[Path]:
    """Write ``<name>.png``, ``.svg``, ``.pdf`` and ``.csv``; nothing where there is no figure."""
    if drawing.figure is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = [folder / f"{drawing.name}.csv"]
    drawing.data.to_csv(written[0], index=False)
    with style():
        _settle(drawing.figure)
        for suffix, metadata in (("png", {}), ("pdf", {"CreationDate": None})):
            path = folder / f"{drawing.name}.{suffix}"
            drawing.figure.savefig(path, format=suffix, metadata=metadata)
            written.append(path)
    path = folder / f"{drawing.name}.svg"
    path.write_text(to_svg(drawing), encoding="utf-8")
    return [*written, path]


def tidy(series: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns of equal length as rows of a figure's data; ``series`` says what they are."""
    frame = pd.DataFrame({"series": series, **columns})
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]


def absent(name: str, title: str, why: str) -> Drawing:
    """What stands in the place of a figure that can't be drawn."""
    return Drawing(
        name=name,
        title=title,
        how_to_read="",
        distrust="",
        data=pd.DataFrame(),
        figure=None,
        missing=why,
    )
