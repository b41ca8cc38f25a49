"""Runs that measure different things in one table: told by a column of words that parts them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.special import fdtrc

from analysis.laws import Array
from analysis.noise import pooled
from analysis.points import Points
from model.errors import ConfigError

MOST_WORDS = 12
"""A column of more different words names runs, not what they have in common."""
FEWEST_RUNS = 3
"""Of each word, before anything is said of it."""
NO_SEED = 0.05
"""Seeds of a language model differ by a percent or two of its loss, not by this."""
CHANCE = 1e-3
SHARE = 0.3
"""Of the residuals' squares that a column explains before it is named."""


def check_repeats(points: Points, where: str) -> None:
    """Refuse repeats that differ by more than seeds do, with a column of words that says in what.

    Raises:
        ConfigError: naming the column, its words, and how far apart they lie.
    """
    _, cell_N = np.unique(np.asarray(points.cell), return_inverse=True)
    log_loss_N = np.log(points.array("loss"))
    found: dict[str, tuple[float, int]] = {}
    for name, column in points.words.items():
        _, word_N = np.unique(np.asarray(column), return_inverse=True)
        gaps = list(_gaps(log_loss_N, cell_N, word_N))
        if len(gaps) >= FEWEST_RUNS and np.median(gaps) > NO_SEED:
            found[name] = float(np.median(gaps)), len(gaps)
    if not found:
        return
    name, (gap, count) = max(found.items(), key=lambda item: item[1])
    words, counts = np.unique(np.asarray(points.words[name]), return_counts=True)
    listed = ", ".join(f"{word or 'empty'} {n}" for word, n in zip(words, counts, strict=True))
    raise ConfigError(
        f"{where}: in {count} cells of one size and token count runs differ in {name!r} and their "
        f"losses in the median by {np.expm1(gap):.0%}: two measurements, not two seeds. Rows by "
        f"{name}: {listed}. Keep one, e.g. filter.{name}={words[-1]}, or if they are right say "
        "table.check_units=false"
    )


def _gaps(log_loss_N: Array, cell_N: NDArray[np.intp], word_N: NDArray[np.intp]) -> Iterator[float]:
    """Of each cell with several words, the spread between the means of its words."""
    for cell in np.flatnonzero(np.bincount(cell_N) > 1):
        rows = np.flatnonzero(cell_N == cell)
        means = [log_loss_N[rows[word_N[rows] == word]].mean() for word in np.unique(word_N[rows])]
        if len(means) > 1:
            yield float(max(means) - min(means))


def parted_residuals(points: Points, residual_N: Array) -> Iterator[str]:
    """Columns whose words explain much of what a law misses, each with its words' means."""
    for name, column in points.words.items():
        words, word_N = np.unique(np.asarray(column), return_inverse=True)
        within, count_W, mean_W = pooled(residual_N, word_N)
        total = float(((residual_N - residual_N.mean()) ** 2).sum())
        degrees = len(residual_N) - len(words)
        if count_W.min() < FEWEST_RUNS or within >= (1 - SHARE) * total:
            continue
        between = (total - within) / (len(words) - 1)
        if within == 0 or fdtrc(len(words) - 1, degrees, between / (within / degrees)) < CHANCE:
            shown = ", ".join(
                f"{word} {mean:+.2%} ({count})"
                for word, mean, count in zip(words, mean_W, count_W, strict=True)
            )
            yield f"{name}: {shown}"
