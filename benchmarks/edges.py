"""Cells at the edge of their rates: dropped, taken as they are, or counted as bounds?

    python benchmarks/edges.py [campaigns=300]
    python benchmarks/edges.py tables=FOLDER

Without tables: laws of N and D that are true, their grids of rates fixed for all cells or cut on
one side. A row is a way to treat the cells whose optimum lies beyond the grid: `dropped`, as
`windtunnel fit` does; `edge`, the edge as the optimum; `vertex`, the bowl's minimum beyond it (here
exact); `censored`, the probability of lying beyond it beside the density of the others, one noise
for both (Tobin 1958). Then the exponents' mean error and how many of their 90 % intervals hold, and
at four times the size and tokens of the largest cell the forecast's mean and root mean square error
(log) and the share of new optima inside its interval; of how many campaigns a cell at the edge
contradicts the law (analysis/edge_cells.py).

With the tables of `benchmarks/published_sweeps.py`: their cuts (published_hyperparams.py) as they
are (`whole`), with the rates of the cells fitted cut above or below each rate near the optima
(`upper`, `lower`), and of StepLaw one batch and the same three rates for all cells (`three`). Cells
forecast keep all their runs. The protocol and what came of it are in LOG.md (2026-11-27).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import options
from published_hyperparams import SETTINGS, Cell, cells_of, cuts
from scipy.special import log_ndtr

from analysis.bowl import Bowl
from analysis.edge_cells import contradicting
from analysis.hyperparam_laws import PlaneFit, against_size_and_tokens
from analysis.hyperparams import CellOptimum, Setting
from analysis.results import FitError, Interval

LEVEL = 0.9
LEAST_SD = 1e-6
WAYS = ("dropped", "edge", "vertex", "censored")
BESIDE = 0.2
"""Log of how far a rate may lie from the one wanted."""


def through(optima: Sequence[CellOptimum], setting: Setting, way: str) -> PlaneFit:
    """The law of size and tokens, the cells at the edge treated this way."""
    dropped = against_size_and_tokens(optima, setting, LEVEL)
    at_edge = [o for o in optima if o.beyond(setting)]
    if way == "dropped" or not at_edge:
        return dropped
    inside = [o for o in optima if o.status == "inside" and setting in o.varied]
    cells = [*inside, *at_edge]
    rows = np.array([[1.0, np.log(o.size), np.log(o.tokens)] for o in cells])
    y = np.log([getattr(o, setting) for o in cells])
    side = np.array([0] * len(inside) + [o.beyond(setting) for o in at_edge])
    if way == "vertex":
        for index, o in enumerate(at_edge, start=len(inside)):
            axis = o.bowl.axes.index(setting)
            y[index] = o.bowl.vertex()[axis] + o.bowl.centers[axis]
    if way != "censored":
        taken = [
            replace(o, status="inside", **{setting: float(np.exp(value))})
            for o, value in zip(cells, y, strict=True)
        ]
        return against_size_and_tokens(taken, setting, LEVEL)
    solved, noise_sd, covariance = censored(rows, y, side)
    # A forecast's variance is quadratic in log N and log D: the law's own center and spread.
    spread = covariance / noise_sd**2
    center = -np.linalg.solve(spread[1:, 1:], spread[1:, 0])
    count = 1 / (spread[0, 0] - center @ spread[1:, 1:] @ center)
    law = replace(
        dropped,
        coefficient=float(np.exp(solved[0])),
        noise_sd=noise_sd,
        center=tuple(center),
        spread=tuple(map(tuple, spread[1:, 1:])),
        num_points=max(round(count), 4),
    )
    ends = []
    for index in (1, 2):
        half = law._quantile(LEVEL) * covariance[index, index] ** 0.5
        value = float(solved[index])
        ends.append(Interval(value=value, low=value - half, high=value + half, level=LEVEL))
    return replace(law, size_exponent=ends[0], token_exponent=ends[1])


def censored(
    rows_NP: np.ndarray, y_N: np.ndarray, side_N: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray]:
    """Coefficients, noise and covariance; side is 0 measured, 1 at y or above, -1 at or below.

    Concave in (coefficients, 1) / noise (Olsen 1978). The noise is the likelihood's, with the
    coefficients' degrees of freedom taken off afterwards, each bound counting by its curvature.
    """
    measured = side_N == 0
    mean, scale = rows_NP[measured].mean(axis=0), np.ptp(rows_NP[measured], axis=0)
    mean[0], scale[0] = 0.0, 1.0
    offset = float(y_N[measured].mean())
    terms = np.column_stack([-(rows_NP - mean) / scale, y_N - offset])
    count, parameters = int(measured.sum()), rows_NP.shape[1]
    at, beyond = terms[measured], -side_N[~measured, None] * terms[~measured]

    def value(q: np.ndarray) -> float:
        if q[-1] <= 0:
            return -np.inf
        squares = ((at @ q) ** 2).sum() + count * (LEAST_SD * q[-1]) ** 2
        return float(count * np.log(q[-1]) - squares / 2 + log_ndtr(beyond @ q).sum())

    solved, *_ = np.linalg.lstsq(-at[:, :-1], at[:, -1], rcond=None)
    rest = at[:, -1] + at[:, :-1] @ solved
    q = np.append(solved, 1.0) / max(float(rest.std()), LEAST_SD)
    for _ in range(200):
        z = beyond @ q
        mills = np.exp(-z * z / 2 - log_ndtr(z)) / np.sqrt(2 * np.pi)
        weight = mills * (mills + z)
        gradient = beyond.T @ mills - at.T @ (at @ q)
        gradient[-1] += count / q[-1] - count * LEAST_SD**2 * q[-1]
        curvature = at.T @ at + (beyond.T * weight) @ beyond
        curvature[-1, -1] += count / q[-1] ** 2 + count * LEAST_SD**2
        step = np.linalg.solve(curvature, gradient)
        if gradient @ step < 1e-12:
            break
        share = 1.0
        while share > 1e-12 and value(q + share * step) < value(q) + 1e-4 * share * (
            gradient @ step
        ):
            share /= 2
        q = q + share * step
    sd = 1 / q[-1]
    jacobian = np.column_stack([sd * np.eye(parameters), -q[:-1] * sd**2])
    back = np.diag(1 / scale)
    back[0, 1:] = -mean[1:] / scale[1:]
    effective = count + weight.sum()
    widened = effective / max(effective - parameters, 1)
    covariance = back @ jacobian @ np.linalg.inv(curvature) @ jacobian.T @ back.T
    found = back @ (q[:-1] * sd)
    found[0] += offset
    return found, float(sd * widened**0.5), covariance * widened


def one_cell(size: float, tokens: float, y: float, low: float, high: float) -> CellOptimum:
    """Whose bowl is lowest at log rate y, on a grid from low to high."""
    return CellOptimum(
        size=size, tokens=tokens, flops=size * tokens, peak_lr=float(np.exp(np.clip(y, low, high))),
        batch_tokens=1.0, loss=2.0, status="inside" if low < y < high else "at_edge",
        lr_range=(0.0, 1.0), num_runs=5, varied=("peak_lr",),
        bowl=Bowl(("peak_lr",), (0.0,), 0.0, np.array([-y]), np.array([[1.0]])),
    )  # fmt: skip


def synthetic(
    levels: int, exponents: tuple[float, float], scatter: float, grid: str, campaigns: int
) -> None:
    """One table: levels x levels cells, a factor of four apart."""
    rng = np.random.default_rng(0)
    steps = 4.0 ** np.arange(levels)
    cells = np.array(list(itertools.product(1e6 * steps, 2e7 * steps)))
    mean, powers = np.log(cells) @ exponents, np.array(exponents)
    middle, step = mean.mean(), np.log(2.0)
    further = np.log(4 * cells[-1])
    found: dict[str, list[tuple[float, ...]]] = {way: [] for way in WAYS}
    bounded, wrong = [], 0
    for _ in range(campaigns):
        y = mean + scatter * rng.standard_normal(len(mean))
        low, high = {
            "three rates": (np.full(len(mean), middle - step), np.full(len(mean), middle + step)),
            "upper cut": (mean - 9, np.full(len(mean), np.quantile(mean, 0.67))),
            "lower cut": (np.full(len(mean), np.quantile(mean, 0.33)), mean + 9),
        }[grid]
        optima = [one_cell(*place, *at) for place, *at in zip(cells, y, low, high, strict=True)]
        new = float(np.exp(further @ powers + scatter * rng.standard_normal()))
        try:
            laws = {way: replace(through(optima, "peak_lr", way), form_rate=0.0) for way in WAYS}
        except FitError:
            continue
        bounded.append(np.mean([o.beyond("peak_lr") != 0 for o in optima]))
        dropped = laws["dropped"]
        wrong += bool(
            contradicting(optima, "peak_lr", lambda o, d=dropped: d.predict(o.size, o.tokens))
        )
        for way, law in laws.items():
            said = law.predict(*np.exp(further))
            both = law.size_exponent, law.token_exponent
            found[way].append(
                (
                    *(e.value - p for e, p in zip(both, powers, strict=True)),
                    *(float(e.contains(p)) for e, p in zip(both, powers, strict=True)),
                    float(np.log(said.value) - further @ powers),
                    float(said.contains(new)),
                )
            )
    print(
        f"\n{len(cells)} cells, N^{exponents[0]} D^{exponents[1]}, scatter {scatter}, {grid}: "
        f"{len(bounded)} of {campaigns} campaigns have a law, {np.mean(bounded):.0%} of cells at "
        f"the edge, contradicted {wrong / len(bounded):.0%}"
    )
    for way, each in found.items():
        size, tokens, size_in, tokens_in, off, inside = np.array(each).T
        print(
            f"  {way:<9} exponents off {size.mean():+.3f} {tokens.mean():+.3f}, inside "
            f"{size_in.mean():.0%} {tokens_in.mean():.0%}; forecast off {off.mean():+.3f}, "
            f"{np.sqrt((off**2).mean()):.3f}, inside {inside.mean():.0%}"
        )


Kind = tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]


def kinds(table: pd.DataFrame, cells: Sequence[Cell]) -> Iterator[Kind]:
    """What is kept of a cell's runs."""
    yield "whole", lambda runs: runs
    rates = np.unique(table["peak_lr"])
    optima = [cell.optimum.peak_lr for cell in cells if cell.optimum.status == "inside"]
    near = rates[(rates > 0.9 * min(optima)) & (rates < 1.1 * max(optima))]
    for rate in near:
        yield "upper", lambda runs, r=rate: runs[runs["peak_lr"] <= r * (1 + 1e-9)]
        yield "lower", lambda runs, r=rate: runs[runs["peak_lr"] >= r * (1 - 1e-9)]
    if "batch_tokens" in table:
        for rate in rates:
            yield "three", lambda runs, r=rate: three_rates(runs, r)


