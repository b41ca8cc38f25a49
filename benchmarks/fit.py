"""The fit of the 240 Chinchilla points, side by side with the alternatives, in one run.

Ours: 4,500 starts, then 4,000 bootstrap replicates with their intervals. Theirs: plain scipy, one
L-BFGS-B call a start (analytic gradient, the objective scaled so that it does not stop early),
timed on some of the starts and multiplied; the PyPI package `chinchilla` where it is installed
(vpnls is on no index that was tried).

    python benchmarks/fit.py [path/to/svg_extracted_data.csv] [--all-starts]

Without the file, 240 points are drawn from the published surface. Times are CPU seconds of this
process, so that a busy machine does not change them much; wall seconds stand beside them.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from analysis.fitting import fit_surface
from analysis.laws import Array, LossSurface
from analysis.points import Points, make_points
from analysis.settings import FitSettings
from analysis.table_options import Columns, TableRules
from analysis.tables import points_from_table

DEFAULT = (
    Path(__file__).resolve().parents[2] / "shared/data/chinchilla_epoch/svg_extracted_data.csv"
)
SOME_STARTS = 60
DELTA = 1e-3
SCALE = 1e4


def load(path: Path) -> Points:
    if path.exists():
        columns = Columns(params="Model Size", flops="Training FLOP", loss="loss")
        return points_from_table(path, columns, TableRules(drop_highest_losses=5))[0]
    print(f"{path} is not there: 240 points drawn from the published surface instead")
    law = LossSurface(E=1.817, A=478.0, B=2143.0, alpha=0.347, beta=0.367, flops_per_size_token=6.0)
    rng = np.random.default_rng(0)
    size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), 240))
    return drawn(law, size, np.exp(rng.uniform(np.log(8e8), np.log(3e11), 240)), rng)


def drawn(law: LossSurface, size: Array, tokens: Array, rng: np.random.Generator) -> Points:
    loss = law(size, tokens) * np.exp(0.005 * rng.standard_normal(len(size)))
    labels = [f"point {i}" for i in range(len(size))]
    return make_points(
        size_variable="N",
        label=labels,
        size=size,
        tokens=tokens,
        loss=loss,
        flops=6 * size * tokens,
    )


def timed(what: str, work: Callable[[], str]) -> None:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    print(f"{what:<46}{cpu:>9.2f} s CPU {wall:>9.2f} s wall   {result}", flush=True)


def ours(points: Points, settings: FitSettings) -> str:
    fit = fit_surface(points, settings)
    alpha = fit.coefficients["alpha"]
    return (
        f"objective {fit.objective.value:.9g}, alpha {alpha.value:.5f} "
        f"({alpha.low:.4f} to {alpha.high:.4f})"
    )


def scipy_loop(points: Points, count: int | None) -> str:
    log_n, log_d = np.log(points.array("size")), np.log(points.array("tokens"))
    log_l = np.log(points.array("loss"))

    def objective(theta: Array) -> tuple[float, Array]:
        e, a, b, alpha, beta = theta
        terms = np.stack([np.full_like(log_n, e), a - alpha * log_n, b - beta * log_d])
        total = logsumexp(terms, axis=0)
        share = np.exp(terms - total)
        residual = log_l - total
        slope = -np.clip(residual, -DELTA, DELTA)
        size = np.abs(residual)
        inner = np.minimum(size, DELTA)
        gradient = np.stack([share[0], share[1], share[2], -share[1] * log_n, -share[2] * log_d])
        return SCALE * float((inner * (size - 0.5 * inner)).sum()), SCALE * gradient @ slope

    exponents, coefficients = (0, 0.5, 1, 1.5, 2), (0, 5, 10, 15, 20, 25)
    axes = ((-1, -0.5, 0, 0.5, 1), coefficients, coefficients, exponents, exponents)
    grid = list(itertools.product(*axes))
    chosen = grid if count is None else grid[:: len(grid) // count][:count]
    began = time.process_time()
    best = min(
        (minimize(objective, start, jac=True, method="L-BFGS-B") for start in chosen),
        key=lambda found: float(found.fun),
    )
    spent = time.process_time() - began
    whole = "" if count is None else f", so {spent * len(grid) / len(chosen):.0f} s for {len(grid)}"
    return f"objective {best.fun / SCALE:.9g}, {len(chosen)} starts{whole}"


def chinchilla_package(points: Points) -> str:
    """The PyPI package with the same robust loss, 32 starts around the answer, all cores."""
    import pandas as pd
    from chinchilla import Chinchilla

    def robust(measured: Array, predicted: Array) -> Array:
        size = np.abs(np.log(measured) - np.log(predicted))
        inner = np.minimum(size, DELTA)
        return np.asarray(inner * (size - 0.5 * inner))

    grid = {"e": (0.0, 0.5), "a": (5.0, 10.0), "b": (5.0, 10.0), "alpha": (0.25, 0.5)}
    with tempfile.TemporaryDirectory() as folder:
        fitter = Chinchilla(
            folder, param_grid=grid | {"beta": (0.25, 0.5)}, loss_fn=robust, log_level=50
        )
        columns = {"C": "flops", "N": "size", "D": "tokens", "loss": "loss"}
        fitter.database.df = pd.DataFrame({k: points.array(v) for k, v in columns.items()})
        began = time.perf_counter()
        fitter.fit(parallel=True)
        spent = time.perf_counter() - began
        law = LossSurface(
            **{k: float(getattr(fitter, k)) for k in ("E", "A", "B", "alpha", "beta")}
        )
    predicted = law(points.array("size"), points.array("tokens"))
    reached = float(robust(points.array("loss"), predicted).sum())
    return f"objective {reached:.9g}, 32 starts, so {spent * 4500 / 32:.0f} s wall for 4500"


def main(arguments: list[str]) -> None:
    paths = [Path(word) for word in arguments if not word.startswith("--")]
    points = load(paths[0] if paths else DEFAULT)
    settings = FitSettings(replicates=100, huber_delta=DELTA)
    print(f"{len(points)} points")
    timed("ours, 4,500 starts, 100 replicates", lambda: ours(points, settings))
    timed(
        "ours, 4,500 starts, 4,000 replicates",
        lambda: ours(points, replace(settings, replicates=4000)),
    )
    count = None if "--all-starts" in arguments else SOME_STARTS
    timed("scipy L-BFGS-B, a call a start", lambda: scipy_loop(points, count))
    if find_spec("chinchilla"):
        timed("PyPI chinchilla", lambda: chinchilla_package(points))
    else:
        print("PyPI chinchilla: not installed, not timed")

    print("\nlinear in points and in replicates:")
    law = LossSurface(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37, flops_per_size_token=6.0)
    rng = np.random.default_rng(1)
    for number, replicates in ((1_000, 200), (10_000, 200), (100_000, 100), (240, 20_000)):
        size = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), number))
        many = drawn(law, size, np.exp(rng.uniform(np.log(8e8), np.log(3e11), number)), rng)
        chosen = replace(settings, replicates=replicates)
        timed(
            f"ours, {number:,} points, {replicates:,} replicates",
            lambda p=many, s=chosen: ours(p, s),
        )


if __name__ == "__main__":
    main(sys.argv[1:])
