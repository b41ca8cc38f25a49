"""L = E + A/M^alpha + B/D^beta from few runs: draws of the surfaces that they allow.

A trial has six to forty runs of its baseline, too few for the bootstrap of
:func:`analysis.fitting.fit_surface` (LOG.md, 2026-11-27: 90% intervals of what follows from it held
the truth 12 to 80 times in 100). Here nothing is searched for. Both exponents run over a grid; at
each place the three coefficients are linear and their spread is known in closed form. Places are
drawn by how well they fit, coefficients from their Student's distribution there, and what is
negative is no law. The prior is flat: in the exponents over :data:`EXPONENTS`, in the coefficients
in units of the loss at the middle of the runs.

Shapes: N runs, K places of the grid, P = 3 coefficients, R draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from analysis.laws import LEAST_RUNS, Array
from analysis.results import FitError

EXPONENTS = (0.05, 1.2)
"""Of both terms. Published ones lie between 0.2 and 0.5, the laptop's between 0.4 and 0.8."""
PLACES = 28
"""Of each exponent."""
MOST_ALIKE = 0.999
"""Correlation of log-size and log-tokens."""
LEAST_WEIGHT = 1e-5
"""Places that fit worse than the best by this factor are left out of the second, finer grid."""
LEAST_LAWFUL = 0.02
"""Share of draws without a negative coefficient, below which the form is not the runs'."""
ROUNDS = 50


@dataclass(frozen=True, kw_only=True)
class SurfaceDraws:
    """Surfaces, one a draw; size and tokens in natural logs about the middle of the runs."""

    E: Array
    size_term: Array
    """A/M^alpha at the middle, [R]."""
    token_term: Array
    alpha: Array
    beta: Array
    log_size: float
    """Of the middle."""
    log_tokens: float

    def first(self, count: int) -> SurfaceDraws:
        """Some of them, where a median is enough."""
        return SurfaceDraws(
            E=self.E[:count],
            size_term=self.size_term[:count],
            token_term=self.token_term[:count],
            alpha=self.alpha[:count],
            beta=self.beta[:count],
            log_size=self.log_size,
            log_tokens=self.log_tokens,
        )

    def loss(self, size_R: Array | float, tokens_R: Array | float) -> Array:
        """Losses in nats; both arguments natural logs over the middle's."""
        small = self.size_term * np.exp(-self.alpha * size_R)
        return np.asarray(self.E + small + self.token_term * np.exp(-self.beta * tokens_R))

    def growth(self, size: float, tokens: float, gap_R: Array, most: float) -> Array:
        """By how much ln C must grow for a loss that is ``gap_R`` lower in ln L, [R].

        Size and tokens take half each. Infinite where the loss is below what any compute reaches,
        or reaches within exp(``most``) times; -``most`` at least.
        """
        target_R = self.loss(size, tokens) * np.exp(gap_R)
        low_R, high_R = np.full(len(self.E), -most), np.full(len(self.E), most)
        unreached_R = self.loss(size + most / 2, tokens + most / 2) > target_R
        for _ in range(40):
            middle_R = (low_R + high_R) / 2
            short_R = self.loss(size + middle_R / 2, tokens + middle_R / 2) > target_R
            low_R = np.where(short_R, middle_R, low_R)
            high_R = np.where(short_R, high_R, middle_R)
        return np.where(unreached_R, np.inf, (low_R + high_R) / 2)


