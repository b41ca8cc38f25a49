"""The surface's choice of size and tokens: near the truth, honest where the truth is open."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.fitting import fit_surface
from analysis.laws import LossSurface
from analysis.points import Points
from analysis.results import Fit, FitStatus, FitWarning
from analysis.settings import FitSettings
from model.errors import ConfigError
from windtunnel.choices import Allocated, SizeRange, allocate
from windtunnel.targets import Aim

# Optimum at the middle of the ladder: M = 1e6 at C = 2.6e11, the middle cell's compute.
TRUTH = LossSurface(E=1.1, A=300.0, B=270.0, alpha=0.40, beta=0.40)
SIZES = [2.6e5 * 2.0**rung for rung in range(5)]
BUDGETS = [65536 * 2.0**budget for budget in range(5)]
LARGEST = SIZES[-1] * BUDGETS[-1]
SIZE_RANGE = SizeRange(open_ratio=4.0, least_share=0.25, most_share=0.75)
QUICK = FitSettings(starts=400, replicates=200)


def points(noise_sd: float, seed: int = 0) -> Points:
    rng = np.random.default_rng(seed)
    cells = [(size, tokens) for size in SIZES for tokens in BUDGETS]
    noise = np.exp(rng.normal(0, noise_sd, len(cells)))
    return Points(
        size_variable="flops_per_token",
        label=tuple(f"run {index}" for index in range(len(cells))),
        size=tuple(size for size, _ in cells),
        tokens=tuple(tokens for _, tokens in cells),
        loss=tuple(float(TRUTH(*cell)) * f for cell, f in zip(cells, noise.tolist(), strict=True)),
        flops=tuple(size * tokens for size, tokens in cells),
        cell=tuple(map(str, range(len(cells)))),
        budget=tuple(BUDGETS.index(tokens) for _, tokens in cells),
    )


@pytest.fixture(scope="module")
def exact() -> Fit:
    return fit_surface(points(1e-7), QUICK)


@pytest.fixture(scope="module")
def noisy() -> Fit:
    return fit_surface(points(0.02), QUICK)


def choose(fit: Fit, aim: Aim, size_range: SizeRange = SIZE_RANGE) -> Allocated:
    return allocate(fit, points(0.0), aim, size_range, 0.9)


def test_compute_is_spent_at_the_true_optimum(exact: Fit) -> None:
    found, best = choose(exact, Aim(train_flops=6 * LARGEST)), TRUTH.optimum(6 * LARGEST)
    assert found.note == ""
    assert found.flops_per_token == pytest.approx(best.size, rel=1e-4)
    assert found.optimum.tokens.value == pytest.approx(best.tokens, rel=1e-4)
    assert found.train_flops == 6 * LARGEST


def test_tokens_or_size_given_the_other_is_optimal_too(exact: Fit) -> None:
    """Whichever of C, M and D is given, the three land on one point of the true frontier."""
    best = TRUTH.optimum(20 * LARGEST)
    by_tokens = choose(exact, Aim(tokens=round(best.tokens)))
    by_size = choose(exact, Aim(flops_per_token=best.size))
    assert by_tokens.flops_per_token == pytest.approx(best.size, rel=1e-3)
    assert by_size.flops_per_token == best.size
    for found in (by_tokens, by_size):
        assert found.train_flops == pytest.approx(best.flops, rel=1e-3)
        assert found.optimum.size.value * found.optimum.tokens.value == pytest.approx(
            best.flops, rel=1e-3
        )


def test_nothing_near_the_choice_is_better(noisy: Fit) -> None:
    """On the fitted law itself, moving size against tokens at equal compute only adds loss."""
    open_wide = replace(SIZE_RANGE, open_ratio=1e9)
    fit = replace(noisy, warnings=())
    found = choose(fit, Aim(train_flops=6 * LARGEST), open_wide)
    size, flops, law = found.flops_per_token, found.train_flops, fit.law
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert law(size * factor, flops / size / factor) > law(size, flops / size)


def test_a_poorly_known_optimum_is_held_to_the_declared_range(noisy: Fit) -> None:
    growth = 1000.0
    found = choose(noisy, Aim(train_flops=growth * LARGEST), replace(SIZE_RANGE, open_ratio=1.01))
    low, high = SIZES[-1] * growth**0.25, SIZES[-1] * growth**0.75
    assert low < found.optimum.size.value < high
    assert found.flops_per_token == found.optimum.size.value
    assert "its interval spans a factor of" in found.note
    assert "the optimum lies inside it, and used" in found.note
    narrow = SizeRange(open_ratio=1.01, least_share=0.9, most_share=0.9)
    held = choose(noisy, Aim(train_flops=growth * LARGEST), narrow)
    assert held.flops_per_token == pytest.approx(SIZES[-1] * growth**0.9)
    assert "outside; the nearest end is used" in held.note
    assert (
        held.optimum.size.value == found.optimum.size.value
    )  # what the law itself wants stays on record


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_the_declared_range_is_one_point_however_it_is_asked_for(noisy: Fit, share: float) -> None:
    """M = M_largest·g^s and D = D_largest·g^(1-s), from C, from D and from M alike."""
    fixed = SizeRange(open_ratio=1.01, least_share=share, most_share=share)
    growth = 30.0
    size, tokens = SIZES[-1] * growth**share, BUDGETS[-1] * growth ** (1 - share)
    for aim in (
        Aim(train_flops=growth * LARGEST),
        Aim(tokens=round(tokens)),
        Aim(flops_per_token=size),
    ):
        found = choose(noisy, aim, fixed)
        assert found.flops_per_token == pytest.approx(size, rel=1e-4)
        assert found.train_flops == pytest.approx(growth * LARGEST, rel=1e-4)


def test_an_optimum_at_the_edge_is_poorly_known(exact: Fit) -> None:
    edge = FitWarning(status=FitStatus.EDGE_OPTIMUM.name, sentence="above every size tried")
    doubted = replace(exact, warnings=(edge,))
    narrow = replace(SIZE_RANGE, least_share=0.7)
    found = choose(doubted, Aim(train_flops=6 * LARGEST), narrow)
    assert found.flops_per_token == pytest.approx(SIZES[-1] * 6**0.7)
    assert "at the edge of the sizes tried" in found.note


@pytest.mark.parametrize("lost", ["A", "B"])
def test_draws_without_an_optimum_make_it_poorly_known(exact: Fit, lost: str) -> None:
    """A draw may lose one term: then bigger, or longer, is useless, and the optimum runs away."""
    replicates = np.array(exact.replicates)
    replicates[::5, exact.law.PARAMETERS.index(lost)] = 0.0
    fit = replace(exact, replicates=tuple(map(tuple, replicates.tolist())))
    found = choose(fit, Aim(train_flops=6 * LARGEST))
    assert "20% of the bootstrap's draws have none" in found.note


@pytest.mark.parametrize(
    "aim", [Aim(train_flops=1e15), Aim(tokens=10**7), Aim(flops_per_token=1e8)]
)
def test_a_fit_that_lost_a_term_is_refused(exact: Fit, aim: Aim) -> None:
    lost = replace(exact, law=replace(exact.law, A=0.0))
    with pytest.raises(ConfigError, match="the fit found A = 0"):
        choose(lost, aim)


def test_a_fit_of_another_size_is_refused(exact: Fit) -> None:
    other = replace(points(0.0), size_variable="total_params")
    with pytest.raises(ConfigError, match="the fit's size is total_params"):
        allocate(exact, other, Aim(train_flops=1e15), SIZE_RANGE, 0.9)


@pytest.mark.parametrize(("least", "most"), [(0.0, 0.5), (0.6, 0.4), (0.5, 1.0)])
def test_a_range_that_is_none_is_refused(least: float, most: float) -> None:
    with pytest.raises(ConfigError, match="least_share"):
        SizeRange(open_ratio=4, least_share=least, most_share=most)


def test_neither_axis_outruns_compute() -> None:
    """Where size buys nothing, a law that asks for a tiny model and endless tokens is held."""
    starved = LossSurface(E=0.0, A=8e4, B=5.8, alpha=1.14, beta=0.072)
    truth = points(1e-7)
    losses = tuple(float(starved(m, d)) for m, d in zip(truth.size, truth.tokens, strict=True))
    fit = replace(fit_surface(replace(truth, loss=losses), QUICK), warnings=())
    found = allocate(
        fit, truth, Aim(train_flops=6 * LARGEST), replace(SIZE_RANGE, open_ratio=1e9), 0.9
    )
    assert found.optimum.tokens.value > 20 * BUDGETS[-1]
    assert found.tokens_at(found.flops_per_token) <= 6 * BUDGETS[-1] * 1.001
    assert "times the largest tokens measured at 6 times the compute" in found.note


def test_a_next_rung_is_a_larger_model(exact: Fit) -> None:
    aim = Aim(train_flops=6 * LARGEST, least_size=3 * SIZES[-1])
    found = choose(exact, aim)
    assert found.flops_per_token == 3 * SIZES[-1]
    assert found.tokens_at(found.flops_per_token) == pytest.approx(2 * BUDGETS[-1])
    assert "a next rung is a model of at least 1.25e+07" in found.note
    assert choose(exact, replace(aim, least_size=1.0)).note == ""
