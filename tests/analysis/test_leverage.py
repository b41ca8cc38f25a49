"""Leverage between two known surfaces: it comes back, its intervals hold it, and what can't be
reached has no number."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis import leverage as leverage_module
from analysis.gap_draws import draw_gaps, terms
from analysis.laws import Array
from analysis.leverage import Leverage, LeverageMeter, PairedLosses
from analysis.results import FitError

Loss = Callable[[Array, Array], Array]
FLOOR = 1.02


def baseline(size: Array, tokens: Array) -> Array:
    """The laptop's law, near enough: 2.37 nats at the ladder's first cell."""
    return FLOOR + 0.385 * (size / 9e4) ** -0.7 + 0.965 * (tokens / 163_840) ** -0.46


def above_floor(factor: float) -> Loss:
    """A variant with ``factor`` of what the baseline has left to learn."""
    return lambda size, tokens: FLOOR + factor * (baseline(size, tokens) - FLOOR)


def grid(sizes: int, budgets: int, seeds: int) -> tuple[Array, Array]:
    size = np.repeat(9e4 * 1.8 ** np.arange(sizes), budgets * seeds)
    tokens = np.tile(np.repeat(163_840 * 2.15 ** np.arange(budgets), seeds), sizes)
    return size, tokens


def losses(
    variant: Loss, shape: tuple[int, int, int], noise_sd: float = 0.0, seed: int = 0
) -> PairedLosses:
    """Pairs whose runs share half of the variance of their noise."""
    size, tokens = grid(*shape)
    rng = np.random.default_rng(seed)
    shared, *own = noise_sd * math.sqrt(0.5) * rng.standard_normal((3, len(size)))
    return PairedLosses(
        size_N=size,
        tokens_N=tokens,
        baseline_N=baseline(size, tokens) * np.exp(shared + own[0]),
        variant_N=variant(size, tokens) * np.exp(shared + own[1]),
        dearer_N=np.zeros(len(size)),
    )


def truth(variant: Loss, found: PairedLosses, flops: float) -> float:
    """C_baseline / C_variant on the line through the ladder's middle, by bisection."""
    ratio = np.exp(np.log(found.size_N / found.tokens_N).mean())
    size, tokens = np.sqrt(flops * ratio), np.sqrt(flops / ratio)
    target, low, high = float(variant(size, tokens)), 1e-4, 1e4
    for _ in range(100):
        middle = math.sqrt(low * high)
        short = float(baseline(size * math.sqrt(middle), tokens * math.sqrt(middle))) > target
        low, high = (middle, high) if short else (low, middle)
    return math.sqrt(low * high)


def places(found: PairedLosses) -> list[float]:
    flops = found.size_N * found.tokens_N
    return [float(flops.min()), float(np.exp(np.log(flops).mean())), float(flops.max())]


@pytest.mark.parametrize("factor", [0.7, 0.9, 1.0, 1.1])
def test_without_noise_the_leverage_comes_back(factor: float) -> None:
    variant = above_floor(factor)
    found = losses(variant, (5, 4, 1))
    meter = LeverageMeter(found)
    for flops in places(found):
        expected = truth(variant, found, flops)
        assert meter.at(flops).value == pytest.approx(expected, rel=0.03)
    if factor == 0.7:
        assert expected > 3.5, "four times the compute, 1.8 times beyond the ladder's end"


