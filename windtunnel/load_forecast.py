"""How evenly the promoted model will load its experts, by :mod:`analysis.load_laws`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

from analysis.load_laws import FITTED_AS, LoadMeasure, law_text, load_law
from analysis.records import RunRecord
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
    return tuple(
        _forecast(records, measure, train_flops, level, settings)
        for measure in get_args(LoadMeasure)
    )


def _forecast(
    records: Sequence[RunRecord],
    measure: LoadMeasure,
    train_flops: float,
    level: float,
    settings: FitSettings,
) -> LoadForecast:
    try:
        fit = load_law(records, measure, settings)
    except FitError as error:
        return LoadForecast(name=measure, law="", prediction=None, note=str(error))
    prediction = fit.predict(train_flops, level=level)
    if FITTED_AS[measure] == "1 - y":
        prediction = _mirrored(prediction)
    return LoadForecast(name=measure, law=law_text(fit, measure), prediction=prediction)


def _mirrored(missing: Prediction) -> Prediction:
    """The prediction of y from that of 1 - y; y is never below 0."""
    return replace(
        missing,
        value=max(0.0, 1 - missing.value),
        low=max(0.0, 1 - missing.high),
        high=max(0.0, 1 - missing.low),
    )