def three_rates(runs: pd.DataFrame, least: float) -> pd.DataFrame:
    """One, two and four times the least rate, at the batch of the lowest run; none if not tried."""
    one = runs[runs["batch_tokens"] == runs.loc[runs["loss"].idxmin(), "batch_tokens"]]
    tried = np.unique(one["peak_lr"])
    wanted = least * np.array([1.0, 2.0, 4.0])
    taken = [tried[np.abs(np.log(tried / rate)).argmin()] for rate in wanted]
    is_near = np.abs(np.log(taken / wanted)).max() <= BESIDE
    return one[one["peak_lr"].isin(taken)] if is_near else one[:0]


def published(folder: Path) -> pd.DataFrame:
    """A row a table, kind, cut and held-out cell with its optimum inside."""
    rows = []
    for path in sorted(folder.glob("*.csv")):
        if path.stem.startswith("steplaw_moe_"):
            continue  # one of the mixtures: one size
        table = pd.read_csv(path)
        cells = cells_of(table)
        for number, (kind, kept) in enumerate(kinds(table, cells)):
            part = kept_of(table, kept)
            for cut, fitted, above in cuts(path.stem, cells):
                optima = [part[place_of(cell)] for cell in fitted if place_of(cell) in part]
                rows += forecast_rows((path.stem, kind, f"{number} {cut}"), optima, above)
    return pd.DataFrame(rows)


