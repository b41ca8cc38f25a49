"""Do forecasts of other people's training runs come true?

    python benchmarks/published_forecasts.py tables=FOLDER [only=NAME,...] [out=FOLDER]

`benchmarks/published_tables.py` makes the tables and says where each comes from. Of each, what
lies below a cut in compute is fitted as `windtunnel fit records=TABLE` does, with its defaults, and
every run above it is forecast and compared with what was measured.

The protocol, written before any forecast was looked at (LOG.md, 2026-11-27):

- The law is L(N, D); N, D and FLOPs as the table gives them, FLOPs 6·N·D where it gives none.
- Cuts: the largest run's compute over 4, 16, 64 and 256. What lies at most 1 % above a cut is
  fitted, so that a budget stays whole. A cut that leaves fewer than 10 runs (two for each parameter
  of the law), none above it, or the same runs as the cut before is left out. `olmo_targets` has
  one cut, between the ladder and its two targets.
- Every run above a cut is forecast. Those of one cut share their fit and are no independent tries,
  so the top run of each is counted apart: of the largest budget (within 5 %) the lowest loss.
- Gates: the standard ones that a table can answer, holdout_error, interval_width, extrapolation
  and fit_health. `noise_floor` is left out: hardly any table has repeated seeds.
- KNOWN says which tables are blind. `opened`: fitted before while the reader of tables was made, no
  forecast looked at. `outcome known`: a forecast of its largest runs was checked before. `used in
  the design`: an outlier of theirs shaped how far one hold-out may widen an interval, or they hold
  the same runs.

Left out, before looking: repeated data (datablations), checkpoints of one run (Gemstones), losses
relative to unigrams (scaling-with-vocab, no logarithm), tables of one size or one token count
(the dense runs of Clark et al., StepLaw's mixtures), pickles (Porian et al., xLSTM).

A row of the output: table, what is known of it, the cut's factor, runs fitted, runs above it, of
these inside their 90 % interval, median of measured over forecast less 1, the same in nats, median
width of the interval over the forecast; of the top run the compute over the largest fitted,
measured over forecast less 1, the interval's ends in the same measure, inside or OUTSIDE, the
gates that object to it; and the fit's warnings.

Added after the first run, for why so many lie outside: counts by reach, the logarithm of compute
over the largest fitted as a share of that of the largest over the smallest fitted, and by whether
the fit's own hold-outs went so far and widened its interval. With `out` all go to a CSV, from which
`published_allowance.py` and `published_picture.py` read.

Since then an interval allows for the law's form (analysis/drift.py) by a rate that was taken from
these very tables. So `alone`, the intervals without it as they were forecast first, is the test of
what runs and hold-outs know; `published_allowance.py` has that of the allowance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from measuring import options, yaml_values

from analysis.asked import forecast_rows
from analysis.holdout import HeldOutPoint
from analysis.results import FitError
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from analysis.summary_lines import furthest_tried
from analysis.table_options import Columns, TableRules
from analysis.tables import Loaded, load_table
from model.errors import ConfigError
from windtunnel.gates import (
    GateThresholds,
    extrapolation_gate,
    health_gate,
    holdout_gate,
    width_gate,
)

FACTORS = (4.0, 16.0, 64.0, 256.0)
WHOLE, SAME_BUDGET, FEWEST = 1.01, 1.05, 10
KNOWN = {
    "gadre": "opened",
    "misfitting": "opened",
    "marin_comma": "opened",
    "marin_dclm": "opened",
    "marin_nemotron": "opened",
    "llama": "opened",
    "marin_moe": "outcome known",
    "chinchilla": "used in the design",
}
"""By how a table's name begins; the others are blind: not one of their rows had been read."""
CONF = Path(__file__).resolve().parents[1] / "conf"
BETWEEN = (1.0, 4.0, 16.0, 64.0, 1e4)
"""Compute over the largest fitted, by which forecasts are counted."""
REACHES = (0.0, 0.25, 0.5, 1.0, 2.0, 1e4)


def known(name: str) -> str:
    return next((what for begin, what in KNOWN.items() if name.startswith(begin)), "blind")


def compute_of(table: pd.DataFrame) -> pd.Series:
    return table["flops"] if "flops" in table else 6.0 * table["params"] * table["tokens"]


