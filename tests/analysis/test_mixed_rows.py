"""Runs of several kinds in one table: refused where repeats show it, named where residuals do."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.mixed import parted_residuals
from analysis.points import make_points
from analysis.results import FitStatus
from analysis.settings import FitSettings
from analysis.table_options import Columns, TableRules
from analysis.tables import points_from_table
from model.errors import ConfigError

LAW = LossSurface(E=1.7, A=400.0, B=410.0, alpha=0.34, beta=0.28)
COLUMNS = Columns(params="N", tokens="D", loss="L")
QUICK = FitSettings(starts=400, replicates=100)


def table(path: Path, factors: dict[str, float], *, shared: bool, noise: float = 0.003) -> Path:
    """A grid of runs of each dataset; ``shared``: of the same sizes and tokens."""
    rng = np.random.default_rng(0)
    rows = []
    for shift, (dataset, factor) in enumerate(factors.items()):
        for size in np.geomspace(1e7, 1e9, 6) * (1 if shared else 1 + shift / 7):
            for tokens in np.geomspace(1e9, 1e11, 4):
                loss = factor * LAW(size, tokens) * np.exp(noise * rng.standard_normal())
                name = f"{dataset}-{len(rows)}"
                rows.append({"N": size, "D": tokens, "L": loss, "set": dataset, "name": name})
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def statuses(path: Path, rules: TableRules | None = None) -> dict[str, str]:
    points, _ = points_from_table(path, COLUMNS, rules)
    return {warning.status: warning.sentence for warning in fit_surface(points, QUICK).warnings}


def test_two_measurements_of_each_cell_are_no_two_seeds(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"c4": 1.0, "pile": 0.7}, shared=True)
    with pytest.raises(
        ConfigError,
        match=r"in 24 cells .* differ in 'set' and their losses in the median by 4[23]%: .* "
        r"Rows by set: c4 24, pile 24. Keep one, e.g. filter.set=pile",
    ):
        points_from_table(path, COLUMNS)
    points, excluded = points_from_table(path, COLUMNS, TableRules(filter={"set": "pile"}))
    assert (len(points), len(excluded), points.words) == (24, 24, {})
    assert len(points_from_table(path, COLUMNS, TableRules(check_units=False))[0]) == 48


def test_words_that_change_next_to_nothing_are_a_warning(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"c4": 1.0, "pile": 1.01}, shared=True)
    assert "differ in set too" in statuses(path)[FitStatus.MIXED_REPEATS.name]


def test_residuals_that_a_column_parts_are_named_with_it(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"c4": 1.0, "pile": 0.7}, shared=False)
    said = statuses(path)[FitStatus.MIXED_GROUPS.name]
    assert said.startswith("mean residuals by set: c4 +"), said
    assert "pile -" in said
    assert (
        statuses(path, TableRules(filter={"set": "c4"}))
        .keys()
        .isdisjoint({FitStatus.MIXED_GROUPS.name, FitStatus.MIXED_REPEATS.name})
    )


def test_a_column_that_parts_nothing_is_not_named(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"c4": 1.0, "again": 1.0}, shared=False)
    assert FitStatus.MIXED_GROUPS.name not in statuses(path)


def test_words_are_kept_with_the_points_and_names_of_runs_are_not(tmp_path: Path) -> None:
    path = table(tmp_path / "a.csv", {"c4": 1.0, "again": 1.0}, shared=False)
    points, _ = points_from_table(path, COLUMNS)
    assert points.words == {"set": ("c4",) * 24 + ("again",) * 24}


@pytest.mark.parametrize(("share", "is_named"), [(0.35, True), (0.25, False)])
def test_a_column_is_named_from_three_tenths_of_the_squares_on(
    share: float, is_named: bool
) -> None:
    """Two words, 100 runs each: means at -m and m, within them one standard deviation of 1."""
    apart = np.sqrt(share / (1 - share))
    within = np.tile([-1.0, 1.0], 100)
    residual = 0.01 * (within + np.repeat([-apart, apart], 100))
    points = make_points(
        size_variable="N",
        label=[str(row) for row in range(200)],
        size=np.ones(200),
        tokens=np.ones(200),
        loss=np.exp(residual),
        flops=np.ones(200),
    )
    points = replace(points, words={"set": ("c4",) * 100 + ("pile",) * 100})
    said = [f"set: c4 {-apart:+.2f}% (100), pile {apart:+.2f}% (100)"] if is_named else []
    assert list(parted_residuals(points, residual)) == said
