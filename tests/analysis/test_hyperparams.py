"""Learning rate and batch: bowls of known minimum, edges and maxima named, laws recovered."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from analysis.bowl import FAINTEST, FEWEST, fit_bowl, nearness
from analysis.hyperparam_laws import FORM_RATE, against_compute, against_size_and_tokens
from analysis.hyperparams import CellOptimum, cell_optima
from analysis.points import Points, make_points
from analysis.results import FitError
from analysis.settings import FitSettings
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=200)
CELLS = list(itertools.product([1e6, 4e6, 1.6e7], [2e7, 8e7, 3.2e8]))
FACTORS = 2.0 ** np.arange(-2, 3)


def lr_law(size: float, tokens: float) -> float:
    return 0.5 * size**-0.2 * tokens**-0.05


def batch_law(size: float, tokens: float) -> float:
    return 0.2 * tokens**0.5


def swept(
    *, batches: bool = True, shift: float = 1.0, sign: float = 1.0, noise_sd: float = 0.0
) -> Points:
    """Around each cell's optimum (times ``shift``) a grid of learning rates and batches."""
    rng = np.random.default_rng(0)
    rows = []
    for size, tokens in CELLS:
        for lr_factor, batch_factor in itertools.product(FACTORS, FACTORS if batches else [1.0]):
            lr = lr_law(size, tokens) * lr_factor * shift
            batch = batch_law(size, tokens) * batch_factor
            off_lr, off_batch = np.log(lr_factor * shift), np.log(batch_factor)
            bowl = 0.02 * off_lr**2 + 0.01 * off_batch**2 - 0.008 * off_lr * off_batch
            loss = (2 + 3 * tokens**-0.05) * np.exp(sign * bowl + noise_sd * rng.standard_normal())
            rows.append((size, tokens, lr, batch, loss))
    size, tokens, lr, batch, loss = np.array(rows).T
    return make_points(
        size_variable="flops_per_token",
        label=[str(i) for i in range(len(rows))],
        size=size,
        tokens=tokens,
        loss=loss,
        flops=size * tokens,
        extra={"peak_lr": tuple(lr.tolist()), "batch_tokens": tuple(batch.tolist())},
    )


def test_minima_of_bowls_in_two_settings() -> None:
    optima = cell_optima(swept())
    assert len(optima) == 9
    for optimum in optima:
        assert (optimum.status, optimum.num_runs) == ("inside", 25)
        assert optimum.peak_lr == pytest.approx(lr_law(optimum.size, optimum.tokens), rel=1e-6)
        assert optimum.batch_tokens == pytest.approx(
            batch_law(optimum.size, optimum.tokens), rel=1e-6
        )
        assert optimum.loss == pytest.approx(2 + 3 * optimum.tokens**-0.05, rel=1e-6)
        low, high = optimum.lr_range
        assert low < optimum.peak_lr < high


def test_a_budget_in_whole_batches_is_one_cell() -> None:
    """Five batches leave five token counts a fraction of a percent apart."""
    points = swept()
    batch, tokens = np.array(points.extra["batch_tokens"]), points.array("tokens")
    whole = np.ceil(tokens / batch) * batch
    assert len(set(whole.tolist())) > 9
    rounded = replace(points, tokens=tuple(whole.tolist()), flops=tuple(points.size * whole))
    optima = cell_optima(rounded)
    assert [(o.status, o.num_runs) for o in optima] == [("inside", 25)] * 9
    law = against_size_and_tokens(optima, "batch_tokens")
    assert law.token_exponent.value == pytest.approx(0.5, abs=0.01)


def test_a_batch_that_was_not_varied_is_no_optimum() -> None:
    alone = cell_optima(swept(batches=False))
    assert {optimum.varied for optimum in alone} == {("peak_lr",)}
    with pytest.raises(FitError, match=r"0 of 9 cells .* of one value"):
        against_compute(alone, "batch_tokens", QUICK)
    both = (*cell_optima(swept()), *alone)
    assert against_compute(both, "batch_tokens", QUICK).num_points == 9
    assert against_compute(both, "peak_lr", QUICK).num_points == 18


