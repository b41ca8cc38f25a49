"""Cells at the edge of what they tried: which side, and whether a law contradicts them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from analysis.bowl import Bowl
from analysis.edge_cells import contradicting, edge_warnings
from analysis.hyperparam_laws import against_compute, against_size_and_tokens
from analysis.hyperparams import CellOptimum, cell_optima
from analysis.optima_study import OptimaStudy, make_optima_study
from analysis.optima_summary import summarise_optima
from analysis.points import Points, make_points
from analysis.settings import FitSettings

CELLS = list(itertools.product([1e6, 4e6, 1.6e7], [2e7, 8e7, 3.2e8]))
QUICK = FitSettings(replicates=100, starts=200)


def rate_law(size: float, tokens: float) -> float:
    return 0.5 * size**-0.4 * tokens**0.1


def swept(
    shifts: dict[int, float],
    *,
    cells: Sequence[tuple[float, float]] = CELLS,
    batches: bool = False,
) -> Points:
    """Five rates around the law's, a factor of two apart; the optimum of cell i is times its shift.
    3 % to either side of the law, so that it has a scatter."""
    rows = []
    for number, (size, tokens) in enumerate(cells):
        at = rate_law(size, tokens)
        best = at * shifts.get(number, 1.03 if number % 2 else 1 / 1.03)
        for step, batch in itertools.product(range(-2, 3), (2e4, 4e4, 8e4) if batches else (4e4,)):
            off, off_batch = np.log(at * 2.0**step / best), np.log(batch / 4e4)
            loss = 3.0 * np.exp(0.02 * off**2 + 0.01 * off_batch**2)
            rows.append((size, tokens, at * 2.0**step, batch, loss))
    size, tokens, rate, batch, loss = np.array(rows).T
    return make_points(
        size_variable="flops_per_token",
        label=[str(i) for i in range(len(rows))],
        size=size,
        tokens=tokens,
        loss=loss,
        flops=size * tokens,
        extra={"peak_lr": tuple(rate.tolist()), "batch_tokens": tuple(batch.tolist())},
    )


@pytest.mark.parametrize("batches", [False, True])
def test_on_which_side_of_its_grid_a_cell_is_lowest(batches: bool) -> None:
    optima = {
        (o.size, o.tokens): o
        for o in cell_optima(swept({0: 6.0, 4: 1 / 6, 8: 3.9}, batches=batches))
    }
    sides = [optima[place].beyond("peak_lr") for place in CELLS]
    assert sides == [1, 0, 0, 0, -1, 0, 0, 0, 0]
    assert {o.beyond("batch_tokens") for o in optima.values()} == {0}
    assert optima[CELLS[0]].peak_lr == pytest.approx(4 * rate_law(*CELLS[0]))
    assert optima[CELLS[4]].peak_lr == pytest.approx(rate_law(*CELLS[4]) / 4)
    # Without its bowl nothing tells the side.
    assert replace(optima[CELLS[0]], bowl=None).beyond("peak_lr") == 0
    # Of a bowl that opens downward the flat point is the highest.
    assert replace(optima[CELLS[0]], status="opens_downward").beyond("peak_lr") == 0


def at_edge(size: float, tokens: float, edge: float, side: int) -> CellOptimum:
    """Lowest a factor of e beyond its edge."""
    center = float(np.log(edge)) + side
    return CellOptimum(
        size=size, tokens=tokens, flops=size * tokens, peak_lr=edge, batch_tokens=1.0, loss=2.0,
        status="at_edge", lr_range=(0.0, 1.0), num_runs=5,
        bowl=Bowl(("peak_lr",), (center,), 0.5, np.zeros(1), np.eye(1)),
    )  # fmt: skip


def measured(values: np.ndarray) -> list[CellOptimum]:
    return [
        CellOptimum(
            size=size, tokens=tokens, flops=size * tokens, peak_lr=float(value), batch_tokens=1.0,
            loss=2.0, status="inside", lr_range=(0.0, 1.0), num_runs=5,
        )
        for (size, tokens), value in zip(CELLS, values, strict=True)
    ]  # fmt: skip


def test_a_law_is_contradicted_where_its_interval_ends_before_the_edge() -> None:
    """Residuals (1, -2, 1) times itself are orthogonal to a plane, s² is their squares over six;
    at the middle of nine cells a new one's interval is 1.943180·s·sqrt(1 + 1/9) either way."""
    left = 0.01 * np.array([1, -2, 1, -2, 4, -2, 1, -2, 1.0])
    law = against_size_and_tokens(
        measured(np.array([rate_law(*place) for place in CELLS]) * np.exp(left)), "peak_lr"
    )
    half = 1.943180 * float((left**2).sum() / 6) ** 0.5 * (10 / 9) ** 0.5
    middle = CELLS[4]
    for side, share in itertools.product((1, -1), (-1.01, -0.99, 0.99, 1.01)):
        cell = at_edge(*middle, rate_law(*middle) * float(np.exp(share * half)), side)
        found = contradicting([cell], "peak_lr", lambda cell: law.predict(cell.size, cell.tokens))
        # The optimum lies further up (down) than an edge that the interval does not reach.
        assert found == ([cell] if share * side > 1 else []), (side, share)


