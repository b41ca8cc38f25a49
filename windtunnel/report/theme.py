"""Colours of the page, light and dark, and figures made to follow them.

The figures' files keep the light colours they were drawn with; inside the page each of those
becomes a CSS variable, so that one drawing serves both themes.
"""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from analysis import plots_style
from analysis.plots_style import Drawing, to_svg

LIGHT = {
    "page": "#fbfbf9",
    "card": "#ffffff",
    "ink": plots_style.INK,
    "muted": plots_style.MUTED,
    "line": plots_style.LINE,
    "paper": plots_style.PAPER,
    "forecast": plots_style.FORECAST,
    "excluded": plots_style.EXCLUDED,
    "accent": "#23698a",
    "good": "#1f7a4d",
    "bad": "#b3261e",
    "wash": "#f1f2ee",
}
DARK = {
    "page": "#131619",
    "card": "#191d21",
    "ink": "#e8e9e6",
    "muted": "#a0a8b1",
    "line": "#333a41",
    "paper": "#191d21",
    "forecast": "#ff9257",
    "excluded": "#767e87",
    "accent": "#7cc0dc",
    "good": "#6fcf9a",
    "bad": "#ff8a80",
    "wash": "#20252a",
}
# Labels were placed by the widths of such a font; a wider one would run into its neighbours.
FIGURE_FONTS = "Arial, 'Liberation Sans', Helvetica, sans-serif"
# On a dark page large models are the light ones: the order stays readable, the ends stay visible.
DARK_SIZES = (
    "#3b6ea0",
    "#3c7ca8",
    "#3f8aae",
    "#4598b2",
    "#4fa6b4",
    "#5fb4b5",
    "#74c1b6",
    "#8dceba",
    "#a8dac2",
    "#c4e6cf",
    "#e0f2df",
)
DARK_LOADS = (
    "#8fc1f5",
    "#5f93cc",
    "#41699a",
    "#33475f",
    "#2c3136",
    "#5a4630",
    "#8d6537",
    "#c48d4a",
    "#f2c078",
)


def variables(dark: bool) -> str:
    """CSS declarations of one theme."""
    colors, sizes, loads = (
        (DARK, DARK_SIZES, DARK_LOADS) if dark else (LIGHT, plots_style.SIZES, plots_style.LOADS)
    )
    named = dict(colors)
    named |= {f"size-{i}": color for i, color in enumerate(sizes)}
    named |= {f"load-{i}": color for i, color in enumerate(loads)}
    return " ".join(f"--{name}: {color};" for name, color in named.items())


def color_variable(color: str) -> str:
    """``var(--size-3)`` for a colour figures are drawn with."""
    return f"var(--{_DRAWN[color]})"


_DRAWN = {LIGHT[name]: name for name in ("paper", "excluded", "forecast", "line", "muted", "ink")}
_DRAWN |= {color: f"size-{i}" for i, color in enumerate(plots_style.SIZES)}
_DRAWN |= {color: f"load-{i}" for i, color in enumerate(plots_style.LOADS)}


_MARK = re.compile(r'\s*<use (?:xlink:)?href="([^"]*)" x="([^"]*)" y="([^"]*)"[^>]*/>')


def drawn_once(svg: str) -> str:
    """Marks of one kind that fall on the same half point are drawn once.

    A page shows a point as about two pixels, so nothing that could be seen is lost; of ten thousand
    runs of a ladder nine in ten go. The files beside the page keep them all.
    """
    seen: set[tuple[str, int, int]] = set()

    def once(found: re.Match[str]) -> str:
        place = (found[1], round(2 * float(found[2])), round(2 * float(found[3])))
        if place in seen:
            return ""
        seen.add(place)
        return found[0]

    return _MARK.sub(once, svg)


def inline_svg(drawing: Drawing) -> Markup:
    """The figure as an ``<svg>`` element: the page's colours, ids of its own, nothing loaded."""
    text = to_svg(drawing)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    text = text.replace("xlink:href=", "href=")
    text = drawn_once(text)
    name = drawing.name
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'href="#', f'href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"font-family: [^;\"]*", f"font-family: {FIGURE_FONTS}", text)
    text = re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: color_variable(found[0]) if found[0] in _DRAWN else found[0],
        text,
    )
    text = re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
    label = escape(drawing.title)
    return Markup(text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1))
