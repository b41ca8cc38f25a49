"""`windtunnel fit law=learning_rate` of a table: laws of learning rate and batch, and forecasts."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from analysis.drift import GROWTH
from analysis.hyperparam_laws import FORM_RATE
from analysis.optima_study import OptimaStudy
from windtunnel import cli

Capture = pytest.CaptureFixture[str]
SEQUENCE = 100
SIZES, TOKENS = (1e7, 2e7, 4e7), (1e9, 2e9, 4e9)


def best_rate(size: float, tokens: float) -> float:
    return 40 * size**-0.6 * tokens**0.1


def best_batch(size: float, tokens: float) -> float:
    return 0.05 * tokens**0.6


def table(path: Path, cells: list[tuple[float, float]], *, batches: bool = True) -> Path:
    """Five or twenty-five runs a cell around its best learning rate and batch, in sequences."""
    rng = np.random.default_rng(0)
    steps = 2.0 ** np.arange(-2, 3)
    lines = ["size,tokens,lr,sequences,loss"]
    for size, tokens in cells:
        scatter = np.exp(0.03 * rng.standard_normal(2))
        for x, y in itertools.product(steps, steps if batches else [1.0]):
            height = 0.02 * np.log(x / scatter[0]) ** 2 + 0.01 * np.log(y / scatter[1]) ** 2
            loss = (1.5 + 40 * size**-0.3 + 90 * tokens**-0.3) * np.exp(height)
            rate, batch = x * best_rate(size, tokens), y * best_batch(size, tokens) / SEQUENCE
            lines.append(f"{size:.0f},{tokens:.0f},{rate:.6g},{batch:.6g},{loss:.9f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def fit(path: Path, *words: str) -> int:
    return cli.main(
        [
            "fit", f"records={path}", f"root={path.parent}", "law=learning_rate",
            "columns.params=size", "columns.tokens=tokens", "columns.loss=loss",
            "variables.peak_lr=lr", "fit.replicates=100", "fit.starts=300", *words,
        ]
    )  # fmt: skip


BATCH = ("variables.batch_tokens=sequences", f"table.variables_unit.batch_tokens={SEQUENCE}")


def test_a_forecast_at_a_size_and_its_tokens(tmp_path: Path, capsys: Capture) -> None:
    path = table(tmp_path / "grid.csv", list(itertools.product(SIZES, TOKENS)))
    assert fit(path, *BATCH, "at.params=1e8", "at.tokens=1e10") == 0
    study = OptimaStudy.from_json((tmp_path / "fits/grid/fit.json").read_text())
    assert set(study.forecasts) == {"peak_lr against N, D", "batch_tokens against N, D"}
    for what, truth in (("peak_lr", best_rate), ("batch_tokens", best_batch)):
        forecast = study.forecasts[f"{what} against N, D"]
        assert forecast.contains(truth(1e8, 1e10))
        # 2.5 times the size and the tokens.
        form = FORM_RATE * float(np.hypot(*[np.log(2.5)] * 2)) ** GROWTH
        assert 1 < np.log(forecast.high / forecast.value) / form < 1.2
        assert forecast.extrapolation_ratio == pytest.approx(1e18 / 1.6e17)
    said = " ".join(capsys.readouterr().out.split())
    assert "forecast peak_lr against N, D: " in said
    assert "beyond the intervals hold what published sweeps were off by" in said
    assert "warning peak_lr against C: size and tokens act differently (exponents -0.6" in said
    # The tokens follow from size and compute.
    assert fit(path, *BATCH, "at.params=1e8", "at.flops=6e18") == 0
    again = OptimaStudy.from_json((tmp_path / "fits/grid/fit.json").read_text())
    assert again.forecasts["peak_lr against N, D"].value == pytest.approx(
        study.forecasts["peak_lr against N, D"].value, rel=1e-6
    )


def test_a_law_of_compute_forecasts_only_where_compute_is_enough(
    tmp_path: Path, capsys: Capture
) -> None:
    """With sizes and tokens crossed it is not; on one path nothing tells them apart."""
    grid = table(tmp_path / "grid.csv", list(itertools.product(SIZES, TOKENS)))
    assert fit(grid, "at.flops=1e19") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "forecast peak_lr" not in said
    assert "forecast with at.params and at.tokens" in said
    path = table(tmp_path / "path.csv", [(size, 20 * size) for size in (1e7, 2e7, 4e7, 8e7)])
    assert fit(path, "at.flops=1e18") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith(f"Optima of {path}: 100 points")
    assert "forecast peak_lr against C: " in said
    assert "no law peak_lr against N, D: " in said
    assert "warning" not in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["at.params=7e9"], "at.tokens: missing; law=learning_rate forecasts at a size and its"),
        (["at.tokens=7e9"], "at.params: missing; law=learning_rate forecasts at a size and its"),
        (["at.width=3"], "at.width: not a variable of law=learning_rate: size, tokens, flops"),
        (["at.flops=-1"], "at.flops must be positive, got -1"),
    ],
)
def test_places_that_say_too_little(
    words: list[str], message: str, tmp_path: Path, capsys: Capture
) -> None:
    path = table(tmp_path / "grid.csv", list(itertools.product(SIZES, TOKENS)), batches=False)
    assert fit(path, *words) == 2
    assert message in " ".join(capsys.readouterr().err.split())