def draw_surfaces(size_N: Array, tokens_N: Array, loss_N: Array, draws: int) -> SurfaceDraws:
    """Surfaces that runs of sizes M and tokens D allow; the same for the same runs.

    Raises:
        FitError: too few runs, one size or one token count alone, or a loss of another form.
    """
    if len(loss_N) < LEAST_RUNS:
        raise FitError(
            f"{len(loss_N)} runs of the baseline are too few for the law of its loss, which has "
            f"five parameters; {LEAST_RUNS} are the least"
        )
    log_N = np.stack([np.log(size_N), np.log(tokens_N)])
    middle = log_N.mean(axis=1)
    size, tokens = log_N - middle[:, None]
    for name, option, column in (("size", "sizes", size), ("tokens", "budgets", tokens)):
        if np.ptp(column) < np.log(1.1):
            raise FitError(
                f"all runs of the baseline have the same {name}, so the law of its loss in both "
                f"can't be seen; give the ladder 2 or more {option} (ladder.{option})"
            )
    if abs(np.corrcoef(size, tokens)[0, 1]) > MOST_ALIKE:
        raise FitError(
            "size and tokens of the baseline's runs grow together, so what each is worth can't be "
            "told apart; train each size on 2 or more budgets (ladder.budgets)"
        )
    rng = np.random.default_rng(0)
    box = (EXPONENTS, EXPONENTS)
    weight_K, grid = _weighed(box, size, tokens, loss_N)
    near_K = weight_K > LEAST_WEIGHT * weight_K.max()
    step = (EXPONENTS[1] - EXPONENTS[0]) / (PLACES - 1)
    box = tuple(  # type: ignore[assignment]
        (
            max(EXPONENTS[0], float(column[near_K].min()) - step),
            min(EXPONENTS[1], float(column[near_K].max()) + step),
        )
        for column in (grid.alpha_K, grid.beta_K)
    )
    weight_K, grid = _weighed(box, size, tokens, loss_N)
    found: list[Array] = []
    drawn = kept = 0
    for _ in range(ROUNDS):
        place_R = rng.choice(len(weight_K), draws, p=weight_K)
        sd_R = np.sqrt(grid.square_K[place_R] / rng.chisquare(grid.degrees, draws))
        normal_RP = rng.standard_normal((draws, 3))
        away_RP = np.einsum("rpq,rq->rp", grid.root_KPP[place_R], normal_RP)
        value_RP = grid.value_KP[place_R] + sd_R[:, None] * away_RP
        rows = np.column_stack([value_RP, grid.alpha_K[place_R], grid.beta_K[place_R]])
        lawful = rows[(value_RP >= 0).all(axis=1)]
        found.append(lawful)
        drawn, kept = drawn + draws, kept + len(lawful)
        if kept >= draws or kept < LEAST_LAWFUL * drawn:
            break
    if kept < LEAST_LAWFUL * drawn:
        raise FitError(
            "the baseline's loss does not fall with size and tokens as E + A/M^alpha + B/D^beta "
            f"does ({kept} of {drawn} draws of that law have no negative term)"
        )
    rows = np.concatenate(found)[:draws]
    return SurfaceDraws(
        E=rows[:, 0],
        size_term=rows[:, 1],
        token_term=rows[:, 2],
        alpha=rows[:, 3],
        beta=rows[:, 4],
        log_size=float(middle[0]),
        log_tokens=float(middle[1]),
    )


@dataclass(frozen=True, kw_only=True)
class _Grid:
    alpha_K: Array
    beta_K: Array
    value_KP: Array
    """Coefficients of least squares."""
    root_KPP: Array
    """A root of their covariance over the noise's variance."""
    square_K: Array
    """Sum of squared residuals in log-loss."""
    degrees: int


def _weighed(
    box: tuple[tuple[float, float], tuple[float, float]], size: Array, tokens: Array, loss_N: Array
) -> tuple[Array, _Grid]:
    """Each place's share of the evidence, and what least squares finds there."""
    ranges = [np.linspace(*ends, PLACES) for ends in box]
    alpha_K, beta_K = (column.ravel() for column in np.meshgrid(*ranges, indexing="ij"))
    terms = [np.exp(-alpha_K[:, None] * size), np.exp(-beta_K[:, None] * tokens)]
    shape_KNP = np.stack([np.ones_like(terms[0]), *terms], axis=2)
    row_KNP = shape_KNP / loss_N[None, :, None]  # a relative residual is one in log-loss
    gram_KPP = np.swapaxes(row_KNP, 1, 2) @ row_KNP
    value_KP = np.linalg.solve(gram_KPP, row_KNP.sum(axis=1)[..., None])[..., 0]
    residual_KN = 1 - np.einsum("knp,kp->kn", row_KNP, value_KP)
    square_K = (residual_KN**2).sum(axis=1) + 1e-20
    degrees = len(loss_N) - 5
    log_K = -degrees / 2 * np.log(square_K) - np.linalg.slogdet(gram_KPP)[1] / 2
    weight_K = np.exp(log_K - log_K.max())
    root_KPP = np.linalg.cholesky(np.linalg.inv(gram_KPP))
    grid = _Grid(
        alpha_K=alpha_K,
        beta_K=beta_K,
        value_KP=value_KP,
        root_KPP=root_KPP,
        square_K=square_K,
        degrees=degrees,
    )
    return weight_K / weight_K.sum(), grid
