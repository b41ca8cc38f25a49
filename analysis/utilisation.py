"""How the experts are used, against compute: the activation pattern of a large model forecast too.

The laws of :mod:`analysis.load_laws` as a study keeps them, each with its reason where there is
none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np

from analysis.laws import PowerLaw
from analysis.load_laws import FITTED_AS, LoadMeasure, law_text, load_law
from analysis.records import RunRecord
from analysis.results import Fit, FitError, Prediction
from analysis.settings import FitSettings

MOST_REPLICATES = 300
MEASURES: tuple[LoadMeasure, ...] = get_args(LoadMeasure)
SHARES = ("normalized_entropy", "dead_frac", "top_k_mass")
"""Between 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class UtilisationLaw:
    """One measure against compute: MaxVio (Wang et al., arXiv:2408.15664, eq. 4), normalised
    entropy, dead experts, mass of the chosen scores; the power laws are this project's own."""

    name: LoadMeasure
    fit: Fit | None
    """A PowerLaw of y, or of 1 - y; None where none can be fitted."""
    note: str = ""
    """Why there is none."""

    @property
    def formula(self) -> str:
        """The law in words; empty without one."""
        return law_text(self.fit, self.name) if self.fit is not None else ""

    def __call__(self, flops: float) -> float:
        """The measure at ``flops``; FitError without a law."""
        found = float(self._law()(flops))
        return 1 - found if FITTED_AS[self.name] == "1 - y" else found

    def inverse(self, value: float) -> float:
        """Training FLOPs at which the measure is ``value``; FitError without a law."""
        return self._law().inverse(1 - value if FITTED_AS[self.name] == "1 - y" else value)

    def _law(self) -> PowerLaw:
        if self.fit is None:
            raise FitError(f"{self.name} has no law: {self.note}")
        assert isinstance(self.fit.law, PowerLaw), "all of these are"
        return self.fit.law

    def forecast(self, flops: float, level: float) -> Prediction | None:
        """The measure at ``flops``, a share never beyond 0 and 1; None without a law."""
        if self.fit is None:
            return None
        found = self.fit.predict(flops, level=level)
        if FITTED_AS[self.name] == "1 - y":
            found = replace(found, value=1 - found.value, low=1 - found.high, high=1 - found.low)
        if self.name in SHARES:
            value, low, high = np.clip([found.value, found.low, found.high], 0.0, 1.0).tolist()
            found = replace(found, value=value, low=low, high=high)
        return found


def utilisation_laws(
    records: Sequence[RunRecord], settings: FitSettings
) -> tuple[UtilisationLaw, ...]:
    """The laws of all measures; empty where no run has routed experts."""
    carrying = [record for record in records if record.load_by_layer]
    if not carrying:
        return ()
    quick = replace(settings, replicates=min(settings.replicates, MOST_REPLICATES), held={})
    return tuple(_law(name, carrying, quick) for name in MEASURES)


def _law(name: LoadMeasure, records: Sequence[RunRecord], settings: FitSettings) -> UtilisationLaw:
    try:
        return UtilisationLaw(name=name, fit=load_law(records, name, settings))
    except FitError as error:
        return UtilisationLaw(name=name, fit=None, note=str(error))
