"""How evenly experts are loaded, as a law of compute: each measure y = a·C^b by the losses' fitter.

A measure is its mean over a run's layers. Simple on purpose: a ladder of small runs carries no
richer law. Entropy is fitted through what it lacks to a perfectly even load, 1 - y, which is what
shrinks or grows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from analysis.fitting import fit_power_law
from analysis.laws import Array
from analysis.records import RunRecord
from analysis.results import Fit, FitError
from analysis.settings import FitSettings

LoadMeasure = Literal["max_vio", "normalized_entropy", "dead_frac", "top_k_mass"]
FITTED_AS = {"max_vio": "y", "normalized_entropy": "1 - y", "dead_frac": "y", "top_k_mass": "y"}
"""What the power law is of."""
ABOVE_ZERO = {
    "max_vio": "loaded one expert above the others",
    "normalized_entropy": "loaded its experts unevenly",
    "dead_frac": "had a dead expert on the held-out text",
    "top_k_mass": "gave its chosen experts any score",
}
"""What a run did whose value is above zero."""


def mean_over_layers(record: RunRecord, measure: LoadMeasure) -> float:
    """``measure`` on the held-out split; the record has the load of one layer or more."""
    return float(np.mean([getattr(layer, measure) for layer in record.load_by_layer]))


def load_law(
    records: Sequence[RunRecord], measure: LoadMeasure, settings: FitSettings | None = None
) -> Fit:
    """The power law through the runs that carry a load.

    Raises:
        FitError: too few runs, one without the measure, or a zero among the values, which no
            power law has.
    """
    carrying = [record for record in records if record.load_by_layer]
    left = FITTED_AS[measure]
    for record in carrying:
        if any(getattr(layer, measure) is None for layer in record.load_by_layer):
            raise FitError(f"{measure} was not measured in run {record.run_id}")
    values = [mean_over_layers(record, measure) for record in carrying]
    if left == "1 - y":
        values = [1 - value for value in values]
    zeros = sum(value <= 0 for value in values)
    if zeros:
        runs = len(values)
        which = (
            f"none of the {runs} runs" if zeros == runs else f"only {runs - zeros} of {runs} runs"
        )
        raise FitError(
            f"{which} {ABOVE_ZERO[measure]}; a power law has no zero, so there is no forecast"
        )
    flops = [record.train_flops for record in carrying]
    return fit_power_law(flops, values, settings, name=measure)


def law_text(fit: Fit, measure: LoadMeasure) -> str:
    """``1 - y = 20·C^-0.2``."""
    a, b = fit.law.parameters
    return f"{FITTED_AS[measure]} = {a:.3g}·C^{b:.3g}"


def band(
    fit: Fit, measure: LoadMeasure, flops: ArrayLike, level: float = 0.9
) -> tuple[Array, Array, Array]:
    """Value, low and high of the measure itself at ``flops``; entropy is never below 0."""
    value, low, high = fit.predict_many(flops, level=level)
    if FITTED_AS[measure] == "y":
        return value, low, high
    return (
        np.maximum(0.0, 1 - value),
        np.maximum(0.0, 1 - high),
        np.maximum(0.0, 1 - low),
    )
