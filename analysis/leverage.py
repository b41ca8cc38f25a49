"""Efficiency leverage measured: what compute a baseline needs for the loss of a variant.

EL = C_baseline / C_variant at equal loss (arXiv:2507.17702, section 3), along one line through the
middle of the ladder on which size and tokens grow alike, each as the square root of compute. Two
things are uncertain and both are drawn: the gap between the losses
(:mod:`analysis.gap_draws`), in which what moves both runs of a pair drops out; and the law of the
baseline's own loss (:mod:`analysis.surface_draws`), which turns a gap into compute. Where that law
never comes down to the variant's loss the leverage is not reached, and no number stands for it.

Seeds of one cell share what the cell has of its own, so from nine cells on the cells' means are
what is read: 90% intervals of nine cells that differ as much as two or three seeds do held the
truth 0.71 to 0.85 times by every pair, 0.93 to 0.95 times by means, which are 14 to 22% wider
where cells have nothing of their own (LOG.md, 2026-11-27).

Shapes: N pairs, C cells, P terms of the gap, R draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.gap_draws import draw_gaps, terms
from analysis.laws import Array
from analysis.line import Line
from analysis.noise import cell_means
from analysis.records import RunRecord
from analysis.results import Interval
from analysis.surface_draws import draw_surfaces

DRAWS = 4000
DRAWS_OF_A_PAIR = 200
PLACES = 17
"""Computes from the smallest pair's to the largest's, evenly in log."""
SHOWN = slice(None, None, 4)
"""The places of a table."""
LARGEST = 1e6
"""A leverage beyond this counts as not reached."""
LEAST_CELLS = 9
"""With fewer every pair counts: six leave one degree of freedom for the law's five parameters."""


@dataclass(frozen=True, kw_only=True)
class Leverage:
    """Leverage at one compute of the variant."""

    flops: float
    """C of the variant."""
    gap_nats: Interval
    """The variant's loss less the baseline's at that compute."""
    value: float | None
    """C_baseline / C_variant, the median of the draws; None: not reached."""
    low: float | None
    high: float | None
    """Ends of the interval; None: not reached."""
    level: float
    unreached_frac: float
    """Share of draws whose baseline never comes down to the variant's loss."""
    extrapolation_ratio: float | None
    """The baseline's compute for that loss over its largest run's; None: not reached."""


@dataclass(frozen=True, kw_only=True)
class PairLeverage:
    """What one pair says by itself."""

    flops: float
    """C of the variant."""
    value: float | None
    """C_baseline / C_variant; None: not reached."""


@dataclass(frozen=True, kw_only=True)
class LeverageCurve:
    """Leverage along the ladder."""

    places: tuple[Leverage, ...]
    """From the smallest compute to the largest."""
    per_decade: Interval | None
    """By what a tenfold compute multiplies it; None where it is not reached at an end."""
    pairs: tuple[PairLeverage, ...]
    """In the trial's order."""

    @property
    def largest(self) -> Leverage:
        """At the largest compute that both were run at."""
        return self.places[-1]


