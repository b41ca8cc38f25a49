"""How evenly the promoted model will load its experts: power laws against compute.

Each measure, averaged over a run's layers, is fitted as log y = a + b·log C by least squares; the
interval is the usual one for a new observation (Student's t, residual spread included). Simple on
purpose: a handful of small runs carries no richer law, and the ledger judges it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.records import LayerLoad, RunRecord
from analysis.results import Prediction

FEWEST_RUNS = 5
"""Two parameters and a spread; below this the interval says nothing."""


@dataclass(frozen=True, kw_only=True)
class LoadForecast:
    """One measure of expert load on the held-out split, mean over layers."""

    name: str
    law: str
    prediction: Prediction | None
    """None where no law can be fitted; the note says why."""
    note: str = ""


def forecast_loads(
    records: Sequence[RunRecord], train_flops: float, level: float
) -> tuple[LoadForecast, ...]:
    """MaxVio, normalised entropy and dead fraction at ``train_flops``."""
    carrying = [record for record in records if record.load_by_layer]
    if len(carrying) < FEWEST_RUNS:
        note = f"{len(carrying)} records carry expert loads, at least {FEWEST_RUNS} are needed"
        names = ("max_vio", "normalized_entropy", "dead_frac")
        return tuple(LoadForecast(name=n, law="", prediction=None, note=note) for n in names)
    flops = [record.train_flops for record in carrying]
    max_vio = _mean(carrying, lambda load: load.max_vio)
    missing_entropy = _mean(carrying, lambda load: 1 - load.normalized_entropy)
    dead = _mean(carrying, lambda load: load.dead_frac)
    entropy = _forecast("normalized_entropy", "1 - y", flops, missing_entropy, train_flops, level)
    return (
        _forecast("max_vio", "y", flops, max_vio, train_flops, level),
        _mirrored(entropy),
        _forecast("dead_frac", "y", flops, dead, train_flops, level),
    )


def _mean(records: Sequence[RunRecord], measure: Callable[[LayerLoad], float]) -> list[float]:
    return [float(np.mean([measure(load) for load in r.load_by_layer])) for r in records]


def _forecast(
    name: str, left: str, flops: list[float], values: list[float], at: float, level: float
) -> LoadForecast:
    zeros = sum(value <= 0 for value in values)
    if zeros:
        every = "every run" if zeros == len(values) else f"{zeros} of {len(values)} runs"
        note = f"{left} is 0 in {every}, and a power law has no zero: no forecast"
        return LoadForecast(name=name, law="", prediction=None, note=note)
    x, y = np.log(flops), np.log(values)
    if np.ptp(x) == 0:
        note = "every run took the same compute: no trend can be fitted"
        return LoadForecast(name=name, law="", prediction=None, note=note)
    line = stats.linregress(x, y)
    degrees = len(x) - 2
    spread = math.sqrt(float(np.sum((y - line.intercept - line.slope * x) ** 2)) / degrees)
    away = (math.log(at) - x.mean()) ** 2 / float(np.sum((x - x.mean()) ** 2))
    half = float(stats.t.ppf((1 + level) / 2, degrees)) * spread * math.sqrt(1 + 1 / len(x) + away)
    middle = float(line.intercept + line.slope * math.log(at))
    return LoadForecast(
        name=name,
        law=f"{left} = {math.exp(line.intercept):.3g}·C^{line.slope:.3g}",
        prediction=Prediction(
            value=math.exp(middle),
            low=math.exp(middle - half),
            high=math.exp(middle + half),
            level=level,
            extrapolation_ratio=at / max(flops),
        ),
    )


def _mirrored(forecast: LoadForecast) -> LoadForecast:
    """The forecast of y from that of 1 - y; y is never below 0."""
    missing = forecast.prediction
    if missing is None:
        return forecast
    return LoadForecast(
        name=forecast.name,
        law=forecast.law,
        prediction=Prediction(
            value=max(0.0, 1 - missing.value),
            low=max(0.0, 1 - missing.high),
            high=max(0.0, 1 - missing.low),
            level=missing.level,
            extrapolation_ratio=missing.extrapolation_ratio,
        ),
    )
