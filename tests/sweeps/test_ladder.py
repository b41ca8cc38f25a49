"""The cells of a ladder, and the ladders that are refused."""

from dataclasses import replace

import pytest

from model.errors import ConfigError
from model.typed import build, to_plain
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


def no_width(width: int) -> float:
    raise AssertionError(f"asked for width {width}")


SIZES = LADDER.sizes_by(no_width)
LISTED = replace(LADDER, sizes=None, widths=(16, 48, 64), budgets=None, tokens=(1000, 3100))


def test_a_ladder_is_sizes_times_budgets_and_the_seeds_of_one_cell():
    cells = [(cell.rung, cell.flops_per_token, cell.tokens) for cell in grid_cells(LADDER, SIZES)]
    assert cells == [
        ("r0", 100, 1000),
        ("r0", 100, 3000),
        ("r1", 200, 1000),
        ("r1", 200, 3000),
        ("r2", 400, 1000),
        ("r2", 400, 3000),
    ]
    noise = list(noise_cells(LADDER, SIZES))
    assert [(c.role, c.rung, c.tokens, c.seed) for c in noise] == [
        ("noise", "r1", 3000, 1),
        ("noise", "r1", 3000, 2),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sizes": 0}, "sizes must be positive, got 0"),
        ({"size_ratio": 1.0}, "size_ratio must be above 1"),
        (
            {"noise_size": 3},
            r"noise_size \(3\) counts from 0, and the number of sizes is 3: at most 2",
        ),
        ({"noise_seeds": (0, 1)}, "equal seeds measure no noise"),
        ({"widths": (16, 32)}, r"sizes \(3\) and widths \(\[16, 32\]\) are both given"),
        ({"tokens": (9, 10)}, r"budgets \(2\) and tokens \(\[9, 10\]\) are both given"),
        ({"sizes": None}, "sizes is missing: a ladder has sizes, smallest_flops_per_token and"),
        ({"budget_ratio": None}, "budget_ratio is missing: .* and budget_ratio, or tokens"),
    ],
)
def test_a_ladder_that_cannot_be_climbed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LADDER, **change)


def test_the_place_of_a_noise_cell_that_is_not_asked_for_does_not_matter():
    assert replace(LADDER, budgets=1, noise_seeds=(), noise_budget=1).noise_seeds == ()


def test_a_listed_ladder_has_the_widths_and_tokens_that_are_written():
    sizes = LISTED.sizes_by(lambda width: 10.0 * width)
    cells = [(cell.rung, cell.flops_per_token, cell.tokens) for cell in grid_cells(LISTED, sizes)]
    assert cells == [
        ("r0", 160, 1000),
        ("r0", 160, 3100),
        ("r1", 480, 1000),
        ("r1", 480, 3100),
        ("r2", 640, 1000),
        ("r2", 640, 3100),
    ]
    assert [(c.rung, c.tokens, c.seed) for c in noise_cells(LISTED, sizes)] == [
        ("r1", 3100, 1),
        ("r1", 3100, 2),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": ()}, "widths: give it at least one value, the list is empty"),
        ({"widths": (0, 16)}, "widths must be positive, got 0"),
        ({"widths": (16, 32, 32)}, r"widths must rise: 32 follows 32 in \[16, 32, 32\]"),
        ({"tokens": (3000, 1000)}, r"tokens must rise: 1000 follows 3000 in \[3000, 1000\]"),
        ({"noise_size": 3}, r"noise_size \(3\) .* number of sizes is 3: at most 2"),
        ({"noise_budget": 2}, r"noise_budget \(2\) .* number of budgets is 2: at most 1"),
    ],
)
def test_a_list_that_cannot_be_climbed_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(LISTED, **change)


def test_a_ladder_written_before_there_were_lists_is_read():
    plain = to_plain(LADDER)
    del plain["widths"], plain["tokens"]
    assert build(LadderConfig, plain) == LADDER
