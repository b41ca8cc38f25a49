"""What is wrong with a fit that ended in numbers all the same: each trouble in a sentence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc, fdtrc

from analysis.curvature import ROUNDING, bend_chance
from analysis.descent import minimise
from analysis.forms import Form
from analysis.holdout import Holdout
from analysis.laws import Array, LossSurface
from analysis.noise import NoiseFloor
from analysis.points import Points
from analysis.results import Fit, FitStatus, FitWarning
from analysis.robust import robust_sd
from analysis.solving import Solved, make_law
from analysis.wording import counted, joined, largest_budgets

RIDGE = 1e3
"""Condition number, columns scaled to length one, from which a direction counts as free."""
OUTLIER = 5.0
"""Robust standard deviations."""
RIVAL = 1.1
"""An optimum is a rival when its objective is below this many times the best one's."""
IN_STEP = 0.98
"""Correlation of log size and log tokens from which the two are one variable. Of a square grid it
is 0, of five IsoFLOP curves of five sizes about 0.3."""
EDGE = 1.05
"""An optimal size this much beyond the sizes tried is still one of them."""
FEW = 3
"""Fewer distinct budgets or values of a variable than this leave a power law's bend open."""
BENT = 0.05
"""Chance below which residuals are said to bend."""
UNLIKELY = 0.1
"""Chance below which a hold-out's misses, or the residuals' excess over the noise, are named."""


def examine(
    solved: Solved,
    labels: Sequence[str],
    budgets: Sequence[int] | None,
    variables: Sequence[Array],
) -> tuple[FitWarning, ...]:
    """Everything a fit's own numbers tell."""
    return tuple(
        FitWarning(status=status.name, sentence=sentence)
        for status, sentence in (
            *_descent(solved),
            *_bounds(solved),
            *_ridge(solved),
            *_in_step(solved, variables),
            *_counts(solved, budgets, variables),
            *_outliers(solved, labels),
            *_curved(solved, variables),
            *_edge(solved, variables),
        )
    )


def noise_warnings(fit: Fit, noise: NoiseFloor | None) -> tuple[FitWarning, ...]:
    """Residuals against what repeated seeds say about noise."""
    if noise is None:
        sentence = (
            f"no repeated seeds, so the noise is taken from the fit's own residuals "
            f"({fit.noise_sd:.2%} of the loss)"
        )
        return (FitWarning(status=FitStatus.UNMEASURED_NOISE.name, sentence=sentence),)
    ratio = fit.noise_sd / max(noise.sd, 1e-12)
    chance = float(fdtrc(fit.noise_df, noise.degrees_of_freedom, ratio**2))
    if chance < UNLIKELY and ratio > 1.5:
        sentence = (
            f"residuals spread {fit.noise_sd:.2%}, {ratio:.1f} times what repeated seeds differ by "
            f"({noise.sd:.2%}): the law's form, or a setting that changes along the ladder, "
            f"misses part of it"
        )
        return (FitWarning(status=FitStatus.MISFIT.name, sentence=sentence),)
    return ()


def repeat_warnings(settings: Sequence[str]) -> tuple[FitWarning, ...]:
    """Settings, by their columns, in which runs differ that the fit takes for repeated seeds."""
    if not settings:
        return ()
    sentence = (
        f"runs of one size and token count differ in {', '.join(settings)} too and are taken for "
        "repeated seeds: what that does to the loss counts as noise. Keep one value "
        "(filter.COLUMN=VALUE), of a sweep of learning rates the best run of each "
        "(table.lowest_of_cells=true), or name it where the law has such a variable "
        "(variables.NAME=COLUMN)"
    )
    return (FitWarning(status=FitStatus.MIXED_REPEATS.name, sentence=sentence),)


def group_warnings(parted: Iterable[str]) -> tuple[FitWarning, ...]:
    """Columns of words that part the residuals, as :func:`analysis.mixed.parted_residuals` says."""
    return tuple(
        FitWarning(
            status=FitStatus.MIXED_GROUPS.name,
            sentence=f"mean residuals by {column}: runs that measure different things? Keep one "
            "(filter.COLUMN=VALUE)",
        )
        for column in parted
    )


def checkpoint_warnings(labels: Sequence[str], points: Points) -> tuple[FitWarning, ...]:
    """Rows that their names say are of one run: several token counts of one name and size.

    Args:
        labels: names of runs, without the rows' numbers.
        points: of these rows.
    """
    tokens_of: dict[tuple[str, float], set[float]] = {}
    for label, size, tokens in zip(labels, points.size, points.tokens, strict=True):
        tokens_of.setdefault((label, size), set()).add(tokens)
    shared = {run: tokens for run, tokens in tokens_of.items() if len(tokens) >= FEW}
    rows = sum(len(tokens) for tokens in shared.values())
    if rows <= len(labels) / 2:
        return ()
    sentence = (
        f"{rows} of {len(labels)} rows are of {len(shared)} names at one size and several token "
        "counts. If those are checkpoints of one run, they are not independent, so the intervals "
        "are too narrow, and before its rate has fallen a run lies above what one of that length "
        "reaches; keep the last of each with table.last_of=COLUMN"
    )
    return (FitWarning(status=FitStatus.CHECKPOINTS.name, sentence=sentence),)