def test_near_optimal_learning_rates_lose_a_quarter_percent() -> None:
    optimum = cell_optima(swept(batches=False))[0]
    off = np.log(optimum.lr_range[1] / optimum.peak_lr)
    assert np.exp(0.02 * off**2) == pytest.approx(1.0025, rel=1e-6)


def test_laws_of_the_optima_come_back() -> None:
    optima = cell_optima(swept(noise_sd=0.0005))
    lr = against_size_and_tokens(optima, "peak_lr")
    assert lr.size_exponent.contains(-0.2)
    assert lr.token_exponent.contains(-0.05)
    assert lr(4e6, 8e7) == pytest.approx(lr_law(4e6, 8e7), rel=0.05)
    batch = against_size_and_tokens(optima, "batch_tokens")
    assert batch.token_exponent.value == pytest.approx(0.5, abs=0.05)
    fit = against_compute(optima, "peak_lr", QUICK)
    assert fit.coefficients["b"].value < 0
    assert fit.num_points == 9


def test_intervals_of_a_plane_are_the_textbook_ones() -> None:
    """Nine cells, sizes and token counts four times apart: x is -log 4, 0 or log 4. What is left
    over is orthogonal to the plane, so its exponents stay and s² is its squares over 9 - 3."""
    step = np.log(4.0)
    left = 0.01 * np.array([1, -2, 1, -2, 4, -2, 1, -2, 1.0])  # (1, -2, 1) times itself
    cells = [
        CellOptimum(
            size=size,
            tokens=tokens,
            flops=size * tokens,
            peak_lr=lr_law(size, tokens) * float(np.exp(off)),
            batch_tokens=1.0,
            loss=2.0,
            status="inside",
            lr_range=(0.0, 1.0),
            num_runs=5,
        )
        for (size, tokens), off in zip(CELLS, left, strict=True)
    ]
    law = against_size_and_tokens(cells, "peak_lr")
    student = 1.943180  # its 95% quantile at 6 degrees of freedom
    half = student * (float((left**2).sum()) / 6 / (6 * step**2)) ** 0.5
    for found, value in ((law.size_exponent, -0.2), (law.token_exponent, -0.05)):
        assert found.value == pytest.approx(value)
        assert found.high - found.value == pytest.approx(half, rel=1e-5)
        assert found.value - found.low == pytest.approx(half, rel=1e-5)
    assert (law.coefficient, law.num_points) == (pytest.approx(0.5), 9)
    assert law.inverse(law(3e6, 5e7), 3e6) == pytest.approx(5e7)
    # A new cell at the middle one: s²·(1 + 1/9); an e-fold further out than the largest, each way:
    # x is log 4 + 1 twice, and a distance of sqrt 2 is allowed for.
    s = (float((left**2).sum()) / 6) ** 0.5
    middle = law.predict(4e6, 8e7)
    assert middle.value == pytest.approx(lr_law(4e6, 8e7))
    assert np.log(middle.high / middle.value) == pytest.approx(student * s * (10 / 9) ** 0.5)
    further = law.predict(1.6e7 * np.e, 3.2e8 * np.e)
    alone = student * s * (10 / 9 + 2 * (step + 1) ** 2 / (6 * step**2)) ** 0.5
    off = np.hypot(alone, FORM_RATE * 2**0.75)
    assert np.log(further.high / further.value) == pytest.approx(off, rel=1e-5)
    assert np.log(further.value / further.low) == pytest.approx(off, rel=1e-5)
    assert further.extrapolation_ratio == pytest.approx(np.e**2)
    below = law.predict(1e6 / np.e, 8e7)
    alone = student * s * (10 / 9 + (step + 1) ** 2 / (6 * step**2)) ** 0.5
    assert np.log(below.high / below.value) == pytest.approx(np.hypot(alone, FORM_RATE), rel=1e-5)
    # The exponents' variances add up: size and tokens are crossed.
    assert law.apart().value == pytest.approx(-0.15)
    assert law.apart().width == pytest.approx(2 * 2**0.5 * half, rel=1e-5)


