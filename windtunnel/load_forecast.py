"""How evenly the promoted model will load its experts: the study's utilisation laws at its compute.

See :mod:`analysis.utilisation` for the laws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from analysis.records import RunRecord
from analysis.results import Prediction
from analysis.settings import FitSettings
from analysis.utilisation import MEASURES, utilisation_laws


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
    """MaxVio, normalised entropy, dead fraction and top-k score mass at ``train_flops``."""
    laws = utilisation_laws(records, settings)
    if not laws:
        note = f"none of {len(records)} runs measured how its experts are used: no forecast"
        return tuple(
            LoadForecast(name=name, law="", prediction=None, note=note) for name in MEASURES
        )
    return tuple(
        LoadForecast(
            name=law.name,
            law=law.formula,
            prediction=law.forecast(train_flops, level),
            note=law.note,
        )
        for law in laws
    )
