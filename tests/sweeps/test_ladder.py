"""The cells of a ladder, and the ladders that are refused."""

from dataclasses import replace

import pytest

from model.errors import ConfigError
from sweeps.ladder import LadderConfig, grid_cells, noise_cells

LADDER = LadderConfig(
    sizes=3,
    smallest_flops_per_token=100.0,
    size_ratio=2.0,
    budgets=2,
    smallest_tokens=1000,
    budget_ratio=3.0,
    seed=0,
    noise_seeds=(1, 2),
    noise_size=1,
    noise_budget=1,
)


def test_a_ladder_is_sizes_times_budgets_and_the_seeds_of_one_cell():
    cells = [(cell.rung, cell.flops_per_token, cell.tokens) for cell in grid_cells(LADDER)]
    assert cells == [
        ("r0", 100, 1000),
        ("r0", 100, 3000),
        ("r1", 200, 1000),
        ("r1", 200, 3000),
        ("r2", 400, 1000),
        ("r2", 400, 3000),
    ]
    noise = list(noise_cells(LADDER))
    assert [(c.role, c.rung, c.tokens, c.seed) for c in noise] == [
        ("noise", "r1", 3000, 1),
        ("noise", "r1", 3000, 2),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": 0}, "sizes must be positive, got 0"),
        ({"size_ratio": 1.0}, "size_ratio must be above 1"),
        ({"noise_size": 3}, r"noise_size \(3\) counts from 0, and sizes is 3: at most 2"),
        ({"noise_seeds": (0, 1)}, "equal seeds measure no noise"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LADDER, **change)


def test_the_place_of_a_noise_cell_that_is_not_asked_for_does_not_matter():
    assert replace(LADDER, budgets=1, noise_seeds=(), noise_budget=1).noise_seeds == ()
