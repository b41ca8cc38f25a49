"""Forecasts of optima where the caller asks for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from analysis.asked import everything_named
from analysis.hyperparam_laws import PlaneFit
from analysis.points import Points
from analysis.results import Fit, Prediction
from analysis.settings import FitSettings
from model.errors import ConfigError

LOSS = "loss at the minimum"
AGAINST_C, AGAINST_ND = "against C", "against N, D"


def isoflop_forecasts(
    fits: Mapping[str, Fit], at: Mapping[str, float], settings: FitSettings
) -> dict[str, Prediction]:
    """Of the best size, tokens and loss at so many FLOPs.

    Raises:
        ConfigError: ``at`` names something else.
    """
    for name, value in at.items():
        if name not in ("flops", "C") or not value > 0:
            raise ConfigError(f"at.{name}={value}: these laws are of the compute: at.flops=1e22")
    found = {}
    for flops in at.values():
        for what, fit in fits.items():
            forecast = fit.predict(float(flops), level=settings.level)
            if what == LOSS:
                irreducible = settings.held.get("E", 0.0)
                forecast = replace(
                    forecast,
                    value=forecast.value + irreducible,
                    low=forecast.low + irreducible,
                    high=forecast.high + irreducible,
                )
            found[what] = forecast
    return found


def setting_forecasts(
    fits: Mapping[str, Fit],
    planes: Mapping[str, PlaneFit],
    at: Mapping[str, float],
    points: Points,
    settings: FitSettings,
) -> dict[str, Prediction]:
    """Of the best learning rate and batch, at a size and tokens or at so many FLOPs.

    A law of size and tokens is asked where there is one and both are known; one of compute only
    where size and tokens act alike, or where no cells tell them apart.

    Raises:
        ConfigError: ``at`` names something else, or too little.
    """
    if not at:
        return {}
    known = everything_named(("size", "tokens", "flops"), "law=learning_rate", points, at)
    if "flops" not in known:
        missing = "tokens" if "size" in known else "params"
        raise ConfigError(
            f"at.{missing}: missing; law=learning_rate forecasts at a size and its tokens "
            "(at.params=7e9 at.tokens=1e12) or at a compute (at.flops=1e22)"
        )
    found = {}
    level = settings.level
    for what in (*fits, *planes):
        setting, _, of = what.partition(" ")
        plane = planes.get(f"{setting} {AGAINST_ND}")
        if of == AGAINST_ND and "size" in known:
            found[what] = planes[what].predict(known["size"], known["tokens"], level)
        elif of == AGAINST_C and (
            plane is None or ("size" not in known and not acts_apart(plane, level))
        ):
            found[what] = fits[what].predict(known["flops"], level=level)
    return found


def acts_apart(plane: PlaneFit, level: float) -> bool:
    """Whether size and tokens move the optimum differently, so that compute alone is too little."""
    return not plane.apart(level).contains(0.0)


def path_warnings(planes: Mapping[str, PlaneFit], level: float) -> tuple[str, ...]:
    """A sentence for each setting of which a law of compute misleads."""
    found = []
    for what, plane in planes.items():
        if acts_apart(plane, level):
            apart = plane.apart(level)
            found.append(
                f"{what.partition(' ')[0]} {AGAINST_C}: size and tokens act differently "
                f"(exponents {plane.size_exponent.value:+.2f} and "
                f"{plane.token_exponent.value:+.2f}, apart by {apart.low:.2f} to "
                f"{apart.high:.2f}), so compute alone does not say it; forecast with at.params and "
                "at.tokens"
            )
    return tuple(found)