@pytest.mark.slow
@pytest.mark.parametrize("factor", [0.8, 1.0, 1.1])
def test_ninety_percent_intervals_hold_the_truth(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """LOG.md, 2026-11-27, has the study: 36 worlds and three ladders, 200 trials each."""
    monkeypatch.setattr(leverage_module, "DRAWS", 800)
    variant, held, times = above_floor(factor), np.zeros(3), 80
    for seed in range(times):
        found = losses(variant, (3, 3, 2), noise_sd=0.01, seed=seed)
        meter = LeverageMeter(found)
        for index, flops in enumerate(places(found)):
            held[index] += _holds(meter.at(flops), truth(variant, found, flops))
    assert (held / times > 0.8).all(), held / times
    assert held.sum() / (3 * times) > 0.85, "short by no more than five in a hundred"


@pytest.mark.slow
def test_intervals_hold_where_cells_differ_as_much_as_seeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By every pair they hold 0.71 to 0.74 times here (LOG.md, 2026-11-27)."""
    monkeypatch.setattr(leverage_module, "DRAWS", 800)
    variant, held, times = above_floor(0.9), np.zeros(3), 60
    for seed in range(times):
        found = losses(variant, (3, 3, 3), noise_sd=0.007, seed=seed)
        own = 0.007 * np.random.default_rng(1000 + seed).standard_normal((2, 9)).repeat(3, axis=1)
        found = replace(
            found,
            baseline_N=found.baseline_N * np.exp(own[0]),
            variant_N=found.variant_N * np.exp(own[0] + own[1]),
        )
        meter = LeverageMeter(found)
        for index, flops in enumerate(places(found)):
            held[index] += _holds(meter.at(flops), truth(variant, found, flops))
    assert (held / times > 0.82).all(), held / times


def test_seeds_of_a_cell_are_read_as_its_mean() -> None:
    """And cells without seeds, or too few of them, as they are."""
    found = losses(above_floor(0.9), (3, 3, 2), noise_sd=0.01)
    cells = found.by_cells()
    assert len(cells.size_N) == 9
    for column in ("baseline_N", "variant_N"):
        pairs = np.log(getattr(found, column)).reshape(9, 2)
        assert np.log(getattr(cells, column)) == pytest.approx(pairs.mean(axis=1), rel=1e-12)
    for shape in ((3, 2, 2), (5, 4, 1)):
        single = losses(above_floor(0.9), shape)
        assert single.by_cells() is single


def _holds(found: Leverage, expected: float) -> bool:
    low = math.inf if found.low is None else found.low
    return low <= expected <= (math.inf if found.high is None else found.high)


def test_what_moves_both_runs_of_a_pair_is_not_in_the_leverage() -> None:
    """1% of noise, all of it shared: the interval is far narrower than with noise of their own."""
    rng = np.random.default_rng(5)
    own = losses(above_floor(1.0), (3, 3, 2), noise_sd=0.01)
    noise = np.exp(0.01 * rng.standard_normal(len(own.size_N)))
    exact = losses(above_floor(1.0), (3, 3, 2))
    shared = replace(
        exact, baseline_N=exact.baseline_N * noise, variant_N=exact.variant_N * noise * 1.00001
    )
    middle = places(own)[1]
    widths = [LeverageMeter(found).at(middle) for found in (own, shared)]
    alone, together = (float(w.high or 0) / float(w.low or 1) for w in widths)
    assert alone > 1.05
    assert together < 1.001


def test_a_gap_bends_as_often_as_akaike_says() -> None:
    """The corrected criterion of both shapes; seven runs leave none to spare for the second."""
    size, tokens = np.log(grid(4, 4, 1))
    size, tokens = size - size.mean(), tokens - tokens.mean()
    gap = 0.01 * size + 0.006 * size**2 + 0.0045 * np.sin(7.0 * np.arange(16))
    criteria = []
    for used in (3, 6):
        rows = terms(size, tokens)[:, :used]
        solved, *_ = np.linalg.lstsq(rows, gap, rcond=None)
        squares = float(((gap - rows @ solved) ** 2).sum())
        criteria.append(16 * np.log(squares) + 2 * used * 16 / (16 - used - 1))
    expected = 1 / (1 + np.exp((criteria[1] - criteria[0]) / 2))
    assert 0.1 < expected < 0.9
    bent_R = draw_gaps(size, tokens, gap, 20_000)[:, 3:].any(axis=1)
    assert bent_R.mean() == pytest.approx(expected, abs=0.015)
    size, tokens = size[[0, 1, 2, 4, 5, 6, 8]], tokens[[0, 1, 2, 4, 5, 6, 8]]
    assert not draw_gaps(size, tokens, size**2, 500)[:, 3:].any()


def test_a_dearer_variant_is_charged_for_it() -> None:
    """Equal losses for a tenth more compute are a leverage of 1 / 1.1, a gap to its worse."""
    found = losses(above_floor(1.0), (3, 3, 1))
    found = replace(found, dearer_N=np.full(9, np.log(1.1)))
    meter = LeverageMeter(found)
    middle = meter.at(places(found)[1])
    assert middle.value == pytest.approx(1 / 1.1, rel=1e-4)
    assert middle.flops == pytest.approx(1.1 * places(found)[1])
    size, tokens = 9e4 * 1.8, 163_840 * 2.15
    lost = baseline(size, tokens) - baseline(size * 1.1**0.5, tokens * 1.1**0.5)
    assert middle.gap_nats.value == pytest.approx(lost, rel=0.01)
    assert meter.curve().pairs[0].value == pytest.approx(1 / 1.1, rel=1e-4)


def test_beyond_the_runs_a_variant_is_as_much_dearer_as_at_their_end() -> None:
    """From twice the compute at the small end to the same at the large end."""
    found = losses(above_floor(1.0), (3, 3, 1))
    first, middle, last = places(found)
    share = np.log(found.size_N * found.tokens_N / first) / np.log(last / first)
    meter = LeverageMeter(replace(found, dearer_N=np.log(2.0) * (1 - share)))
    for flops, dearer in (
        (first / 10, 2.0),
        (first, 2.0),
        (middle, 2**0.5),
        (last, 1.0),
        (10 * last, 1.0),
    ):
        assert meter.at(flops).flops == pytest.approx(dearer * flops, rel=1e-9)
        assert meter.at(flops).value == pytest.approx(1 / dearer, rel=1e-3)


def test_a_loss_below_the_baselines_floor_is_not_reached() -> None:
    def lower(size: Array, tokens: Array) -> Array:
        return baseline(size, tokens) - 0.45

    curve = LeverageMeter(losses(lower, (5, 4, 1), noise_sd=0.001)).curve()
    largest = curve.largest
    assert (largest.value, largest.high, largest.extrapolation_ratio) == (None, None, None)
    assert largest.unreached_frac > 0.95
    assert curve.per_decade is None
    assert curve.pairs[-1].value is None
    first = curve.places[0]
    assert first.value is not None
    assert first.value > 1
    assert first.low is not None
    assert largest.gap_nats.value == pytest.approx(-0.45, rel=0.02)


def test_the_trend_is_the_ratio_of_the_ends() -> None:
    def growing(size: Array, tokens: Array) -> Array:
        return baseline(size, tokens) * (size * tokens / 1.5e10) ** -0.01

    found = losses(growing, (4, 4, 1), noise_sd=0.001, seed=1)
    curve = LeverageMeter(found).curve()
    assert curve.per_decade is not None
    first, _, last = places(found)
    expected = truth(growing, found, last) / truth(growing, found, first)
    decades = math.log10(last / first)
    assert curve.per_decade.contains(expected ** (1 / decades))
    assert curve.per_decade.low > 1


def test_runs_that_show_no_law_are_refused_with_the_reason() -> None:
    whole = losses(above_floor(0.9), (3, 3, 1))

    def some(rows: Array) -> PairedLosses:
        columns = {name: getattr(whole, name)[rows] for name in vars(whole)}
        return PairedLosses(**columns)

    everyone = np.arange(9)
    cases = {
        "5 runs of the baseline are too few": everyone[:5],
        "the same size": np.array([0, 1, 2, 0, 1, 2]),
        "the same tokens": np.array([0, 3, 6, 0, 3, 6]),
        "grow together": np.array([0, 4, 8, 0, 4, 8]),
    }
    for said, rows in cases.items():
        with pytest.raises(FitError, match=said):
            LeverageMeter(some(rows))
    with pytest.raises(FitError, match="does not fall with size and tokens"):
        LeverageMeter(replace(whole, baseline_N=whole.baseline_N[::-1]))
