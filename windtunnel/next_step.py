"""What to type when a sweep is done, in words that can be copied."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from sweeps.plan import Plan, PlannedRun

SEED = "ladder.seed"
LEARNING_RATE = "recipe.training.peak_lr_factor"


def after_training(plan: Plan) -> str:
    """The command that reads a finished sweep: of one variant, of learning rates, or of a trial."""
    command = f"windtunnel fit sweep={plan.name}"
    variants = variants_in(plan.measured)
    if len(variants) == 1:
        return command
    last = [*variants.values()][-1]
    varied = [p for p in last if len({str(other.get(p)) for other in variants.values()}) > 1]
    if varied == [LEARNING_RATE]:
        return f"{command} law=learning_rate"
    trial = f"windtunnel compare sweep={plan.name}"
    together = plan.config.zipped if plan.config else {}
    if len({path for run in plan.measured for path in run.variant} - {SEED} - {*together}) > (
        0 if together else 1
    ):
        trial += f" {as_option('variant', {varied[0]: last[varied[0]]})}"
    return f"{trial}, or {command} {as_option('variant', last)}"


def variants_in(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """What the axes set, each once and in order; seeds are repetitions of one variant."""
    found = [{p: value for p, value in run.variant.items() if p != SEED} for run in runs]
    return {str(variant): variant for variant in found}


def as_option(name: str, mapping: Mapping[str, Any]) -> str:
    """``name='{path: value}'`` as a shell and the command line read it."""
    values = ", ".join(f"{path}: {_value(value)}" for path, value in mapping.items())
    return f"{name}='{{{values}}}'"


def _value(value: Any) -> str:
    if isinstance(value, str) and all(char.isalnum() or char in "_-." for char in value):
        return value
    return json.dumps(value)
