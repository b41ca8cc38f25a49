"""Colours as people with a colour-vision deficiency see them: simulated, measured in CIELAB."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest

from analysis import plots_style
from windtunnel.report import theme

# What a deficiency makes of linear sRGB at full severity: Machado, Oliveira, Fernandes 2009.
SEEN = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
) / np.array([[0.9505], [1.0], [1.089]])


def lab(color: str, seen: str) -> np.ndarray:
    """L*, a*, b* of a hexadecimal colour under a deficiency."""
    srgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    xyz = TO_XYZ @ np.clip(np.asarray(SEEN[seen]) @ linear, 0, 1)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def apart(one: str, other: str, seen: str) -> float:
    """CIE76; about 2 is the least that is noticed side by side."""
    return float(np.linalg.norm(lab(one, seen) - lab(other, seen)))


@pytest.mark.parametrize("seen", SEEN)
def test_the_sizes_of_a_ladder_stay_apart_and_in_order(seen: str) -> None:
    for sizes in (plots_style.SIZES, theme.DARK_SIZES):
        five = [sizes[round(i * (len(sizes) - 1) / 4)] for i in range(5)]
        assert min(apart(*pair, seen) for pair in pairwise(five)) > 9
        lightness = [lab(color, seen)[0] for color in sizes]
        assert lightness in (sorted(lightness), sorted(lightness, reverse=True))


@pytest.mark.parametrize("seen", SEEN)
def test_a_forecast_is_no_size_no_law_and_no_paper(seen: str) -> None:
    light = (*plots_style.SIZES, plots_style.INK, plots_style.PAPER)
    assert min(apart(plots_style.FORECAST, other, seen) for other in light) > 25
    dark = (*theme.DARK_SIZES, theme.DARK["ink"], theme.DARK["page"])
    assert min(apart(theme.DARK["forecast"], other, seen) for other in dark) > 25


@pytest.mark.parametrize("seen", SEEN)
def test_too_much_and_too_little_load_are_told_apart(seen: str) -> None:
    for loads in (plots_style.LOADS, theme.DARK_LOADS):
        assert min(apart(a, b, seen) for a, b in combinations(loads, 2)) > 5
        for below, above in zip(loads[:3], loads[:-4:-1], strict=True):
            assert apart(below, above, seen) > 25
