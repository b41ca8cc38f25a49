"""What a cell of several seeds weighs: as much as the mean of its runs is worth.

Of a run's log-loss about the law one part is new with each seed (sd sigma, measured by repeats) and
one belongs to the cell (sd tau, what the law misses it by). A cell's mean over k seeds has variance
tau² + sigma²/k, so beside a cell of one run, whose variance is tau² + sigma², it weighs
(tau² + sigma²) / (tau² + sigma²/k): k where the law misses nothing, 1 where it misses much. Each of
the cell's runs carries a k-th of that.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Weighting:
    """How repeated seeds counted in a fit; only where there were some."""

    seeds_sd: float
    """Sigma: log-loss of runs about their cell's mean."""
    misfit_sd: float
    """Tau: log-loss of the cells about the law beyond what seeds do; 0 where none is seen."""
    chance: float
    """Of so large a misfit where the law is right."""
    cells: int
    """Of one run or more."""
    most_seeds: int
    """Runs in the largest cell."""

    @property
    def even(self) -> bool:
        """Whether every run counts alike."""
        return self.misfit_sd == 0.0

    @property
    def seeds_share(self) -> float:
        """Of a run's variance about the law, what is new with each seed."""
        return 1.0 if self.even else self.seeds_sd**2 / (self.seeds_sd**2 + self.misfit_sd**2)

    def of_cell(self, seeds: int) -> float:
        """What a cell of so many seeds weighs, a single run being 1."""
        return 1.0 / (1 - self.seeds_share + self.seeds_share / seeds)
