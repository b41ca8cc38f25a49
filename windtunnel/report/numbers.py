"""Numbers as the page writes them."""

from __future__ import annotations

import re

from markupsafe import Markup, escape

from analysis.results import Interval


def si(value: float | None, digits: int = 3) -> str:
    """A count as papers write it: 16.3B, 524K; empty for an absent one."""
    if value is None:
        return ""
    for factor, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= factor * (1 - 0.5 * 10.0**-digits):
            return f"{_significant(value / factor, digits)}{suffix}"
    return _significant(value, digits)


def _significant(value: float, digits: int) -> str:
    if value == 0:
        return "0"
    rounded = f"{abs(value):.{digits - 1}e}"  # 0.9996 has three digits as 1.00
    decimals = max(0, digits - 1 - int(rounded.partition("e")[2]))
    return f"{value:.{decimals}f}"


def flops(value: float) -> Markup:
    """Training FLOPs as 3.52·10¹³."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return Markup("{}·10<sup>{}</sup>").format(mantissa, int(exponent))


def loss(value: float | None, digits: int = 4) -> str:
    """Nats per token; empty for an absent one."""
    return "" if value is None else f"{value:.{digits}f}"


def number(value: float, digits: int = 4) -> str:
    """A coefficient: plain where that is readable, with a power of ten where not."""
    if value == 0 or 1e-3 <= abs(value) < 10.0**digits:
        return f"{value:.{digits}g}"
    if 1 <= abs(value) < 1e5:
        return f"{value:.0f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return Markup("{}·10<sup>{}</sup>").format(mantissa, int(exponent))


def interval(found: Interval, digits: int = 4) -> Markup:
    """``low to high`` of an interval, in the digits of a loss."""
    return Markup("{} to {}").format(loss(found.low, digits), loss(found.high, digits))


def percent(value: float, digits: int = 2) -> str:
    """A share as a percentage."""
    return f"{100 * value:.{digits}f}%"


def signed(value: float) -> str:
    """What a choice costs, in nats with its sign; nothing has none."""
    return "0" if abs(value) < 5e-5 else f"{value:+.4f}"


def prose(text: str) -> Markup:
    """A sentence with its `commands` set as code, powers raised; everything is escaped first."""
    parts = re.split(r"`([^`]+)`", str(escape(text)))
    parts[::2] = [_powers(part) for part in parts[::2]]
    parts[1::2] = [f"<code>{part}</code>" for part in parts[1::2]]
    return Markup("".join(parts))


def _powers(text: str) -> str:
    """``C^-0.15`` and ``5.8e+05`` as a paper sets them."""
    text = re.sub(r"\^(-?\w+(?:\.\d+)?)", r"<sup>\1</sup>", text)
    return re.sub(
        r"(?<!\w)(\d(?:\.\d+)?)e([+-]\d+)\b",
        lambda found: f"{found[1]}·10<sup>{int(found[2])}</sup>",
        text,
    )


def sentence(text: str) -> str:
    """``text`` with a capital and a full stop, wherever it was written as a fragment.

    A path or a name at its beginning stays as it is.
    """
    text = text.strip()
    if not text:
        return ""
    is_name = any(char in text.split()[0].rstrip(".,:;") for char in "/._=")
    first = text[0] if is_name else text[0].upper()
    return first + text[1:] + ("" if text[-1] in ".!?:" else ".")
