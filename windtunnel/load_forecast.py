"""How evenly the promoted model will load its experts: power laws against compute.

Each measure, averaged over a run's layers, is fitted as y = a·C^b by the same fitter as the losses.
Simple on purpose: a ladder of small runs carries no richer law. Entropy is forecast through what it
lacks to a perfectly even load, 1 - y, which is what shrinks or grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.fitting import fit_power_law
from analysis.records import LayerLoad, RunRecord
from analysis.results import FitError, Prediction
from analysis.settings import FitSettings


@dataclass(frozen=True, kw_only=True)
class LoadForecast:
    """One measure of expert load on the held-out split, mean over layers."""

    name: str
    law: str
    prediction: Prediction | None
    """None where no law can be fitted; the note says why."""
    note: str = ""


def forecast_loads(
    records: Sequence[RunRecord], train_flops: float, level: float, settings: FitSettings
) -> tuple[LoadForecast, ...]:
    """MaxVio, normalised entropy and dead fraction at ``train_flops``."""
    carrying = [record for record in records if record.load_by_layer]

    def forecast(name: str, left: str, measure: Callable[[LayerLoad], float]) -> LoadForecast:
        values = [float(np.mean([measure(load) for load in r.load_by_layer])) for r in carrying]
        return _forecast(name, left, carrying, values, train_flops, level, settings)

    entropy = forecast("normalized_entropy", "1 - y", lambda load: 1 - load.normalized_entropy)
    return (
        forecast("max_vio", "y", lambda load: load.max_vio),
        replace(entropy, prediction=_mirrored(entropy.prediction)),
        forecast("dead_frac", "y", lambda load: load.dead_frac),
    )


def _forecast(
    name: str,
    left: str,
    records: Sequence[RunRecord],
    values: Sequence[float],
    train_flops: float,
    level: float,
    settings: FitSettings,
) -> LoadForecast:
    zeros = sum(value <= 0 for value in values)
    if zeros:
        which = "every run" if zeros == len(values) else f"{zeros} of {len(values)} runs"
        note = f"{left} is 0 in {which}, and a power law has no zero: no forecast"
        return LoadForecast(name=name, law="", prediction=None, note=note)
    flops = [record.train_flops for record in records]
    try:
        fit = fit_power_law(flops, values, settings, name=name)
    except FitError as error:
        return LoadForecast(name=name, law="", prediction=None, note=str(error))
    a, b = fit.law.parameters
    return LoadForecast(
        name=name,
        law=f"{left} = {a:.3g}·C^{b:.3g}",
        prediction=fit.predict(train_flops, level=level),
    )


def _mirrored(missing: Prediction | None) -> Prediction | None:
    """The prediction of y from that of 1 - y; y is never below 0."""
    if missing is None:
        return None
    return replace(
        missing,
        value=max(0.0, 1 - missing.value),
        low=max(0.0, 1 - missing.high),
        high=max(0.0, 1 - missing.low),
    )
