"""Do forecasts of learning rate and batch hold on other people's sweeps?

    python benchmarks/published_hyperparams.py tables=FOLDER [only=NAME,...] [out=FOLDER]

`benchmarks/published_sweeps.py` makes the tables. Of each, the cells (one size and token count)
below a cut are fitted as `windtunnel fit law=learning_rate` does, with its defaults, and every cell
above it is forecast and compared with the optimum that its own runs show.

The protocol is in LOG.md (2026-11-27), committed before the first forecast: cuts by compute and by
size; inside or not is counted over cells whose optimum lies inside what they tried; the regret of a
learning rate and batch is the loss there, linear between the cell's own runs in log rate, log batch
and log loss, less the lowest loss of the cell, at the nearest setting tried where it lies outside.

A row of the output: a law or rule, forecasts made; median, mean and worst regret in nats and in
percent of the loss; how many settings lay outside what the cell had tried; rates among the cell's
near-optimal ones; and of rate and batch the median factor that the forecast is off by, forecasts
inside their 90 % interval with its median half width, `alone` the same with nothing for the law's
form, and how many meet the 90 % interval of the measured optimum itself.

The allowance for the form (analysis/hyperparam_laws.py) is from these very sweeps. The last lines
judge it: each campaign by the rate that the others make, and all of them by distance. The first run
was of the library before: bowls of all runs alike, no allowance (LOG.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from measuring import options, yaml_values
from scipy.interpolate import LinearNDInterpolator
from scipy.special import stdtrit

from analysis.bowl import COUNTS, bowl_terms, nearness
from analysis.drift import GROWTH
from analysis.hyperparam_laws import (
    FORM_RATE,
    against_compute,
    against_size_and_tokens,
)
from analysis.hyperparams import CellOptimum, Setting, cell_optima
from analysis.points import Points, make_points
from analysis.results import FitError, Prediction
from analysis.robust import robust_sd
from analysis.settings import FitSettings

FACTORS = (4.0, 16.0, 64.0, 256.0)
SIZES_LEFT_OUT = (1, 2, 3)
WHOLE, FEWEST = 1.01, 4
DISTANCES = (0.0, 1e-9, 0.7, 1.4, 2.1, 10.0)
"""E-folds of size and tokens beyond the cells fitted, by which forecasts are counted."""
CONF = Path(__file__).resolve().parents[1] / "conf"
SETTINGS: tuple[Setting, ...] = ("peak_lr", "batch_tokens")
Rule = Callable[[CellOptimum], dict[Setting, float]]


def published_rules() -> dict[str, Callable[[float, float], dict[Setting, float]]]:
    """Learning rate and batch in tokens at N and D; DeepSeek's and Ling's are laws of C = M·D."""

    def of_compute(lr: tuple[float, float], batch: tuple[float, float]):
        return lambda N, D: {
            "peak_lr": lr[0] * (6 * N * D) ** lr[1],
            "batch_tokens": batch[0] * (6 * N * D) ** batch[1],
        }

    return {
        "StepLaw's formula": lambda N, D: {
            "peak_lr": 1.79 * N**-0.713 * D**0.307,
            "batch_tokens": 0.58 * D**0.571,
        },
        "DeepSeek's formula": of_compute((0.3118, -0.1250), (0.2920, 0.3271)),
        "Ling's formula": of_compute((1.1576, -0.1529), (0.0694, 0.3644)),
    }


@dataclass(frozen=True)
class Cell:
    """One size and token count: its runs, and the optimum that they show."""

    points: Points
    optimum: CellOptimum

    def regret(self, at: dict[Setting, float]) -> tuple[float, bool]:
        """Nats above the lowest loss, and whether the setting lay outside what was tried."""
        names = [name for name in SETTINGS if name in self.optimum.varied]
        x_NK = np.log([self.points.array(name) for name in names]).T
        loss_N = self.points.array("loss")
        wanted = np.log([at[name] for name in names])
        asked = np.clip(wanted, x_NK.min(axis=0), x_NK.max(axis=0))
        if len(names) == 1:
            mean = pd.Series(np.log(loss_N)).groupby(x_NK[:, 0]).mean()
            found = float(np.interp(asked[0], mean.index, mean.to_numpy()))
        else:
            found = float(LinearNDInterpolator(x_NK, np.log(loss_N))(asked)[0])
            if np.isnan(found):  # a corner that nobody ran
                found = float(np.log(loss_N)[((x_NK - asked) ** 2).sum(axis=1).argmin()])
        outside = bool(np.abs(asked - wanted).max() > 1e-9)
        return float(np.exp(found)) - float(loss_N.min()), outside


def points_of(table: pd.DataFrame) -> Points:
    size, tokens = table["params"].to_numpy(float), table["tokens"].to_numpy(float)
    return make_points(
        size_variable="params",
        label=[f"row {row}" for row in table.index],
        size=size,
        tokens=tokens,
        loss=table["loss"].to_numpy(float),
        flops=6 * size * tokens,
        extra={name: tuple(table[name].tolist()) for name in SETTINGS if name in table},
    )


def cells_of(table: pd.DataFrame) -> list[Cell]:
    """By compute, smallest first."""
    found = []
    for _, rows in table.groupby(["params", "tokens"]):
        points = points_of(rows)
        (optimum,) = cell_optima(points)
        found.append(Cell(points, optimum))
    return sorted(found, key=lambda cell: cell.optimum.flops)


def cuts(name: str, cells: Sequence[Cell]) -> Iterator[tuple[str, list[Cell], list[Cell]]]:
    """What a cut is called, the cells to be fitted and those to be forecast."""
    optima = [cell.optimum for cell in cells]
    largest = max(o.flops for o in optima)
    sizes = sorted({o.size for o in optima})
    rules: dict[str, Callable[[CellOptimum], bool]] = {}
    if len(sizes) == 1:
        most = max(o.tokens for o in optima)
        rules["tokens"] = lambda o: o.tokens < most
    else:
        for factor in FACTORS:
            rules[f"compute/{factor:.0f}"] = lambda o, f=factor: o.flops <= WHOLE * largest / f
        for count in SIZES_LEFT_OUT:
            rules[f"sizes -{count}"] = lambda o, n=count: o.size in sizes[:-n]
    before = []
    for title, rule in rules.items():
        fitted = [cell for cell in cells if rule(cell.optimum)]
        fewest = FEWEST if len(sizes) > 1 else FEWEST - 1
        if fewest <= len(fitted) < len(cells) and len(fitted) not in before:
            before.append(len(fitted))
            yield title, fitted, [cell for cell in cells if not rule(cell.optimum)]


def carried(largest: CellOptimum, power: float) -> Rule:
    """The largest fitted cell's optimum, the batch growing as D^power and the rate with it."""

    def rule(of: CellOptimum) -> dict[Setting, float]:
        times = (of.tokens / largest.tokens) ** power
        return {
            "peak_lr": largest.peak_lr * times**power,
            "batch_tokens": largest.batch_tokens * times,
        }

    return rule


