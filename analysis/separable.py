"""A fit of a law that is linear but for one or two parameters, by a solver of its own.

The laws that are sums of exponentials share one fitter (:mod:`analysis.fitting`). The others bring
a function that solves them for given weights; the bootstrap, the intervals and the health of the
fit are made here alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from analysis import health
from analysis.bootstrap import RUNS_BOOTSTRAP, intervals, resample_runs
from analysis.catalogue import OwnFitter, the_law
from analysis.laws import Array
from analysis.results import Fit, FitError, FitWarning, Objective
from analysis.robust import new_run_spread, robust_sd
from analysis.settings import FitSettings

MOST_REPLICATES = 300
"""Every one is a descent of its own, 5 ms for 60 points."""
STEP = 1e-6
"""Of the differences that the condition number is made of."""


def require_points(law_class: type[OwnFitter], count: int) -> None:
    """FitError where ``count`` points are no more than the law's parameters."""
    if count <= len(law_class.PARAMETERS):
        raise FitError(
            f"loss: {count} points for the {len(law_class.PARAMETERS)} parameters of "
            f"{the_law(law_class)} leave nothing to judge the fit by"
        )


def fit_separable(
    law_class: type[OwnFitter],
    variables: Sequence[Array],
    values_N: Array,
    settings: FitSettings,
    solve: Callable[[Array], Array],
    *,
    residual: str,
    searched: int,
    labels: Sequence[str] | None,
    warnings: Sequence[FitWarning] = (),
) -> Fit:
    """Least squares of log(measured / law), or of measured - law, with all its evidence.

    Args:
        law_class: the law to be fitted.
        variables: its variables, in its order, [N] each.
        values_N: what was measured.
        settings: replicates, level and seed.
        solve: the parameters of least squares for weights [N].
        residual: "log" or "plain", what ``solve`` makes small.
        searched: grid points the search tried.
        labels: the points' names, for warnings.
        warnings: what the caller found.

    Raises:
        FitError: no more points than parameters.
    """
    require_points(law_class, len(values_N))
    names = law_class.PARAMETERS
    parameters_P = solve(np.ones(len(values_N)))
    make_law: Callable[..., OwnFitter] = law_class
    law = make_law(**dict(zip(names, map(float, parameters_P), strict=True)))
    fitted_N = law(*variables)
    log_residual_N = np.log(values_N) - np.log(fitted_N)
    residual_N = log_residual_N if residual == "log" else values_N - fitted_N
    counts_RN = resample_runs(
        len(values_N), min(settings.replicates, MOST_REPLICATES), settings.seed
    )
    replicates_RP = np.stack([solve(row_N) for row_N in counts_RN])
    noise_sd, noise_df = new_run_spread(log_residual_N, len(names))
    compute_N = law.compute(*variables)
    return Fit(
        name="loss",
        law=law,
        coefficients=intervals(law, replicates_RP, settings.level, noise_df),
        replicates=tuple(map(tuple, replicates_RP.tolist())),
        bootstrap=RUNS_BOOTSTRAP,
        noise_sd=noise_sd,
        noise_df=noise_df,
        objective=Objective(
            loss="squares",
            residual="log" if residual == "log" else "plain",
            delta=None,
            delta_rule="squares as published, no delta",
            value=float((residual_N**2).sum() / 2),
            starts=searched,
            basins=1,
            steps=0,
            tolerance=0.0,
            spread=0.0,
        ),
        num_points=len(values_N),
        smallest_compute=float(compute_N.min()),
        largest_compute=float(compute_N.max()),
        ranges={
            name: (float(np.min(column)), float(np.max(column)))
            for name, column in zip(law.VARIABLES, variables, strict=True)
        },
        condition_number=_condition(law, variables),
        warnings=(
            *warnings,
            *_outliers(log_residual_N, labels, law, solve),
            *health.few_points(len(values_N), len(names)),
        ),
    )


def _outliers(
    residual_N: Array,
    labels: Sequence[str] | None,
    law: OwnFitter,
    solve: Callable[[Array], Array],
) -> tuple[FitWarning, ...]:
    spread = robust_sd(residual_N, len(law.PARAMETERS))
    far_N = np.abs(residual_N) / max(spread, health.ROUNDING)
    rows = np.argsort(-far_N)[: int((far_N > health.OUTLIER).sum())]
    if len(rows) == 0 or len(residual_N) - len(rows) <= len(law.PARAMETERS):
        return ()
    weight_N = np.ones(len(residual_N))
    weight_N[rows] = 0.0
    without = solve(weight_N)
    changes = ", ".join(
        f"{name} {law.parameters[i]:.3g} -> {without[i]:.3g}"
        for i, name in enumerate(law.PARAMETERS)
    )
    names = labels or [f"point {row + 1}" for row in range(len(residual_N))]
    return (health.outlier_warning(rows, far_N, names, changes),)


def _condition(law: OwnFitter, variables: Sequence[Array]) -> float:
    """Of d ln y / d parameter, by differences, its columns scaled to length one."""
    columns = []
    for index, value in enumerate(law.parameters):
        by = STEP * max(abs(value), STEP)
        moved = np.repeat(law.parameters[None], 2, axis=0)
        moved[:, index] += (-by, by)
        logs = np.log(law.formula(moved[:, None], *variables))
        columns.append((logs[1] - logs[0]) / (2 * by))
    jacobian_NP = np.stack(columns, axis=1)
    length_P = np.linalg.norm(jacobian_NP, axis=0)
    singular = np.linalg.svd(jacobian_NP / np.where(length_P > 0, length_P, 1), compute_uv=False)
    return float(singular[0] / max(singular[-1], 1e-300))
