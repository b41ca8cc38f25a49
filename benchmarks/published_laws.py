"""Are other laws of a loss as far off, beyond their points, as L(N, D) is?

    python benchmarks/published_laws.py tables=FOLDER forecasts=FILE [laws=gadre,compute]
        [out=FOLDER]

`benchmarks/published_forecasts.py` found that a fit of L(N, D) is further off than it knows, and
its intervals allow for that by a rate from those tables. Here the other laws of a loss against
compute are fitted to the same tables (`windtunnel fit records=TABLE law=...`, its defaults), and
their forecasts are counted without an allowance and with that of L(N, D), as it is.

The protocol, written before any of these forecasts was looked at (LOG.md, 2026-11-27):

- gadre, L(C, D/N): every table and cut of published_forecasts.py.
- compute, L(C): runs of a budget (compute within 5 %) that has at least three; of each the lowest
  loss. Cuts of the budgets' compute as there; at least five budgets are fitted (three parameters
  and two more), and every lowest loss above is forecast.
- Publishers and weights as in published_allowance.py: every publisher alike, every cut of one.
- The rate is not fitted again: each publisher is judged by what the *others* gave for L(N, D)
  (`forecasts=FILE` of published_forecasts.py), and beside it stands the least rate that would put
  nine in ten of this law's own runs inside.
- A law gets the allowance of L(N, D) where fewer than 85 % are inside without one and the rate it
  would need lies within a factor of 1.5 of that of L(N, D); a rate of its own where it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from measuring import options
from published_allowance import inside, least_rate, publisher, weights
from published_forecasts import (
    SAME_BUDGET,
    columns_of,
    compute_of,
    cuts,
    default_settings,
    parted,
    parts_below,
)

from analysis.asked import forecast_rows
from analysis.drift import GROWTH
from analysis.law_study import make_law_study
from analysis.results import FitError
from analysis.table_options import Columns
from model.errors import ConfigError

RUNS_OF_A_BUDGET, BUDGETS_FITTED = 3, 5
COLUMNS = {"compute": Columns(flops="flops", loss="loss", label="run")}
"""Of a law; of all others those of L(N, D)."""


def lowest_of_budgets(table: pd.DataFrame) -> pd.DataFrame:
    """The lowest loss of every budget that has runs of several sizes."""
    table = table.assign(flops=compute_of(table)).sort_values("flops", ignore_index=True)
    steps = table["flops"] > SAME_BUDGET * table["flops"].shift(fill_value=0.0)
    groups = [group for _, group in table.groupby(steps.cumsum())]
    kept = [group for group in groups if len(group) >= RUNS_OF_A_BUDGET]
    if not kept:
        return table.head(0)
    return pd.concat([group.nsmallest(1, "loss") for group in kept], ignore_index=True)


def prepared(law: str, table: pd.DataFrame) -> pd.DataFrame:
    return lowest_of_budgets(table) if law == "compute" else table


def cuts_of(law: str, name: str, table: pd.DataFrame) -> Iterator[tuple[float, pd.Series]]:
    return parts_below(table["flops"], BUDGETS_FITTED) if law == "compute" else cuts(name, table)


def forecasts(law: str, table: pd.DataFrame, fitted: pd.Series) -> pd.DataFrame:
    """A row a run above the cut."""
    loaded = parted(table, fitted, COLUMNS.get(law) or columns_of(table))
    assert loaded.test is not None
    settings = default_settings()
    study = make_law_study("table", law, loaded.points, loaded.excluded, settings)
    alone = replace(study.fit, form_rate=0.0)
    held = forecast_rows(alone, loaded.test, settings.level)
    return pd.DataFrame(
        {
            "fitted": len(study.points),
            "run": point.label,
            "flops": point.flops,
            "ratio": point.forecast.extrapolation_ratio,
            "measured": point.measured,
            "forecast": point.forecast.value,
            "low_alone": point.forecast.low,
            "high_alone": point.forecast.high,
            "warnings": " ".join(dict.fromkeys(w.status for w in study.fit.warnings)),
        }
        for point in held
    )


def all_forecasts(law: str, folder: Path) -> pd.DataFrame:
    frames = []
    for path in sorted(folder.glob("*.csv")):
        table = prepared(law, pd.read_csv(path))
        for factor, fitted in cuts_of(law, path.stem, table):
            try:
                frame = forecasts(law, table, fitted)
            except (ConfigError, FitError) as error:
                print(f"{law} {path.stem} {factor:.0f}x refused: {error}")
                continue
            frame["table"], frame["factor"] = path.stem, factor
            largest = frame[frame["flops"] * SAME_BUDGET >= frame["flops"].max()]
            frame["top"] = frame.index == largest["measured"].idxmin()
            frames.append(frame)
            top = frame[frame["top"]].iloc[0]
            print(
                f"{law:<8} {path.stem:<24} {factor:>4.0f}x {frame['fitted'].iloc[0]:>4} "
                f"{len(frame):>4}  top {top['ratio']:>4.0f}x "
                f"{top['measured'] / top['forecast'] - 1:+.2%} "
                f"({top['low_alone'] / top['forecast'] - 1:+.1%} to "
                f"{top['high_alone'] / top['forecast'] - 1:+.1%})",
                flush=True,
            )
    every = pd.concat(frames, ignore_index=True)
    every["publisher"] = every["table"].map(publisher)
    every["cut"] = every["table"] + every["factor"].astype(str)
    return every


def judge(law: str, every: pd.DataFrame, additive: pd.DataFrame) -> None:
    """Shares inside, publisher by publisher."""
    without = inside(every, 0.0, GROWTH)
    print(
        f"\n{law}: {without.sum()} of {len(every)} runs inside without an allowance, "
        f"{np.average(without, weights=weights(every)):.1%} with publishers alike; "
        f"{least_rate(every, GROWTH):.2%} an e-fold^{GROWTH:g} would put nine in ten inside, "
        f"{least_rate(additive, GROWTH):.2%} did for L(N, D)"
    )
    shares, tops, runs = [], 0, 0
    for who, own in every.groupby("publisher"):
        rate = least_rate(additive[additive["publisher"] != who], GROWTH)
        held = inside(own, rate, GROWTH)
        shares.append(held.groupby(own["cut"]).mean().mean())
        tops += int(held[own["top"]].sum())
        runs += int(held.sum())
        print(
            f"  {who:<20}{rate:>6.2%}  {without[own.index].groupby(own['cut']).mean().mean():>4.0%}"
            f" without, {shares[-1]:>4.0%} with, {held.sum()} of {len(own)} runs, "
            f"{held[own['top']].sum()} of {own['top'].sum()} top runs"
        )
    print(
        f"  mean {np.mean(shares):.1%}, {runs} of {len(every)} runs, {tops} of "
        f"{every['top'].sum()} top runs ({without[every['top']].sum()} without)"
    )


def main() -> None:
    chosen = options({"tables": "", "forecasts": "", "laws": "gadre,compute", "out": ""})
    if not (chosen["tables"] and chosen["forecasts"]):
        raise SystemExit(
            "tables=FOLDER: what benchmarks/published_tables.py wrote, and forecasts=FILE: what "
            "published_forecasts.py wrote with out="
        )
    additive = pd.read_csv(chosen["forecasts"])
    additive["publisher"] = additive["table"].map(publisher)
    additive["cut"] = additive["table"] + additive["factor"].astype(str)
    for law in chosen["laws"].split(","):
        every = all_forecasts(law, Path(chosen["tables"]))
        judge(law, every, additive)
        if chosen["out"]:
            Path(chosen["out"]).mkdir(parents=True, exist_ok=True)
            every.to_csv(Path(chosen["out"]) / f"published_{law}.csv", index=False)


if __name__ == "__main__":
    main()
