"""Sizes times budgets: which rungs a sweep climbs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from model.config import require, require_positive


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Rungs geometric in flops_per_token, budgets geometric in tokens."""

    sizes: int
    """Number of rungs."""
    smallest_flops_per_token: float
    """M of the first rung."""
    size_ratio: float
    """M of each rung over the one before."""
    budgets: int
    """Token budgets per rung."""
    smallest_tokens: int
    budget_ratio: float
    """Each budget over the one before."""
    seed: int
    """Seed of the grid's runs."""
    noise_seeds: tuple[int, ...]
    """Further seeds of the noise cell."""
    noise_size: int
    """Rung of the noise cell, from 0."""
    noise_budget: int
    """Budget of the noise cell, from 0."""

    def __post_init__(self) -> None:
        require_positive(
            sizes=self.sizes,
            smallest_flops_per_token=self.smallest_flops_per_token,
            budgets=self.budgets,
            smallest_tokens=self.smallest_tokens,
        )
        for name in ("size_ratio", "budget_ratio"):
            value = getattr(self, name)
            require(value > 1, f"{name} must be above 1, got {value}")
        for name, value, of, count in (
            ("noise_size", self.noise_size, "sizes", self.sizes),
            ("noise_budget", self.noise_budget, "budgets", self.budgets),
        ):
            require(
                not self.noise_seeds or 0 <= value < count,
                f"{name} ({value}) counts from 0, and {of} is {count}: at most {count - 1}; or "
                "noise_seeds=[] for no repeated cell",
            )
        require(
            self.seed not in self.noise_seeds
            and len(set(self.noise_seeds)) == len(self.noise_seeds),
            f"noise_seeds {list(self.noise_seeds)} must differ from each other and from seed "
            f"({self.seed}): equal seeds measure no noise. Where seeds are an axis: noise_seeds=[]",
        )

    def tokens_at(self, budget: int) -> int:
        """Tokens of a budget, from 0."""
        return round(self.smallest_tokens * self.budget_ratio**budget)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One place of the ladder: a target size, a token budget and a seed."""

    rung: str
    role: Literal["grid", "noise"]
    flops_per_token: float
    """Target M; the recipe's shape comes as near as its widths allow."""
    tokens: int
    """Target D; the recipe rounds it to whole batches."""
    seed: int


def grid_cells(ladder: LadderConfig) -> Iterator[Cell]:
    """Every size at every budget, smallest first."""
    for size in range(ladder.sizes):
        for budget in range(ladder.budgets):
            yield _cell(ladder, size, budget, "grid", ladder.seed)


def noise_cells(ladder: LadderConfig) -> Iterator[Cell]:
    """The noise cell again with each further seed."""
    for seed in ladder.noise_seeds:
        yield _cell(ladder, ladder.noise_size, ladder.noise_budget, "noise", seed)


def _cell(
    ladder: LadderConfig, size: int, budget: int, role: Literal["grid", "noise"], seed: int
) -> Cell:
    return Cell(
        rung=f"r{size}",
        role=role,
        flops_per_token=ladder.smallest_flops_per_token * ladder.size_ratio**size,
        tokens=ladder.tokens_at(budget),
        seed=seed,
    )