def place_of(cell: Cell) -> tuple[float, float]:
    return cell.optimum.size, float(cell.points.array("tokens")[0])


def kept_of(
    table: pd.DataFrame, kept: Callable[[pd.DataFrame], pd.DataFrame]
) -> dict[tuple[float, float], CellOptimum]:
    """The optimum of what is kept of each cell, by its place."""
    found = {}
    for place, runs in table.groupby(["params", "tokens"]):
        if len(part := kept(runs)):
            (cell,) = cells_of(part)
            found[place] = cell.optimum
    return found


def forecast_rows(
    where: tuple[str, str, str], optima: Sequence[CellOptimum], above: Sequence[Cell]
) -> Iterator[dict[str, object]]:
    varied = [name for name in SETTINGS if any(name in o.varied for o in optima)]
    try:
        laws = {way: {name: through(optima, name, way) for name in varied} for way in WAYS}
    except FitError:
        return
    if not varied:
        return
    dropped = laws["dropped"]["peak_lr"]
    wrong = contradicting(optima, "peak_lr", lambda o: dropped.predict(o.size, o.tokens, LEVEL))
    some = sum(o.beyond("peak_lr") != 0 for o in optima)
    said = "contradicted" if wrong else "agreed with" if some else "no cell at the edge"
    for cell in above:
        place = cell.optimum.size, cell.optimum.tokens
        row = dict(zip(("table", "kind", "cut"), where, strict=True)) | {"edge": said}
        for way, law in laws.items():
            if cell.optimum.varied and set(cell.optimum.varied) <= set(law):
                at = {name: law[name](*place) for name in cell.optimum.varied}
                row[f"{way} cost"] = cell.regret(at)[0] / float(cell.points.array("loss").min())
            if cell.optimum.status == "inside":
                rate = law["peak_lr"].predict(*place, LEVEL)
                row[f"{way} inside"] = float(rate.contains(cell.optimum.peak_lr))
                row[f"{way} off²"] = float(np.log(rate.value / cell.optimum.peak_lr) ** 2)
        yield row