def test_an_optimum_at_the_edge_is_a_bound_and_enters_no_law() -> None:
    optima = cell_optima(swept(batches=False, shift=16.0))
    for optimum in optima:
        assert optimum.status == "at_edge"
        assert optimum.peak_lr == pytest.approx(4 * lr_law(optimum.size, optimum.tokens), rel=1e-6)
        assert "bound" in optimum.note
    with pytest.raises(FitError, match=r"inside what was tried.*\(9 at the edge\); widen"):
        against_compute(optima, "peak_lr", QUICK)


def test_a_bowl_that_opens_downward_has_no_optimum() -> None:
    assert {o.status for o in cell_optima(swept(sign=-1.0))} == {"opens_downward"}


def test_too_few_values_are_said() -> None:
    points = swept(batches=False)
    few = make_points(
        size_variable="flops_per_token", label=points.label[:2], size=points.array("size")[:2],
        tokens=points.array("tokens")[:2], loss=points.array("loss")[:2],
        flops=points.array("flops")[:2],
        extra={name: column[:2] for name, column in points.extra.items()},
    )  # fmt: skip
    (optimum,) = cell_optima(few)
    assert optimum.status == "too_few"
    assert "three values of each" in optimum.note


@pytest.mark.parametrize("factor", [1.3, 1 / 1.3])
def test_a_run_about_to_diverge_does_not_tilt_the_bowl(factor: float) -> None:
    """Nor one whose loss was read too low."""
    points = swept()
    loss = points.array("loss")
    for cell in range(9):
        loss[25 * cell + 24] *= factor
    bent = make_points(
        size_variable="flops_per_token", label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=loss, flops=points.array("flops"), extra=points.extra,
    )  # fmt: skip
    for optimum in cell_optima(bent):
        assert optimum.peak_lr == pytest.approx(lr_law(optimum.size, optimum.tokens), rel=0.05)


def test_where_a_third_of_the_runs_diverged_the_others_tell_the_optimum() -> None:
    """Six learning rates of a factor of two; the two highest are past the edge at some batches."""
    rng = np.random.default_rng(1)
    rows = []
    for size, tokens in CELLS:
        for lr_step, batch_step in itertools.product(range(-2, 4), range(-2, 3)):
            x, y = lr_step * np.log(2.0), batch_step * np.log(2.0)
            log_loss = np.log(2.5) + 0.02 * x**2 + 0.01 * y**2 - 0.008 * x * y
            log_loss += 0.001 * rng.standard_normal()
            if lr_step + (batch_step < 0) >= 3 or lr_step == 2:
                log_loss = np.log(rng.uniform(4.0, 7.0))
            lr, batch = lr_law(size, tokens) * np.exp(x), batch_law(size, tokens) * np.exp(y)
            rows.append((size, tokens, lr, batch, np.exp(log_loss)))
    size, tokens, lr, batch, loss = np.array(rows).T
    points = make_points(
        size_variable="flops_per_token", label=[str(i) for i in range(len(rows))], size=size,
        tokens=tokens, loss=loss, flops=size * tokens,
        extra={"peak_lr": tuple(lr.tolist()), "batch_tokens": tuple(batch.tolist())},
    )  # fmt: skip
    optima = cell_optima(points)
    assert {optimum.status for optimum in optima} == {"inside"}
    for optimum in optima:
        assert optimum.peak_lr == pytest.approx(lr_law(optimum.size, optimum.tokens), rel=0.15)
        assert optimum.batch_tokens == pytest.approx(
            batch_law(optimum.size, optimum.tokens), rel=0.15
        )
        assert optimum.loss == pytest.approx(2.5, rel=0.003)