Forecast = Callable[[CellOptimum], dict[Setting, Prediction]]


def forecasts(fitted: Sequence[Cell], settings: FitSettings) -> dict[str, tuple[Forecast, ...]]:
    """Of the laws that can be fitted to these cells: with all that an interval holds, and without
    what it allows for the law's form."""
    optima = [cell.optimum for cell in fitted]
    varied = [name for name in SETTINGS if any(name in o.varied for o in optima)]
    laws: dict[str, tuple[Callable[..., Any], Callable[[CellOptimum], tuple[float, ...]]]] = {
        "against C": (
            lambda name: against_compute(optima, name, settings),
            lambda o: (o.flops,),
        ),
        "against N, D": (
            lambda name: against_size_and_tokens(optima, name, settings.level),
            lambda o: (o.size, o.tokens),
        ),
    }
    found = {}
    for title, (fit, place) in laws.items():
        try:
            fits = {name: fit(name) for name in varied}
        except FitError as error:
            print(f"    no law {title}: {error}")
            continue
        both = fits, {name: replace(law, form_rate=0.0) for name, law in fits.items()}
        found[title] = tuple(
            lambda o, laws=laws, place=place: {
                name: law.predict(*place(o), level=settings.level) for name, law in laws.items()
            }
            for laws in both
        )
        if title == "against N, D":
            apart = {name: plane.apart(settings.level) for name, plane in fits.items()}
            for name, exponent in apart.items():
                held = "alike" if exponent.contains(0.0) else "APART"
                print(f"    {name}: size and tokens {held}, {exponent.value:+.2f}")
    return found


def distance(of: CellOptimum, fitted: Sequence[Cell]) -> float:
    """E-folds of size and tokens beyond those of the cells fitted whose optimum lies inside."""
    inside = [cell.optimum for cell in fitted if cell.optimum.status == "inside"]
    off = []
    for name in ("size", "tokens"):
        values, at = [getattr(o, name) for o in inside], getattr(of, name)
        off.append(max(np.log(at / max(values)), np.log(min(values) / at), 0.0))
    return float(np.hypot(*off))