def show(every: pd.DataFrame, by: list[str]) -> None:
    for names, frame in every.groupby(by):
        print(f"{', '.join(names)}: {len(frame.groupby(['table', 'cut']))} cuts")
        for way in WAYS:
            cost, inside = frame.get(f"{way} cost"), frame[f"{way} inside"].dropna()
            paid = "" if cost is None or cost.isna().all() else f", cost {cost.mean():.3%}"
            print(
                f"  {way:<9} {inside.sum():.0f} of {len(inside)} inside ({inside.mean():.0%}), off "
                f"{np.sqrt(frame[f'{way} off²'].mean()):.2f} of the log{paid}"
            )


def main() -> None:
    chosen = options({"tables": "", "campaigns": "300"})
    if chosen["tables"]:
        every = published(Path(chosen["tables"]))
        for by in (["table", "kind"], ["kind", "edge"], ["table", "edge"], ["edge"]):
            print()
            show(every, by)
        return
    for levels, exponents, scatter, grid in (
        (3, (-0.3, 0.1), 0.2, "three rates"),
        (4, (-0.3, 0.1), 0.2, "three rates"),
        (4, (-0.3, 0.1), 0.4, "three rates"),
        (3, (-0.7, 0.3), 0.2, "upper cut"),
        (4, (-0.7, 0.3), 0.08, "lower cut"),
        (4, (-0.7, 0.3), 0.4, "lower cut"),
    ):
        synthetic(levels, exponents, scatter, grid, int(chosen["campaigns"]))


if __name__ == "__main__":
    main()