def test_a_true_law_is_seldom_contradicted_and_a_bent_one_mostly() -> None:
    """Nine cells of 10 % scatter, a tenth at their corner whose grid ends 10 % above the law. In a
    sixth of the draws its optimum lies beyond; where it is e times higher than the law, always."""
    rng = np.random.default_rng(0)
    means = np.log([rate_law(*place) for place in CELLS])
    corner = float(np.log(rate_law(*CELLS[-1])))
    count, edged = {0.0: 0, 1.0: 0}, 0
    for _ in range(200):
        optima = measured(np.exp(means + 0.1 * rng.standard_normal(len(CELLS))))
        law = against_size_and_tokens(optima, "peak_lr")
        noise = 0.1 * rng.standard_normal()
        for bend in count:
            best = corner + bend + noise
            # The bent cell's grid is as much wider as it takes to end halfway to its optimum.
            edge = corner + 0.1 + bend / 2
            if best <= edge:
                continue
            edged += bend == 0
            cell = at_edge(*CELLS[-1], float(np.exp(edge)), 1)
            count[bend] += len(
                contradicting([cell], "peak_lr", lambda o, law=law: law.predict(o.size, o.tokens))
            )
    assert 15 <= edged <= 50
    assert count[0.0] <= 10
    assert count[1.0] >= 190


def studied(points: Points) -> OptimaStudy:
    return make_optima_study("rates.csv", "learning_rate", points, (), QUICK)


def test_a_fit_names_the_cell_that_contradicts_its_law() -> None:
    bent = studied(swept({6: 6.0}))
    (warning,) = [w for w in bent.warnings if "contradicted" in w]
    assert warning.startswith("peak_lr against N, D: contradicted by 1 of 1 cell at the edge")
    edge = 4 * rate_law(*CELLS[6])
    assert f"at size 1.6e+07 and 2e+07 tokens the best lies at {edge:.3g} or above" in warning
    assert bent.planes["peak_lr against N, D"].num_points == 8
    screen = summarise_optima(bent)
    assert "8 optima; left out 1 at the edge" in " ".join(screen.split())
    assert OptimaStudy.from_json(bent.to_json()).warnings == bent.warnings
    whole = studied(swept({}))
    assert not any("contradicted" in w for w in whole.warnings)
    assert "left out" not in summarise_optima(whole)


def test_cells_on_one_path_hold_the_law_of_compute_to_their_edges() -> None:
    """Tokens a power of the size: no law of both, so the one of compute is asked."""
    path = swept({4: 1 / 6}, cells=[(1e6 * 4.0**step, 2e7 * 4.0**step) for step in range(5)])
    study = studied(path)
    assert not study.planes
    (warning,) = study.warnings
    assert warning.startswith("peak_lr against C: contradicted by 1 of 1 cell at the edge")
    assert "or below, the law says" in warning


def test_where_size_and_tokens_are_told_apart_the_law_of_both_is_asked() -> None:
    """A cell of the middle one's compute, twice its rate: a law of compute through the diagonal
    knows nothing of it, the law of both puts it there."""
    optima = measured(
        np.array([rate_law(*place) for place in CELLS]) * np.tile([1.01, 1 / 1.01, 1], 3)
    )
    diagonal = [optima[0], optima[4], optima[8]]
    place = 1e6, 3.2e8
    assert rate_law(*place) == pytest.approx(2 * rate_law(4e6, 8e7))
    cell = at_edge(*place, 0.99 * rate_law(*place), 1)
    fits = {"peak_lr against C": against_compute(diagonal, "peak_lr", QUICK)}
    planes = {"peak_lr against N, D": against_size_and_tokens(optima, "peak_lr")}
    assert edge_warnings([cell], fits, planes, 0.9) == ()
    (warning,) = edge_warnings([cell], fits, {}, 0.9)
    assert warning.startswith("peak_lr against C: contradicted by 1 of 1 cell")
