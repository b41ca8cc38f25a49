"""Ladders drawn from a known surface, and where the published sets lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from analysis.laws import LossSurface
from analysis.points import Points, make_points

BESIDE = Path(__file__).resolve().parents[3] / "shared/data"
PUBLISHED = Path(os.environ.get("WINDTUNNEL_PUBLISHED_SETS", BESIDE))

TRUTH = LossSurface(E=1.7, A=50.35, B=69.3, alpha=0.35, beta=0.37)
"""At the middle of the ladder below both terms are worth about 0.4 nats."""

LadderPoints = Callable[..., Points]


@pytest.fixture(scope="session")
def truth() -> LossSurface:
    return TRUTH


@pytest.fixture(scope="session")
def ladder_points() -> LadderPoints:
    """Sizes by budgets, each twice the one before, and further seeds of one cheap cell."""

    def draw(
        law: LossSurface = TRUTH,
        noise_sd: float = 0.0,
        seed: int = 0,
        sizes: int = 5,
        budgets: int = 4,
        seeds: int = 3,
    ) -> Points:
        size = np.repeat(1e6 * 2.0 ** np.arange(sizes), budgets)
        tokens = np.tile(2e6 * 2.0 ** np.arange(budgets), sizes)
        cheap = budgets + 1  # second rung, second budget
        size = np.concatenate([size, np.full(seeds, size[cheap])])
        tokens = np.concatenate([tokens, np.full(seeds, tokens[cheap])])
        noise = np.random.default_rng(seed).standard_normal(len(size))
        loss = law(size, tokens) * np.exp(noise_sd * noise)
        return make_points(
            size_variable="flops_per_token",
            label=[f"run-{index}" for index in range(len(size))],
            size=size,
            tokens=tokens,
            loss=loss,
            flops=law.flops_per_size_token * size * tokens,
        )

    return draw


@pytest.fixture
def published() -> Path:
    """The folder of published sets beside the checkout."""
    if not PUBLISHED.exists():
        pytest.skip(f"the published sets are not at {PUBLISHED}")
    return PUBLISHED
