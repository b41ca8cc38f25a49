"""Choices: profile intervals, the spread over defensible fits, laws compared by hold-out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from analysis.data_laws import OverTrainingLaw
from analysis.judging import LawScore, compare_laws, hold_out
from analysis.laws import LossSurface
from analysis.noise import noise_floor
from analysis.points import Points, make_points, take
from analysis.profile import profile_intervals
from analysis.results import FitError
from analysis.sensitivity import _over_training, _surface, examine_choices
from analysis.settings import FitSettings
from analysis.solving import solve
from model.errors import ConfigError

Draw = Callable[..., Points]
QUICK = FitSettings(replicates=100, starts=300)


def solved_with(points: Points, settings: FitSettings):  # type: ignore[no-untyped-def]
    variables = (points.array("size"), points.array("tokens"))
    return solve(LossSurface, variables, points.array("loss"), settings)


def test_profile_ends_where_the_objective_has_risen_by_the_critical_amount(
    ladder_points: Draw,
) -> None:
    """For squares: SSR(end)/SSR(best) - 1 = F/(n - p), checked with scipy's own fit of the rest."""
    from scipy.optimize import least_squares
    from scipy.stats import f as f_distribution

    points = ladder_points(noise_sd=0.003)
    settings = FitSettings(replicates=100, starts=300, loss="squares")
    solved = solved_with(points, settings)
    interval = profile_intervals(solved, points.array("loss"), 0.9)["alpha"]
    size, tokens = points.array("size") / 4e6, points.array("tokens") / 6e6
    log_loss = np.log(points.array("loss"))

    def residual(rest: np.ndarray, alpha: float) -> np.ndarray:
        E, A, B, beta = np.exp(rest[0]), np.exp(rest[1]), np.exp(rest[2]), rest[3]
        return np.asarray(log_loss - np.log(E + A * size**-alpha + B * tokens**-beta))

    count = len(points)
    assert interval.low < interval.value < interval.high
    rise = float(f_distribution.ppf(0.9, 1, count - 5)) / (count - 5)
    for end in (interval.low, interval.high):
        rest = least_squares(residual, [0.5, -1.0, -1.0, 0.37], args=(end,), xtol=1e-14, ftol=1e-14)
        assert 2 * rest.cost / (2 * solved.value) - 1 == pytest.approx(rise, rel=0.02)


def test_profile_of_a_robust_fit_is_near_that_of_squares(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.003)
    widths = []
    for loss in ("huber", "squares"):
        settings = FitSettings(replicates=100, starts=300, loss=loss)  # type: ignore[arg-type]
        found = profile_intervals(solved_with(points, settings), points.array("loss"), 0.9)
        assert set(found) == {"E", "alpha", "beta"}
        widths.append(found["beta"].width)
    assert widths[0] == pytest.approx(widths[1], rel=0.35)


def test_a_law_without_an_optimum_recommends_nothing_and_says_why(ladder_points: Draw) -> None:
    """Losses that fall with size alone: the best model is as large as it can be."""
    draws = ladder_points(noise_sd=0.0)
    size = draws.array("size")
    loss = 1.7 + 2.0 * (size / size.min()) ** -0.4
    points = replace(draws, loss=tuple(loss.tolist()))
    for choice in (
        _surface("in use", "in use", points, QUICK, 1e18),
        _over_training(points, QUICK, 1e18),
    ):
        assert (choice.tokens, choice.flops_per_token) == (None, None)
        assert "no optimum: a term of the" in choice.note
    few = _surface("points", "few", take(points, [0, 1, 2, 3, 4]), QUICK, 1e18)
    assert (few.group, few.note) == ("points", "5 points are too few")


def test_choices_agree_without_noise_and_differ_with_an_outlier(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.0)
    flops = 10 * max(points.flops)
    calm = examine_choices(points, QUICK, flops)
    surfaces = [c for c in calm.choices if c.group in ("in use", "loss", "points")]
    sizes = [c.flops_per_token for c in surfaces if c.flops_per_token is not None]
    assert max(sizes) / min(sizes) == pytest.approx(1.0, rel=1e-4)
    loss = points.array("loss")
    loss[12] *= 1.1
    bent = make_points(
        size_variable=points.size_variable, label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=loss, flops=points.array("flops"),
    )  # fmt: skip
    noisy = examine_choices(bent, QUICK, flops)
    by_name = {choice.name: choice for choice in noisy.choices}
    assert "without 1 outliers beyond 5 sd" in by_name
    assert noisy.spread > 1.3
    for choice in noisy.choices:
        if choice.tokens is not None and choice.flops_per_token is not None:
            assert choice.tokens * choice.flops_per_token == pytest.approx(flops)
        else:
            assert choice.note