def own_interval(cell: Cell, name: Setting, level: float) -> tuple[float, float] | None:
    """The measured optimum's interval, by linear propagation of the scatter about its bowl."""
    bowl = cell.optimum.bowl
    if bowl is None or name not in bowl.axes:
        return None
    x_NK = np.log([cell.points.array(axis) for axis in bowl.axes]).T - np.array(bowl.centers)
    log_loss_N = np.log(cell.points.array("loss"))
    count, rows = len(bowl.axes), bowl_terms(x_NK)
    near = nearness(log_loss_N, count)
    degrees = near.sum() - rows.shape[1]
    if degrees < 1:
        return None
    residual = (log_loss_N - np.array([bowl(x) for x in x_NK])) * np.sqrt(near)
    sd = robust_sd(residual[near >= COUNTS], rows.shape[1])
    covariance = np.linalg.pinv(rows.T @ (near[:, None] * rows)) * sd**2
    vertex = -np.linalg.solve(bowl.hessian_KK, bowl.slope_K)
    # d vertex = -H^-1 (d slope + dH vertex); the second derivative of x_i² is 2.
    step = np.zeros((count, rows.shape[1]))
    step[:, 1 : 1 + count] = np.eye(count)
    pairs = [(i, j) for i in range(count) for j in range(i, count)]
    for column, (i, j) in enumerate(pairs, start=1 + count):
        step[i, column] += vertex[j]
        step[j, column] += vertex[i]
    jacobian = -np.linalg.solve(bowl.hessian_KK, step)
    index = bowl.axes.index(name)
    half = float(stdtrit(degrees, (1 + level) / 2)) * float(
        (jacobian @ covariance @ jacobian.T)[index, index] ** 0.5
    )
    at = getattr(cell.optimum, name)
    return at * np.exp(-half), at * np.exp(half)


def rows(table: str, cut: str, fitted: list[Cell], above: list[Cell], settings: FitSettings):
    """A row a held-out cell and law or rule."""
    largest = fitted[-1].optimum
    laws = forecasts(fitted, settings)
    rules: dict[str, Rule] = {"largest cell's": carried(largest, 0.0)}
    if "batch_tokens" in largest.varied:
        rules |= {"grown as sqrt": carried(largest, 0.5), "grown linearly": carried(largest, 1.0)}
    for title, formula in published_rules().items():
        rules[title] = lambda o, f=formula: f(o.size, o.tokens)
    for title, law in laws.items():
        rules[title] = lambda o, f=law[0]: {name: p.value for name, p in f(o).items()}
    for cell in above:
        optimum = cell.optimum
        rules["own bowl"] = lambda o: {name: getattr(o, name) for name in SETTINGS}
        for title, rule in rules.items():
            at = rule(optimum)
            if not set(optimum.varied) <= set(at) or not optimum.varied:
                continue
            regret, outside = cell.regret(at)
            row = {
                "table": table, "cut": cut, "rule": title, "fitted": len(fitted),
                "inside_cells": sum(c.optimum.status == "inside" for c in fitted),
                "size": optimum.size, "tokens": optimum.tokens, "status": optimum.status,
                "regret": regret, "share": regret / float(cell.points.array("loss").min()),
                "outside": outside, "distance": distance(optimum, fitted),
            }  # fmt: skip
            for name in optimum.varied:
                row |= {f"{name}_at": at[name], f"{name}_measured": getattr(optimum, name)}
                if title in laws:
                    forecast, alone = (law(optimum)[name] for law in laws[title])
                    own = own_interval(cell, name, settings.level)
                    measured = getattr(optimum, name)
                    row |= {
                        f"{name}_low": forecast.low,
                        f"{name}_high": forecast.high,
                        f"{name}_inside": forecast.contains(measured),
                        f"{name}_half_alone": np.log(alone.high / alone.low) / 2,
                        f"{name}_alone": alone.contains(measured),
                        f"{name}_meets": None
                        if own is None
                        else forecast.low <= own[1] and own[0] <= forecast.high,
                        f"{name}_ratio": forecast.extrapolation_ratio,
                    }
            low, high = optimum.lr_range
            row["near"] = low <= at["peak_lr"] <= high if "peak_lr" in at else None
            yield row


