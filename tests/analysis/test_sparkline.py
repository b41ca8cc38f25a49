"""Curves as text."""

from analysis.sparkline import sparkline


def test_a_sparkline_spans_its_range_in_its_width() -> None:
    assert sparkline([float(n) for n in range(800)], 8) == "_▁▂▃▄▅▆▇"
    assert sparkline([3.0, 2.0, 1.0], 3) == "▇▄_"
    assert sparkline([1.0], 4) == "____"
    assert sparkline([]) == ""


def test_curves_that_are_compared_share_a_scale() -> None:
    assert sparkline([2.0, 1.0], 2, low=0.0, high=7.0) == "▂▁"
    assert sparkline([7.0, 6.0], 2, low=0.0, high=7.0) == "▇▆"