@dataclass(frozen=True, kw_only=True)
class PairedLosses:
    """What the leverage is read from, [N] each."""

    size_N: Array
    """M of the baseline's run, training FLOPs per token."""
    tokens_N: Array
    baseline_N: Array
    variant_N: Array
    """Losses in nats per token."""
    dearer_N: Array
    """ln of the variant's compute over the baseline's."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[RunRecord, RunRecord]]) -> PairedLosses:
        """From records of (baseline, variant)."""
        rows = [
            (
                base.train_flops / base.tokens,
                base.tokens,
                base.heldout_nats,
                other.heldout_nats,
                np.log(other.train_flops / base.train_flops),
            )
            for base, other in pairs
        ]
        size_N, tokens_N, baseline_N, variant_N, dearer_N = np.array(rows, dtype=float).T
        return cls(
            size_N=size_N,
            tokens_N=tokens_N,
            baseline_N=baseline_N,
            variant_N=variant_N,
            dearer_N=dearer_N,
        )

    def by_cells(self) -> PairedLosses:
        """One pair a cell, the mean of its log-losses; as it is where there are few or no seeds."""
        place_N2 = np.stack([self.size_N, self.tokens_N], axis=1)
        _, first_C, cell_N = np.unique(place_N2, axis=0, return_index=True, return_inverse=True)
        if len(first_C) < LEAST_CELLS or len(first_C) == len(place_N2):
            return self
        cell_N = cell_N.ravel()
        return PairedLosses(
            size_N=self.size_N[first_C],
            tokens_N=self.tokens_N[first_C],
            baseline_N=np.exp(cell_means(np.log(self.baseline_N), cell_N)),
            variant_N=np.exp(cell_means(np.log(self.variant_N), cell_N)),
            dearer_N=cell_means(self.dearer_N, cell_N),
        )


class LeverageMeter:
    """Reads the leverage at any compute; the same losses give the same draws.

    Raises:
        FitError: the baseline's runs don't show the law of its loss.
    """

    def __init__(self, losses: PairedLosses, level: float = 0.9) -> None:
        self._level = level
        cells = losses.by_cells()
        self._surfaces = draw_surfaces(cells.size_N, cells.tokens_N, cells.baseline_N, DRAWS)
        self._log_flops_N = np.log(losses.size_N) + np.log(losses.tokens_N)
        # In the middle of the runs, where both are drawn about, ln C is the sum of the two.
        self._middle = self._surfaces.log_size + self._surfaces.log_tokens
        self._dearer_N = losses.dearer_N
        self._dearer_line = Line(self._log_flops_N, losses.dearer_N)
        self._size_N = np.log(losses.size_N) - self._surfaces.log_size
        self._tokens_N = np.log(losses.tokens_N) - self._surfaces.log_tokens
        self._gap_N = np.log(losses.variant_N / losses.baseline_N)
        self._gap_RP = draw_gaps(
            np.log(cells.size_N) - self._surfaces.log_size,
            np.log(cells.tokens_N) - self._surfaces.log_tokens,
            np.log(cells.variant_N / cells.baseline_N),
            len(self._surfaces.E),
        )

    def at(self, flops: float) -> Leverage:
        """Where the baseline's compute is ``flops``."""
        return self._leverage(float(np.log(flops)))

    def curve(self) -> LeverageCurve:
        """From the smallest pair's compute to the largest's."""
        ends = float(self._log_flops_N.min()), float(self._log_flops_N.max())
        return LeverageCurve(
            places=tuple(self._leverage(float(at)) for at in np.linspace(*ends, PLACES)),
            per_decade=self._per_decade(*ends),
            pairs=tuple(self._of_pair(index) for index in range(len(self._log_flops_N))),
        )

    def _dearer(self, log_flops: float) -> float:
        """ln of the variant's compute over the baseline's; beyond the runs as at their end."""
        ends = float(self._log_flops_N.min()), float(self._log_flops_N.max())
        return self._dearer_line.value(min(max(log_flops, ends[0]), ends[1]))

    def _gap_R(self, half: float) -> Array:
        """The gap in ln L where size and tokens are exp(``half``) times the middle's."""
        return np.asarray(self._gap_RP @ terms(half, half))

    def _log_leverage_R(self, log_flops: float) -> Array:
        """ln EL; infinite where it is not reached."""
        half = (log_flops - self._middle) / 2
        grown_R = self._surfaces.growth(half, half, self._gap_R(half), float(np.log(LARGEST)))
        return np.asarray(grown_R - self._dearer(log_flops))

    def _leverage(self, log_flops: float) -> Leverage:
        half, dearer = (log_flops - self._middle) / 2, self._dearer(log_flops)
        variant_R = self._surfaces.loss(half, half) * np.exp(self._gap_R(half))
        baseline_R = self._surfaces.loss(half + dearer / 2, half + dearer / 2)
        log_R = self._log_leverage_R(log_flops)
        low, value, high = (
            float(np.exp(end)) if np.isfinite(end) else None for end in self._quantiles(log_R)
        )
        flops = float(np.exp(log_flops + dearer))
        largest = float(np.exp(self._log_flops_N.max()))
        return Leverage(
            flops=flops,
            gap_nats=self._interval(variant_R - baseline_R),
            value=value,
            low=low,
            high=high,
            level=self._level,
            unreached_frac=float(np.isinf(log_R).mean()),
            extrapolation_ratio=None if value is None else value * flops / largest,
        )

    def _per_decade(self, first: float, last: float) -> Interval | None:
        """The ratio of the leverages at both ends, for one decade."""
        first_R, last_R = self._log_leverage_R(first), self._log_leverage_R(last)
        seen_R = np.isfinite(first_R) & np.isfinite(last_R)
        if 1 - seen_R.mean() > (1 - self._level) / 2:
            return None
        slope_R = (last_R[seen_R] - first_R[seen_R]) / (last - first)
        return self._interval(np.exp(slope_R * np.log(10.0)))

    def _of_pair(self, index: int) -> PairLeverage:
        """From its own gap at its own size and tokens."""
        some, dearer = self._surfaces.first(DRAWS_OF_A_PAIR), self._dearer_N[index]
        gap_R = np.full(len(some.E), self._gap_N[index])
        size, tokens = float(self._size_N[index]), float(self._tokens_N[index])
        grown = float(np.median(some.growth(size, tokens, gap_R, float(np.log(LARGEST)))))
        return PairLeverage(
            flops=float(np.exp(self._log_flops_N[index] + dearer)),
            value=float(np.exp(grown - dearer)) if np.isfinite(grown) else None,
        )

    def _interval(self, value_R: Array) -> Interval:
        low, value, high = self._quantiles(value_R)
        return Interval(value=value, low=low, high=high, level=self._level)

    def _quantiles(self, value_R: Array) -> list[float]:
        tail = (1 - self._level) / 2
        ends: list[float] = np.quantile(value_R, [tail, 0.5, 1 - tail], method="nearest").tolist()
        return ends