def show(title: str, every: pd.DataFrame) -> None:
    """A line a law or rule."""
    print(f"\n{title}")
    for rule, frame in every.groupby("rule", sort=False):
        held = frame[frame["status"] == "inside"]
        said = []
        for name in SETTINGS:
            if f"{name}_measured" not in held or held[f"{name}_measured"].isna().all():
                continue
            off = np.abs(np.log(held[f"{name}_at"] / held[f"{name}_measured"])).median()
            text = f"{name[:5]} off {np.exp(off):.2f}x"
            if f"{name}_inside" in held and held[f"{name}_inside"].notna().any():
                inside = held[f"{name}_inside"].dropna().astype(bool)
                meets = held[f"{name}_meets"].dropna().astype(bool)
                half = np.log(held[f"{name}_high"] / held[f"{name}_low"]).median() / 2
                alone = held[f"{name}_alone"].dropna().astype(bool).sum()
                narrow = held[f"{name}_half_alone"].median()
                text += f", inside {inside.sum()} of {len(inside)} (x/ {np.exp(half):.2f}), "
                text += f"alone {alone} (x/ {np.exp(narrow):.2f})"
                text += f", meets {meets.sum()} of {len(meets)}" if len(meets) else ""
            said.append(text)
        near = held["near"].dropna().astype(bool)
        print(
            f"  {rule:<19}{len(frame):>4} "
            f"regret {frame['regret'].median():.4f}, {frame['regret'].mean():.4f}, "
            f"{frame['regret'].max():.4f} nats ({frame['share'].median():.2%}, "
            f"{frame['share'].mean():.2%}, {frame['share'].max():.2%}); "
            f"{frame['outside'].sum()} outside; near {near.sum()} of {len(near)}; "
            f"{'; '.join(said)}"
        )


def lacking(every: pd.DataFrame, rate: float) -> pd.Series:
    """Share inside, of each campaign and setting and cut, with so much allowed for the form."""
    half = np.hypot(every["half"], rate * every["distance"] ** GROWTH)
    return (
        (half >= every["off"].abs()).groupby([every["table"], every["name"], every["cut"]]).mean()
    )


def rate_of(every: pd.DataFrame, level: float) -> float:
    """The least rate with which the mean over campaigns and settings reaches the level."""
    for rate in np.linspace(0, 2, 401):
        if lacking(every, rate).groupby(["table", "name"]).mean().mean() >= level:
            return float(rate)
    return float("nan")


def of_size_and_tokens(every: pd.DataFrame) -> pd.DataFrame:
    """A row a forecast of a law of N and D and setting: how far off, and the half width alone."""
    law = every[(every["rule"] == "against N, D") & (every["status"] == "inside")]
    return pd.concat(
        pd.DataFrame(
            {
                "table": law["table"],
                "cut": law["cut"],
                "name": name,
                "distance": law["distance"],
                "half": law[f"{name}_half_alone"],
                "off": np.log(law[f"{name}_measured"] / law[f"{name}_at"]),
            }
        ).dropna()
        for name in SETTINGS
    )


def allowance(every: pd.DataFrame, level: float) -> None:
    """What intervals of the laws of N and D lack by distance, each campaign by the others' rate."""
    long = of_size_and_tokens(every)
    print(f"\nmean share inside without: {lacking(long, 0.0).mean():.0%} of a cut; needed rate")
    print(f"  of all campaigns {rate_of(long, level):.2f}")
    for table in long["table"].unique():
        others = rate_of(long[long["table"] != table], level)
        own = lacking(long[long["table"] == table], others)
        print(f"  {table}: by the others' rate {others:.2f} {own.mean():.0%} of a cut inside")
    for low, high in pairwise(DISTANCES):
        part = long[(long["distance"] >= low) & (long["distance"] < high)]
        shares = [f"{lacking(part, rate).mean():.0%}" for rate in (0.0, FORM_RATE)]
        print(
            f"  {low:g} to {high:g} e-folds: {len(part)} forecasts, {' and '.join(shares)} of a "
            f"cut inside without and with {FORM_RATE}, off by a factor of "
            f"{np.exp(part['off'].abs().median()):.2f}"
        )


def main() -> None:
    chosen = options({"tables": "", "only": "", "out": ""})
    if not chosen["tables"]:
        raise SystemExit("tables=FOLDER: what benchmarks/published_sweeps.py wrote")
    wanted = set(filter(None, chosen["only"].split(",")))
    settings = FitSettings(**yaml_values(CONF / "fit.yaml")["fit"])
    found = []
    for path in sorted(Path(chosen["tables"]).glob("*.csv")):
        if wanted and path.stem not in wanted:
            continue
        cells = cells_of(pd.read_csv(path))
        statuses = pd.Series([cell.optimum.status for cell in cells]).value_counts()
        print(f"{path.stem}: {len(cells)} cells, {statuses.to_dict()}", flush=True)
        for cut, fitted, above in cuts(path.stem, cells):
            print(f"  {cut}: {len(fitted)} fitted, {len(above)} forecast", flush=True)
            found += rows(path.stem, cut, fitted, above, settings)
    every = pd.DataFrame(found)
    for (table, cut), frame in every.groupby(["table", "cut"], sort=False):
        show(f"{table} {cut}", frame)
    for table, frame in every.groupby("table", sort=False):
        show(f"{table}, all cuts", frame)
    allowance(every, settings.level)
    if chosen["out"]:
        Path(chosen["out"]).mkdir(parents=True, exist_ok=True)
        every.to_csv(Path(chosen["out"]) / "published_hyperparams.csv", index=False)


if __name__ == "__main__":
    main()
