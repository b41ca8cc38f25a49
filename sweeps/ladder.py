"""Sizes times budgets: which rungs a sweep climbs."""

from __future__ import annotations

from dataclasses import dataclass


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