def test_how_much_a_run_counts_in_a_bowl() -> None:
    """e times less each percent above the lowest; a few runs alike; of many far ones, enough."""
    near = np.concatenate([np.zeros(4), 0.01 * np.arange(5), [3.0]])
    weight = nearness(near, 1)
    np.testing.assert_allclose(weight[:9], np.exp(-100 * near[:9]))
    assert weight[9] == FAINTEST
    np.testing.assert_array_equal(nearness(np.array([0.0, 0.5, 1.0, 2.0]), 1), np.ones(4))
    far = nearness(np.array([0.0, 0.05, 0.1, 0.1, 0.2, 2.0]), 1)
    assert FEWEST[1] <= far.sum() < 1.1 * FEWEST[1]
    assert far[0] == 1


def test_a_run_far_off_its_bowl_pulls_no_more_than_two_standard_deviations() -> None:
    """At three learning rates a parabola stands wherever each group of runs wants it.

    Ten runs a group, half of them e above zero and half below; in the third one more, 6e above.
    Its pull is cut at twice the scatter s, so the bowl stands there at m with 10·m = 2·s. Of the 31
    residuals (five e - m, twenty e, five e + m, the odd one) the median is e, with or without the
    two smallest: s = e / 0.67449, and m = 0.29652·e.
    """
    e = 1e-6  # so low that how far a run lies above the lowest does not matter
    ten = e * np.array([1.0, -1.0] * 5)
    x = np.repeat([-1.0, 0.0, 1.0], [10, 10, 11])[:, None]
    log_loss = np.concatenate([ten, ten, ten, [6 * e]])
    diverged = np.ones((60, 1)), np.ones(60)
    for more in (0, 60):
        bowl = fit_bowl(
            np.concatenate([x, diverged[0][:more]]),
            np.concatenate([log_loss, diverged[1][:more]]),
            ("peak_lr",),
            (0.0,),
        )
        stands = [bowl(np.array([at])) / e for at in (-1.0, 0.0, 1.0)]
        assert stands == pytest.approx([0.0, 0.0, 0.29652], abs=5e-3)


@pytest.mark.parametrize("exponents", [(-0.7, 0.3), (0.1, 0.1)])
def test_intervals_of_a_new_cell_hold_what_they_say(exponents: tuple[float, float]) -> None:
    """Laws that are true, cells of 8 % scatter, at the corner and two e-folds beyond."""
    rng, inside, apart = np.random.default_rng(3), [], 0
    sizes, tokens = np.array(CELLS).T
    for _ in range(200):
        truth = exponents[0] * np.log(sizes) + exponents[1] * np.log(tokens)
        values = np.exp(truth + 0.08 * rng.standard_normal(len(CELLS)))
        cells = [
            CellOptimum(
                size=size, tokens=count, flops=size * count, peak_lr=float(value),
                batch_tokens=1.0, loss=2.0, status="inside", lr_range=(0.0, 1.0), num_runs=5,
            )
            for (size, count), value in zip(CELLS, values, strict=True)
        ]  # fmt: skip
        law = replace(against_size_and_tokens(cells, "peak_lr"), form_rate=0.0)
        apart += not law.apart().contains(0.0)
        for far in (1.0, np.exp(2.0)):
            at = 1.6e7 * far, 3.2e8 * far
            new = np.log(at) @ np.array(exponents) + 0.08 * rng.standard_normal()
            inside.append(law.predict(*at).contains(float(np.exp(new))))
    assert 0.86 <= np.mean(inside) <= 0.94
    assert apart == 200 if exponents[0] < 0 else 0.05 <= apart / 200 <= 0.15


def test_points_without_learning_rates_say_so() -> None:
    points = make_points(
        size_variable="N", label=["a"], size=np.array([1e6]), tokens=np.array([1e7]),
        loss=np.array([3.0]), flops=np.array([1e13]),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="learning-rate law needs peak_lr"):
        cell_optima(points)
