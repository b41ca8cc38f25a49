"""Sizes times budgets: which rungs a sweep climbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from model.config import require, require_positive


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Rungs geometric in flops_per_token, or a list of widths; budgets geometric, or a list."""

    sizes: int | None = field(default=None, metadata={"list_in": "widths"})
    """Number of rungs, each ``size_ratio`` above the one before; or ``widths``."""
    smallest_flops_per_token: float | None = None
    """M of the first rung."""
    size_ratio: float | None = None
    """M of each rung over the one before."""
    widths: tuple[int, ...] | None = None
    """In place of ``sizes``: the width of each rung, rising; the recipe derives the rest. An axis
    that changes the recipe keeps the M of these rungs, so variants are compared at equal M."""
    budgets: int | None = field(default=None, metadata={"list_in": "tokens"})
    """Number of token budgets per rung, each ``budget_ratio`` above the one before; or
    ``tokens``."""
    smallest_tokens: int | None = None
    budget_ratio: float | None = None
    """Each budget over the one before."""
    tokens: tuple[int, ...] | None = None
    """In place of ``budgets``: the tokens of each budget, rising; the recipe rounds them to whole
    batches."""
    seed: int
    """Seed of the grid's runs."""
    noise_seeds: tuple[int, ...]
    """Further seeds of the noise cell."""
    noise_of: Literal["baseline", "every_variant"] = "baseline"
    """Whose noise cell has them: that of the axes' first values alone, or each combination's, so
    that any of them has a noise of its own and can be promoted."""
    noise_size: int
    """Rung of the noise cell, from 0."""
    noise_budget: int
    """Budget of the noise cell, from 0."""

    def __post_init__(self) -> None:
        self._require_steps("sizes", "smallest_flops_per_token", "size_ratio", "widths")
        self._require_steps("budgets", "smallest_tokens", "budget_ratio", "tokens")
        for name, value, of, count in (
            ("noise_size", self.noise_size, "sizes", self.num_sizes),
            ("noise_budget", self.noise_budget, "budgets", self.num_budgets),
        ):
            require(
                not self.noise_seeds or 0 <= value < count,
                f"{name} ({value}) counts from 0, and the number of {of} is {count}: at most "
                f"{count - 1}; or noise_seeds=[] for no repeated cell",
            )
        require(
            self.seed not in self.noise_seeds
            and len(set(self.noise_seeds)) == len(self.noise_seeds),
            f"noise_seeds {list(self.noise_seeds)} must differ from each other and from seed "
            f"({self.seed}): equal seeds measure no noise. Where seeds are an axis: noise_seeds=[]",
        )

    def _require_steps(self, count: str, first: str, ratio: str, listed: str) -> None:
        """Either a count with its first value and ratio, or a list; a list leaves those idle."""
        values = getattr(self, listed)
        if values is not None:
            number = getattr(self, count)
            require(
                number is None,
                f"{count} ({number}) and {listed} ({list(values)}) are both given; "
                f"ladder.{count}=null for the list, ladder.{listed}=null for the count",
            )
            _require_rising(listed, values)
            return
        given = {name: getattr(self, name) for name in (count, first, ratio)}
        for name, value in given.items():
            require(
                value is not None,
                f"{name} is missing: a ladder has {count}, {first} and {ratio}, or {listed}",
            )
        require_positive(**{count: given[count], first: given[first]})
        require(given[ratio] > 1, f"{ratio} must be above 1, got {given[ratio]}")

    @property
    def num_sizes(self) -> int:
        """Rungs, by count or by list."""
        return (self.sizes or 0) if self.widths is None else len(self.widths)

    @property
    def num_budgets(self) -> int:
        """Budgets of a rung, by count or by list."""
        return (self.budgets or 0) if self.tokens is None else len(self.tokens)

    def sizes_by(self, flops_of_width: Callable[[int], float]) -> tuple[float, ...]:
        """Target M of each rung; ``flops_of_width`` is the recipe's M at a width."""
        if self.widths is not None:
            return tuple(flops_of_width(width) for width in self.widths)
        return _geometric(self.sizes, self.smallest_flops_per_token, self.size_ratio)

    def tokens_at(self, budget: int) -> int:
        """Tokens of a budget, from 0."""
        if self.tokens is not None:
            return self.tokens[budget]
        return round(_geometric(self.budgets, self.smallest_tokens, self.budget_ratio)[budget])


def _geometric(count: int | None, first: float | None, ratio: float | None) -> tuple[float, ...]:
    """Without a list all three are there: the ladder was refused otherwise."""
    if count is None or first is None or ratio is None:
        return ()
    return tuple(first * ratio**step for step in range(count))


def _require_rising(name: str, values: Sequence[int]) -> None:
    require(len(values) > 0, f"{name}: give it at least one value, the list is empty")
    require_positive(**{name: min(values)})
    for before, after in pairwise(values):
        require(after > before, f"{name} must rise: {after} follows {before} in {list(values)}")


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


def grid_cells(ladder: LadderConfig, sizes: Sequence[float]) -> Iterator[Cell]:
    """Every size at every budget, smallest first; ``sizes`` is the M of each rung."""
    for size in range(len(sizes)):
        for budget in range(ladder.num_budgets):
            yield _cell(ladder, sizes, size, budget, "grid", ladder.seed)


def noise_cells(ladder: LadderConfig, sizes: Sequence[float]) -> Iterator[Cell]:
    """The noise cell again with each further seed."""
    for seed in ladder.noise_seeds:
        yield _cell(ladder, sizes, ladder.noise_size, ladder.noise_budget, "noise", seed)


def _cell(
    ladder: LadderConfig,
    sizes: Sequence[float],
    size: int,
    budget: int,
    role: Literal["grid", "noise"],
    seed: int,
) -> Cell:
    return Cell(
        rung=f"r{size}",
        role=role,
        flops_per_token=sizes[size],
        tokens=ladder.tokens_at(budget),
        seed=seed,
    )