def test_seeds_alone_say_what_the_noise_of_each_run_does(ladder_points: Draw) -> None:
    """Against the linear answer: sd = noise · sqrt(diag (J'J)^-1) for squares."""
    settings = FitSettings(replicates=1000, starts=300, loss="squares")
    points = ladder_points(noise_sd=0.002, seeds=60)
    found = examine_choices(points, settings, 1e15)
    solved = solved_with(points, settings)
    jacobian = solved.form.logsum.jacobian(solved.theta_P)
    noise = noise_floor(points)
    assert noise is not None
    sd = noise.sd * np.sqrt(np.diag(np.linalg.inv(jacobian.T @ jacobian)))
    beta = found.seeds["beta"]
    assert beta.width == pytest.approx(
        2 * 1.671 * sd[solved.form.parameters.index("beta")], rel=0.1
    )
    assert beta.contains(0.37)
    assert examine_choices(ladder_points(seeds=0), QUICK, 1e15).seeds == {}


def test_another_size_variable_is_a_choice(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.001)
    params = make_points(
        size_variable="active_params", label=points.label, size=points.array("size") ** 0.97,
        tokens=points.array("tokens"), loss=points.array("loss"), flops=points.array("flops"),
    )  # fmt: skip
    found = examine_choices(points, QUICK, 1e16, {"active_params": params})
    choice = found.choices[-1]
    assert (choice.group, choice.name) == ("size", "N = active_params")
    assert choice.tokens is not None


def equal_exponents() -> LossSurface:
    """What the over-training law describes exactly, with one parameter less."""
    return LossSurface(E=1.6, A=60.0, B=60.0, alpha=0.36, beta=0.36)


def test_the_right_law_with_fewer_parameters_is_picked(ladder_points: Draw) -> None:
    points = ladder_points(equal_exponents(), noise_sd=0.003, seed=2)
    found = compare_laws(points, ["hoffmann", "gadre", "compute"], QUICK)
    assert found.picked == "gadre"
    assert found.scores[0].error <= found.scores[-1].error
    assert found.scores[-1].name == "compute", "loss is no function of compute alone"
    again = hold_out(points, QUICK, OverTrainingLaw)
    score = next(s for s in found.scores if s.name == "gadre")
    assert score.errors == tuple(holdout.mean_abs_error for holdout in again)


def test_the_law_with_two_exponents_is_picked_where_they_differ(ladder_points: Draw) -> None:
    law = LossSurface(E=0.5, A=9.0, B=3000.0, alpha=0.15, beta=0.6)
    found = compare_laws(ladder_points(law, noise_sd=0.001), ["hoffmann", "gadre"], QUICK)
    assert found.picked == "hoffmann"


@pytest.mark.parametrize(("error", "picked"), [(0.0109, "gadre"), (0.0111, "hoffmann")])
def test_fewer_parameters_win_within_a_tenth_of_the_least_error(
    ladder_points: Draw, monkeypatch: pytest.MonkeyPatch, error: float, picked: str
) -> None:
    scores = {
        "hoffmann": LawScore(name="hoffmann", num_parameters=5, errors=(0.009, 0.011)),
        "gadre": LawScore(name="gadre", num_parameters=4, errors=(error,)),
        "compute": LawScore(name="compute", num_parameters=3, note="no budgets"),
    }
    monkeypatch.setattr("analysis.judging._score", lambda points, name, settings: scores[name])
    found = compare_laws(ladder_points(), list(scores), QUICK)
    assert found.picked == picked
    assert [score.name for score in found.scores] == ["hoffmann", "gadre", "compute"]


def test_laws_that_can_not_be_judged(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.001)
    with pytest.raises(ConfigError, match=r"no law .chinchilla.\. There are: hoffmann"):
        compare_laws(points, ["chinchilla"], QUICK)
    with pytest.raises(ConfigError, match=r"variables\.granularity=COLUMN"):
        compare_laws(points, ["krajewski"], QUICK)
    few = ladder_points(sizes=3, budgets=3, seeds=0)
    with pytest.raises(FitError, match="no law can be judged by hold-out"):
        compare_laws(few, ["hoffmann"], QUICK)
