"""The fitters: points in, a law with its evidence out.

1. Variable projection: thousands of exponent vectors, the coefficients of each solved exactly.
2. Descent of the robust objective from the best start of every region, all regions as one batch.
3. The bootstrap's replicates, again as one batch, from the optimum.
4. Health checks: every visible problem that is not an error, as a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from analysis import health
from analysis.allocation import log_optimal_size
from analysis.bootstrap import RUNS_BOOTSTRAP, intervals, replicate
from analysis.catalogue import AnyLaw, Law, the_law
from analysis.data_laws import OverTrainingLaw
from analysis.descent import TOLERANCE
from analysis.downstream import DownstreamLaw
from analysis.downstream_fit import fit_downstream
from analysis.drift import FORM_RATE
from analysis.laws import Array, LossSurface, PowerLaw, SaturatingPowerLaw
from analysis.mixed import parted_residuals
from analysis.noise import noise_floor, unnamed_settings
from analysis.points import Points, bare_name, celled_by
from analysis.profile import profile_intervals
from analysis.results import Fit, FitError, FitWarning, Interval, Objective
from analysis.robust import new_run_spread
from analysis.routed import RoutedLaw
from analysis.routed_fit import fit_routed
from analysis.settings import FitSettings
from analysis.solving import Solved, make_law, solve
from analysis.weighing import CELLS_BOOTSTRAP, replicate_cells, weigh
from analysis.wording import counted
from model.errors import ConfigError


def fit_surface(points: Points, settings: FitSettings | None = None) -> Fit:
    """L(N, D) = E + A/N^alpha + B/D^beta over all of ``points``.

    Raises:
        FitError: fewer points than parameters plus one.
    """
    variables = (points.array("size"), points.array("tokens"))
    constant = _flops_per_size_token(points)
    fit = fit_law(
        LossSurface,
        variables,
        points.array("loss"),
        settings,
        name="loss",
        labels=points.label,
        budgets=points.budget,
        cells=points.cell,
        largest_compute=max(points.flops),
        constants={"flops_per_size_token": constant},
    )
    return _with_repeats(replace(fit, form_rate=form_rate_of(LossSurface)), points)


def form_rate_of(law: type[AnyLaw]) -> float:
    """What a law's forecasts allow for its form: of those in size and tokens what L(N, D) needed.

    The gadre law needed as much on the same tables, the compute law through the lowest loss of each
    budget nothing (`benchmarks/published_laws.py`). The others in size and tokens are L(N, D), or
    it and one more term, while their own variable stays as it is.
    """
    in_size_and_tokens = {"size", "tokens"} <= set(law.VARIABLES)
    return FORM_RATE if in_size_and_tokens or law is OverTrainingLaw else 0.0


def fit_points(law: type[AnyLaw], points: Points, settings: FitSettings | None = None) -> Fit:
    """Any law of a loss, its variables taken from the points' columns by name.

    Raises:
        ConfigError: the points lack one of the law's variables.
        FitError: too few points.
    """
    if law is LossSurface:
        return fit_surface(points, settings)
    points = celled_by(points, law.VARIABLES)
    variables = [points.column(name, the_law(law)) for name in law.VARIABLES]
    values = points.array("loss")
    if issubclass(law, RoutedLaw):
        size, num_experts = variables
        fit = fit_routed(size, num_experts, values, settings, labels=points.label)
    elif issubclass(law, DownstreamLaw):
        fit = fit_downstream(variables[0], values, settings, labels=points.label)
    else:
        fit = fit_law(
            law,
            variables,
            values,
            settings,
            name="loss",
            labels=points.label,
            budgets=points.budget,
            cells=points.cell,
        )
    return _with_repeats(replace(fit, form_rate=form_rate_of(law)), points)


def _with_repeats(fit: Fit, points: Points) -> Fit:
    """What repeated seeds say of the fit, and whether they, and all runs, are of one kind."""
    noise = health.noise_warnings(fit, noise_floor(points))
    mixed = health.repeat_warnings(unnamed_settings(points))
    groups: tuple[FitWarning, ...] = ()
    if points.words:
        law = fit.law
        expected_N = law(*(points.column(name, the_law(type(law))) for name in law.VARIABLES))
        residual_N = np.log(points.array("loss")) - np.log(expected_N)
        groups = health.group_warnings(parted_residuals(points, residual_N))
    shared: tuple[FitWarning, ...] = ()
    if points.size and points.tokens:
        shared = health.checkpoint_warnings([bare_name(name) for name in points.label], points)
    return replace(fit, warnings=(*fit.warnings, *noise, *mixed, *groups, *shared))


def fit_compute_law(points: Points, settings: FitSettings | None = None) -> Fit:
    """L(C) = E + a·C^-b through the lowest loss of each compute budget (the lower envelope).

    Along a surface's own frontier use :func:`frontier_fit`: an envelope of few sizes lies above the
    true frontier, and its points are picked for being low.
    """
    best: dict[int, int] = {}
    for index, budget in enumerate(points.budget):
        if budget not in best or points.loss[index] < points.loss[best[budget]]:
            best[budget] = index
    rows = [best[budget] for budget in sorted(best)]
    flops, losses = points.array("flops")[rows], points.array("loss")[rows]
    return fit_law(
        SaturatingPowerLaw,
        (flops,),
        losses,
        settings,
        name="through the lowest loss of each budget",
        labels=[points.label[row] for row in rows],
        budgets=[points.budget[row] for row in rows],
    )


def fit_power_law(
    x: Sequence[float], y: Sequence[float], settings: FitSettings | None = None, *, name: str
) -> Fit:
    """y = a·x^b in log-log."""
    return fit_law(PowerLaw, (np.asarray(x, dtype=float),), np.asarray(y), settings, name=name)


def frontier_fit(surface: Fit, level: float = 0.9) -> Fit:
    """L(C) along the compute-optimal frontier of a fitted surface, in closed form.

    Every replicate of the surface gives one replicate of L(C) = E + a·C^-b, so the interval holds
    all that is uncertain about the surface; no point is used twice or picked for being low.
    """
    law = surface.law
    if not isinstance(law, LossSurface):
        raise ConfigError(f"a frontier needs the hoffmann law, this fit is of {the_law(type(law))}")
    frontier = law.frontier()
    replicates = frontier_parameters(np.asarray(surface.replicates), law.flops_per_size_token)
    return Fit(
        name="at the optimal N and D",
        law=frontier,
        coefficients=intervals(frontier, replicates, level, surface.noise_df),
        replicates=tuple(map(tuple, replicates.tolist())),
        bootstrap=f"{surface.bootstrap}; each replicate's own frontier",
        noise_sd=surface.noise_sd,
        noise_df=surface.noise_df,
        objective=surface.objective,
        num_points=surface.num_points,
        largest_compute=surface.largest_compute,
        ranges={"flops": (surface.smallest_compute, surface.largest_compute)},
        smallest_compute=surface.smallest_compute,
        condition_number=surface.condition_number,
        warnings=surface.warnings,
        form_rate=surface.form_rate,
        drift=surface.drift,
        weighting=surface.weighting,
    )


def frontier_parameters(surfaces_RP: Array, flops_per_size_token: float) -> Array:
    """(E, a, b) of the frontier of each surface (E, A, B, alpha, beta), [R, 3].

    See :meth:`LossSurface.optimum`: at C = 1 the size is G·k^(-beta/(alpha+beta)), and a is what
    the two terms are worth there.
    """
    E, A, B, alpha, beta = surfaces_RP.T
    log_k = np.log(flops_per_size_token)
    log_balance, exponent = log_optimal_size(surfaces_RP)
    log_size = log_balance - exponent * log_k
    with np.errstate(invalid="ignore", over="ignore"):
        a = A * np.exp(-alpha * log_size) + B * np.exp(beta * (log_k + log_size))
    # A replicate without one of the two terms spends everything on the other: no loss above E.
    a = np.where((A > 0) & (B > 0), a, 0.0)
    return np.stack([E, a, alpha * beta / (alpha + beta)], axis=1)


def fit_law(
    law: type[Law],
    variables: Sequence[Array],
    values: Array,
    settings: FitSettings | None = None,
    *,
    name: str,
    labels: Sequence[str] | None = None,
    budgets: Sequence[int] | None = None,
    cells: Sequence[str] | None = None,
    largest_compute: float | None = None,
    constants: dict[str, float] | None = None,
) -> Fit:
    """Any law to any points.

    Args:
        law: the law's class.
        variables: its variables, in its order, [N] each.
        values: what was measured, [N].
        settings: loss, starts, bootstrap.
        name: what is predicted.
        labels: the points' names, for warnings.
        budgets: the points' compute budgets, for warnings.
        cells: points of one cell differ in their seed alone and are weighed by the noise that they
            measure (:mod:`analysis.seed_weights`); without cells every point counts alike.
        largest_compute: of the points; by default the law's own measure of them.
        constants: fields of the law that are not fitted.
    """
    settings = settings or FitSettings()
    labels = labels or [f"point {index + 1}" for index in range(len(values))]
    num_parameters = len(law.PARAMETERS)
    if len(values) <= num_parameters:
        raise FitError(
            f"{name}: {counted(len(values), 'point', 'points')} for the {num_parameters} "
            f"parameters of {the_law(law)} leave nothing to judge the fit by; at least "
            f"{num_parameters + 1} are needed, {2 * num_parameters} or more are better"
        )
    solved, weighting = solve(law, variables, values, settings), None
    if cells is not None:
        solved, weighting = weigh(solved, values, cells)
    made = make_law(solved, constants)
    noise_sd, noise_df = new_run_spread(solved.residual_N, num_parameters)
    if cells is not None and weighting is not None and not weighting.even:
        replicates = replicate_cells(
            solved, np.log(values), cells, settings.replicates, settings.seed
        )
        drawn, noise_df = CELLS_BOOTSTRAP, float(weighting.cells - num_parameters)
    else:
        replicates = replicate(solved, np.log(values), settings.replicates, settings.seed)
        drawn = RUNS_BOOTSTRAP
    measure: Callable[..., Array] = made.compute
    compute = measure(*variables)
    return Fit(
        name=name,
        law=made,
        coefficients=_coefficients(solved, made, replicates, values, settings.level, noise_df),
        replicates=tuple(map(tuple, replicates.tolist())),
        bootstrap=drawn,
        noise_sd=noise_sd,
        noise_df=noise_df,
        objective=Objective(
            loss=solved.loss.kind,
            residual=settings.residual,
            delta=solved.loss.delta if solved.loss.kind == "huber" else None,
            delta_rule=solved.delta_rule,
            value=solved.value,
            starts=solved.starts,
            basins=len(solved.optima),
            spread=solved.optima[1] / max(solved.optima[0], 1e-30) - 1
            if solved.optima[1:]
            else 0.0,
            steps=solved.steps,
            tolerance=TOLERANCE,
        ),
        num_points=len(values),
        smallest_compute=float(compute.min()),
        largest_compute=float(largest_compute or compute.max()),
        ranges={
            variable: (float(np.min(column)), float(np.max(column)))
            for variable, column in zip(law.VARIABLES, variables, strict=True)
        },
        condition_number=health.condition_number(solved.form, solved.theta_P),
        warnings=health.examine(solved, labels, budgets, variables),
        weighting=weighting,
    )


def _coefficients(
    solved: Solved, law: Law, replicates_RP: Array, values: Array, level: float, df: float
) -> dict[str, Interval]:
    """Bootstrap intervals; a lone coefficient (E) that some draws put at its bound gets the profile
    likelihood's as well: at a bound a bootstrap sees one side only (it covered 0.75 of 0.9)."""
    found = intervals(law, replicates_RP, level, df)
    if solved.loss.kind == "lad":
        return found
    columns = solved.form.logsum.columns
    alone = [law.PARAMETERS[column[0]] for column in columns if len(column) == 1]
    at_bound = (replicates_RP == 0).mean(axis=0) > (1 - level) / 2
    names = [name for name in alone if at_bound[law.PARAMETERS.index(name)]]
    for name, wide in profile_intervals(solved, values, level, names).items() if names else ():
        narrow = found[name]
        low, high = min(narrow.low, wide.low), max(narrow.high, wide.high)
        found[name] = replace(narrow, low=low, high=high)
    return found


def _flops_per_size_token(points: Points) -> float:
    """C over N·D: exactly 1 where the size is M, the points' median otherwise."""
    ratio = points.array("flops") / (points.array("size") * points.array("tokens"))
    return 1.0 if points.size_variable == "flops_per_token" else float(np.median(ratio))