def cuts(name: str, table: pd.DataFrame) -> Iterator[tuple[float, pd.Series]]:
    """Each cut's factor, and which rows are fitted."""
    compute = compute_of(table)
    if name == "olmo_targets":
        fitted = ~table["run"].str.startswith("peteish")
        yield float(compute.max() / compute[fitted].max()), fitted
        return
    yield from parts_below(compute, FEWEST)


def parts_below(compute: pd.Series, fewest: int) -> Iterator[tuple[float, pd.Series]]:
    """Each factor under the largest compute, and the rows below it, where at least so many are."""
    before = len(compute)
    for factor in FACTORS:
        fitted = compute <= WHOLE * compute.max() / factor
        if fewest <= fitted.sum() < before:
            yield factor, fitted
            before = int(fitted.sum())


WIDTHS = {"inside": "width", "alone": "width_alone"}


class Forecasts(NamedTuple):
    """Of the runs above a cut, in the table's order."""

    study: Study
    held: list[HeldOutPoint]
    alone: list[HeldOutPoint]
    """Without what intervals allow for the law's form."""


def columns_of(table: pd.DataFrame) -> Columns:
    """Which of the table's columns is what, for a law of size and tokens."""
    return Columns(
        params="params",
        tokens="tokens",
        loss="loss",
        label="run",
        flops="flops" if "flops" in table else None,
        seed="seed" if "seed" in table else None,
    )


