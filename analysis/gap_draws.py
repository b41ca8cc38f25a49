"""Draws of the gap between a variant and its baseline, over log-size and log-tokens.

Two shapes are fitted by least squares: a plane, and one with the three terms of second order. How
many draws each gives is its Akaike weight (corrected for few runs), so a gap that is seen to bend
is let bend, and one that is not stays narrow. With the plane alone a leverage of 4 over 108x of
compute came out 5% off in the middle, in intervals that held it 1 time in 10 (LOG.md, 2026-11-27).

Shapes: N pairs, R draws, P = 6 terms.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from analysis.laws import Array

PLANE = 3
"""Of the terms, the first ones."""


def terms(size: ArrayLike, tokens: ArrayLike) -> Array:
    """1, m, d, m², d² and m·d in the last axis; both natural logs over the runs' middle."""
    m, d = np.broadcast_arrays(np.asarray(size, dtype=float), np.asarray(tokens, dtype=float))
    return np.stack([np.ones_like(m), m, d, m**2, d**2, m * d], axis=-1)


def draw_gaps(size_N: Array, tokens_N: Array, gap_N: Array, draws: int) -> Array:
    """Coefficients of the gap's terms, [R, P]; the same for the same runs."""
    rng = np.random.default_rng(1)
    shape_NP = terms(size_N, tokens_N)
    count, most = shape_NP.shape
    shapes = [PLANE]
    # AICc needs a run to spare, and two token counts alone can't bend.
    if count > most + 1 and np.linalg.matrix_rank(shape_NP) == most:
        shapes.append(most)
    fitted = [_fitted(shape_NP[:, :used], gap_N, draws, rng) for used in shapes]
    scores = np.array([score for score, _ in fitted])
    weights = np.exp(scores - scores.max())
    picked_R = rng.choice(len(shapes), draws, p=weights / weights.sum())
    drawn_RP = np.zeros((draws, most))
    for index, (used, (_, rows)) in enumerate(zip(shapes, fitted, strict=True)):
        mine_R = picked_R == index
        drawn_RP[mine_R, :used] = rows[mine_R]
    return drawn_RP


def _fitted(
    shape_NP: Array, gap_N: Array, draws: int, rng: np.random.Generator
) -> tuple[float, Array]:
    """Minus half of AICc, and coefficients from their Student's distribution."""
    count, used = shape_NP.shape
    inverse_PP = np.linalg.inv(shape_NP.T @ shape_NP)
    found_P = inverse_PP @ shape_NP.T @ gap_N
    residual_N = gap_N - shape_NP @ found_P
    square = float(residual_N @ residual_N) + 1e-20
    sd_R = np.sqrt(square / rng.chisquare(count - used, draws))
    away_RP = rng.standard_normal((draws, used)) @ np.linalg.cholesky(inverse_PP).T
    penalty = used + used * (used + 1) / max(count - used - 1, 1)
    return -count / 2 * np.log(square) - penalty, found_P + sd_R[:, None] * away_RP
