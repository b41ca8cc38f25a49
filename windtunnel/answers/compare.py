"""A trial's answer to a script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from analysis.feature_trial import Ahead, Trial
from analysis.leverage import Leverage
from windtunnel.update_price import UpdatePrice


def trial_answer(trial: Trial, price: UpdatePrice | None, written: Path) -> dict[str, Any]:
    """What ``trial.json`` says in the end, without its runs; gaps as ln(variant / baseline)."""
    curve = trial.leverage
    return {
        "sweep": trial.sweep,
        "baseline": trial.baseline,
        "variant": trial.variant,
        "verdict": trial.verdict,
        "num_pairs": len(trial.pairs),
        "gap_log_loss": trial.mean,
        "helps_probability": trial.helps,
        "gap_per_decade_log_loss": trial.trend,
        "noise_sd_log_loss": trial.noise_sd,
        "rungs": [
            {
                "rung": rung.rung,
                "flops_per_token": rung.flops_per_token,
                "num_pairs": rung.pairs,
                "gap_log_loss": rung.gap,
            }
            for rung in trial.rungs
        ],
        "domains": [{"domain": one.domain, "gap_log_loss": one.gap} for one in trial.domains],
        "leverage": None if curve is None else [_leverage(place) for place in curve.places],
        "leverage_per_decade": None if curve is None else curve.per_decade,
        "targets": [_ahead(target) for target in trial.targets],
        "muon_updates": price,
        "warnings": trial.warnings,
        "written": written,
    }


def _ahead(target: Ahead) -> dict[str, Any]:
    return {
        "target": target.name,
        "train_flops": target.flops,
        "gap_log_loss": target.gap,
        "helps_probability": target.helps,
        "is_far": target.is_far,
        "leverage": None if target.leverage is None else _leverage(target.leverage),
    }


def _leverage(place: Leverage) -> dict[str, Any]:
    """A value or an end that is null is not reached."""
    return {
        "train_flops": place.flops,
        "gap_nats": place.gap_nats,
        "compute_ratio": {
            "value": place.value,
            "low": place.low,
            "high": place.high,
            "level": place.level,
        },
        "unreached_frac": place.unreached_frac,
        "extrapolation_ratio": place.extrapolation_ratio,
    }