def few_points(num_points: int, num_parameters: int) -> tuple[FitWarning, ...]:
    """Fewer than two points a parameter."""
    if num_points >= 2 * num_parameters:
        return ()
    sentence = (
        f"{num_points} points for {num_parameters} parameters; twice as many points as "
        f"parameters are the least to trust"
    )
    return (FitWarning(status=FitStatus.FEW_POINTS.name, sentence=sentence),)


def outlier_warning(
    rows: NDArray[np.intp], far_N: Array, labels: Sequence[str], changes: str
) -> FitWarning:
    """Which points lie far off, by how many robust standard deviations, and what they move."""
    named = ", ".join(f"{labels[row]} ({far_N[row]:.0f})" for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    sentence = f"beyond {OUTLIER:.0f} robust standard deviations: {named}{more}; without: {changes}"
    return FitWarning(status=FitStatus.OUTLIERS.name, sentence=sentence)


def holdout_warnings(holdouts: Sequence[Holdout]) -> tuple[FitWarning, ...]:
    """Held-out points outside their forecasts, more of them than the level allows for."""
    found = []
    for holdout in holdouts:
        outside = len(holdout.points) - holdout.num_inside
        if outside and _tail(len(holdout.points), outside, 1 - holdout.points[0].forecast.level):
            sentence = (
                f"without the {largest_budgets(holdout.budgets)} the forecast is off by "
                f"{holdout.mean_abs_error:.2%} on average, with {outside} of "
                f"{len(holdout.points)} held-out points outside the interval"
            )
            found.append(FitWarning(status=FitStatus.HOLDOUT_MISSED.name, sentence=sentence))
    return tuple(found)


def condition_number(form: Form, theta_P: Array) -> float:
    """Of d log f / d theta, its columns scaled to length one; infinite where one is nothing."""
    singular = np.linalg.svd(scaled_jacobian(form, theta_P), compute_uv=False)
    return float(singular[0] / singular[-1]) if singular[-1] > 0 else float("1e300")


def scaled_jacobian(form: Form, theta_P: Array) -> Array:
    """d log f / d theta at the points, held parameters left out, columns of length one."""
    jacobian_NP = form.logsum.jacobian(theta_P)[:, ~form.held_P]
    length_P = np.linalg.norm(jacobian_NP, axis=0)
    return jacobian_NP / np.where(length_P > 0, length_P, 1.0)


def _descent(solved: Solved) -> Iterator[tuple[FitStatus, str]]:
    if not solved.converged:
        yield (
            FitStatus.NOT_CONVERGED,
            f"the descent was cut off after {solved.steps} steps; the objective may still fall",
        )
    moved_P = np.abs(solved.theta_P - solved.start_P)
    still = moved_P <= 1e-9 * np.maximum(1.0, np.abs(solved.start_P))
    still &= ~solved.form.held_P
    if still.any():
        names = _listed(solved, still)
        yield (
            FitStatus.AT_START,
            f"{names} stands where its start put it: the points say nothing about it",
        )
    rivals = [value for value in solved.optima[1:] if value < RIVAL * solved.optima[0] + 1e-20]
    if rivals:
        yield (
            FitStatus.STARTS_DISAGREE,
            f"{counted(len(rivals), 'other optimum fits', 'other optima fit')} "
            "almost as well, the nearest with an objective "
            f"{rivals[0] / max(solved.optima[0], 1e-300) - 1:.2%} above the best one's",
        )


def _bounds(solved: Solved) -> Iterator[tuple[FitStatus, str]]:
    parameters_P = solved.form.decode(solved.theta_P[None])[0]
    logsum = solved.form.logsum
    for index, name in enumerate(solved.form.parameters):
        if solved.form.held_P[index]:
            continue
        low, high = logsum.lower_P[index], logsum.upper_P[index]
        if name in solved.form.law.EXPONENTS:
            edge = 1e-6 * (high - low)
            if not low + edge < solved.theta_P[index] < high - edge:
                yield (
                    FitStatus.AT_BOUND,
                    f"{name} = {parameters_P[index]:.3g} lies at the end of its range "
                    f"{low:g} to {high:g}",
                )
        elif parameters_P[index] == 0:
            yield (
                FitStatus.AT_BOUND,
                f"{name} = 0, its bound: the points ask for no such term",
            )


def _ridge(solved: Solved) -> Iterator[tuple[FitStatus, str]]:
    number = condition_number(solved.form, solved.theta_P)
    if number < RIDGE:
        return
    _, _, right_PP = np.linalg.svd(scaled_jacobian(solved.form, solved.theta_P))
    weak_P = np.zeros(len(solved.theta_P), dtype=bool)
    weak_P[~solved.form.held_P] = np.abs(right_PP[-1]) > 0.3
    names = _listed(solved, weak_P)
    yield (
        FitStatus.ILL_CONDITIONED,
        f"condition number {number:.2g}: {names} can move together and leave the fit unchanged; "
        f"read the forecasts, not these coefficients",
    )


def _in_step(solved: Solved, variables: Sequence[Array]) -> Iterator[tuple[FitStatus, str]]:
    """Sizes and tokens that rise together, as in a family trained at 20 tokens a parameter."""
    if solved.form.law.VARIABLES != LossSurface.VARIABLES:
        return
    size_N, tokens_N = variables
    if min(np.ptp(size_N), np.ptp(tokens_N)) == 0:
        return
    together = float(np.corrcoef(np.log(size_N), np.log(tokens_N))[0, 1])
    if together > IN_STEP:
        ratio_N = tokens_N / size_N
        yield (
            FitStatus.ILL_CONDITIONED,
            f"size and tokens rise together (correlation of their logs {together:.3f}, "
            f"{ratio_N.min():.3g} to {ratio_N.max():.3g} tokens a unit of size): what each is "
            "worth can't be told apart, so no optimum can be read; law=compute fits the one curve "
            "these runs lie on",
        )


def _counts(
    solved: Solved, budgets: Sequence[int] | None, variables: Sequence[Array]
) -> Iterator[tuple[FitStatus, str]]:
    for warning in few_points(len(solved.residual_N), solved.form.logsum.num_parameters):
        yield FitStatus[warning.status], warning.sentence
    if budgets is not None and len(set(budgets)) < FEW:
        yield FitStatus.FEW_BUDGETS, f"{len(set(budgets))} distinct compute budgets"
    for name, column in zip(solved.form.law.VARIABLES, variables, strict=True):
        distinct = len(np.unique(column))
        if distinct < FEW:
            yield FitStatus.FEW_BUDGETS, f"{distinct} distinct values of {name}"


def _outliers(solved: Solved, labels: Sequence[str]) -> Iterator[tuple[FitStatus, str]]:
    spread = robust_sd(solved.residual_N, solved.form.logsum.num_parameters)
    if spread <= ROUNDING:  # noise-free data: rounding is no outlier
        return
    far_N = np.abs(solved.residual_N) / spread
    rows = np.argsort(-far_N)[: int((far_N > OUTLIER).sum())]
    left = len(far_N) - len(rows)
    if len(rows) == 0 or left <= solved.form.logsum.num_parameters:
        return
    weight_N = solved.weight_N.copy()
    weight_N[rows] = 0.0
    log_N = solved.residual_N + solved.form.logsum.log_values(solved.theta_P[None])[0]
    without = minimise(solved.form.logsum, solved.theta_P[None], log_N, weight_N, solved.loss)
    before = solved.form.decode(solved.theta_P[None])[0]
    after = solved.form.decode(without.theta_BP)[0]
    changes = ", ".join(
        f"{name} {before[i]:.3g} -> {after[i]:.3g}"
        for i, name in enumerate(solved.form.parameters)
        if name in solved.form.law.EXPONENTS or name == "E"
    )
    warning = outlier_warning(rows, far_N, labels, changes)
    yield FitStatus[warning.status], warning.sentence


def _curved(solved: Solved, variables: Sequence[Array]) -> Iterator[tuple[FitStatus, str]]:
    chance = bend_chance(solved, variables)
    if chance < BENT:
        yield (
            FitStatus.CURVED,
            f"the residuals bend along the ladder (by chance once in {1 / chance:.3g} fits of a "
            f"law of the right form): the local exponents still change, so what lies beyond the "
            f"points is known less well than the bootstrap says",
        )


def _edge(solved: Solved, variables: Sequence[Array]) -> Iterator[tuple[FitStatus, str]]:
    law = make_law(solved)
    if not isinstance(law, LossSurface) or not law.A or not law.B:
        return
    size_N, tokens_N = variables
    largest = float((size_N * tokens_N).max())
    best = law.optimum(largest).size
    if not size_N.min() / EDGE <= best <= size_N.max() * EDGE:
        side = "above" if best > size_N.max() else "below"
        yield (
            FitStatus.EDGE_OPTIMUM,
            f"at the largest compute the optimal size {best:.3g} lies {side} every size tried "
            f"({size_N.min():.3g} to {size_N.max():.3g}): the optimum is a bound, not a value",
        )


def _listed(solved: Solved, chosen_P: NDArray[np.bool_]) -> str:
    names = [n for n, is_chosen in zip(solved.form.parameters, chosen_P, strict=True) if is_chosen]
    return joined(names)


def _tail(trials: int, hits: int, chance: float) -> bool:
    """Whether so many hits or more come up by chance no more often than UNLIKELY."""
    return float(bdtrc(hits - 1, trials, chance)) <= UNLIKELY + 1e-9