def parted(table: pd.DataFrame, fitted: pd.Series, columns: Columns) -> Loaded:
    """As `windtunnel fit records=TABLE test.part=above` reads it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        table.assign(part=np.where(fitted, "below", "above")).to_csv(path, index=False)
        return load_table(path, columns, TableRules(test={"part": "above"}))


def default_settings() -> FitSettings:
    return FitSettings(**yaml_values(CONF / "fit.yaml")["fit"])


def fitted_and_forecast(table: pd.DataFrame, fitted: pd.Series) -> Forecasts:
    """By L(N, D), with the defaults of `windtunnel fit`."""
    loaded, settings = parted(table, fitted, columns_of(table)), default_settings()
    assert loaded.test is not None
    study = make_study("table", loaded.points, loaded.excluded, settings)
    surface = study.surface
    held, alone = (
        list(forecast_rows(fit, loaded.test, settings.level))
        for fit in (surface, replace(surface, form_rate=0.0))
    )
    return Forecasts(study, held, alone)


def rows(name: str, factor: float, forecasts: Forecasts) -> pd.DataFrame:
    """A row a forecast."""
    study = forecasts.study
    thresholds = GateThresholds(**yaml_values(CONF / "gates/standard.yaml"))
    warnings = study.surface.warnings
    of_fit = (holdout_gate(study.holdouts, thresholds), health_gate(warnings, thresholds))
    size, tokens = study.surface.ranges["size"][1], study.surface.ranges["tokens"][1]
    span = np.log(study.surface.largest_compute / study.surface.smallest_compute)
    furthest = furthest_tried(study.holdouts)
    last = study.holdouts[-1] if study.holdouts else None
    found = []
    for point, alone in zip(forecasts.held, forecasts.alone, strict=True):
        forecast = point.forecast
        of_run = (
            width_gate(forecast, thresholds),
            extrapolation_gate(
                {
                    "compute": forecast.extrapolation_ratio,
                    "size": point.size / size,
                    "tokens": point.tokens / tokens,
                },
                thresholds,
            ),
        )
        found.append(
            {
                "table": name,
                "known": known(name),
                "factor": factor,
                "fitted": len(study.points),
                "run": point.label,
                "flops": point.flops,
                "ratio": forecast.extrapolation_ratio,
                "reach": float(np.log(forecast.extrapolation_ratio) / span),
                "untested": forecast.extrapolation_ratio > furthest,
                "widened": study.surface.drift is not None,
                "own_rate": np.nan if last is None else last.rate,
                "own_rate_sd": np.nan if last is None else last.rate_sd,
                "measured": point.measured,
                "forecast": forecast.value,
                "low": forecast.low,
                "high": forecast.high,
                "inside": point.inside,
                "low_alone": alone.forecast.low,
                "high_alone": alone.forecast.high,
                "alone": alone.inside,
                "gates": " ".join(gate.name for gate in (*of_fit, *of_run) if not gate.passed),
                "warnings": " ".join(dict.fromkeys(warning.status for warning in warnings)),
            }
        )
    frame = pd.DataFrame(found)
    frame["miss"] = frame["measured"] / frame["forecast"] - 1
    frame["width"] = (frame["high"] - frame["low"]) / frame["forecast"]
    frame["width_alone"] = (frame["high_alone"] - frame["low_alone"]) / frame["forecast"]
    largest = frame[frame["flops"] * SAME_BUDGET >= frame["flops"].max()]
    frame["top"] = frame.index == largest["measured"].idxmin()
    return frame


def show(frame: pd.DataFrame) -> None:
    """A line a cut."""
    top = frame[frame["top"]].iloc[0]
    nats = (frame["measured"] - frame["forecast"]).median()
    low, high = (top[end] / top["forecast"] - 1 for end in ("low", "high"))
    print(
        f"{top['table']:<24} {top['known']:<18} {top['factor']:>4.0f}x {top['fitted']:>4} "
        f"{len(frame):>4} {frame['inside'].sum():>4} {frame['miss'].median():>+7.2%} {nats:>+7.3f} "
        f"{frame['width'].median():>6.1%}  {top['ratio']:>4.0f}x {top['miss']:>+7.2%} "
        f"({low:+.1%} to {high:+.1%}) {'inside' if top['inside'] else 'OUTSIDE':<7} "
        f"{top['gates'].replace(' ', ', ') or 'no gate'}; {top['warnings'].replace(' ', ', ')}",
        flush=True,
    )


def share(frame: pd.DataFrame, column: str) -> str:
    if frame.empty:
        return "none"
    cut = frame.groupby(["table", "factor"])[column].mean()
    return (
        f"{frame[column].sum():>4} of {len(frame):>4} ({frame[column].mean():>4.0%}), mean "
        f"share of a cut {cut.mean():>4.0%} over {len(cut)}, "
        f"|miss| {frame['miss'].abs().median():.2%}, "
        f"width {frame[WIDTHS[column]].median():.1%}"
    )


def totals(every: pd.DataFrame) -> None:
    """Counts by what is known, by distance, and by what the gates said."""
    parts: dict[str, pd.Series] = {"all": every["fitted"] > 0}
    parts |= {what: every["known"] == what for what in every["known"].unique()}
    for low, high in pairwise(BETWEEN):
        parts[f"{low:g} to {high:g} times"] = (every["ratio"] > low) & (every["ratio"] <= high)
    for low, high in pairwise(REACHES):
        parts[f"reach {low:g} to {high:g}"] = (every["reach"] > low) & (every["reach"] <= high)
    parts["within the hold-outs"] = ~every["untested"]
    parts["beyond, widened"] = every["untested"] & every["widened"]
    parts["beyond, not widened"] = every["untested"] & ~every["widened"]
    parts["no gate objected"] = every["gates"] == ""
    for gate in ("holdout_error", "interval_width", "extrapolation", "fit_health"):
        parts[f"{gate} objected"] = every["gates"].str.contains(gate)
    for status in sorted({word for said in every["warnings"] for word in said.split()}):
        parts[status] = every["warnings"].str.contains(status)
    for title, chosen in (("every run", every), ("top runs", every[every["top"]])):
        for column, which in (("alone", "without what is allowed for the form"), ("inside", "all")):
            print(f"\n{title}, inside, {which}:")
            for name, rule in parts.items():
                print(f"  {name:<24}{share(chosen[rule[chosen.index]], column)}")


def main() -> None:
    chosen = options({"tables": "", "only": "", "out": ""})
    if not chosen["tables"]:
        raise SystemExit("tables=FOLDER: what benchmarks/published_tables.py wrote")
    wanted = set(filter(None, chosen["only"].split(",")))
    frames = []
    for path in sorted(Path(chosen["tables"]).glob("*.csv")):
        if wanted and path.stem not in wanted:
            continue
        table = pd.read_csv(path)
        for factor, fitted in cuts(path.stem, table):
            try:
                forecasts = fitted_and_forecast(table, fitted)
            except (ConfigError, FitError) as error:
                print(f"{path.stem:<24} {factor:>4.0f}x refused: {error}")
                continue
            frames.append(rows(path.stem, factor, forecasts))
            show(frames[-1])
    if not frames:
        raise SystemExit(f"{chosen['tables']}: no table that can be cut")
    every = pd.concat(frames, ignore_index=True)
    totals(every)
    if chosen["out"]:
        Path(chosen["out"]).mkdir(parents=True, exist_ok=True)
        every.to_csv(Path(chosen["out"]) / "published_forecasts.csv", index=False)


if __name__ == "__main__":
    main()
