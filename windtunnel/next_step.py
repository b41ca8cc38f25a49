"""What to type when a sweep is done, in words that can be copied."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.laws import LEAST_RUNS
from sweeps.plan import Plan, without_seed
from windtunnel.features import features_of, variants_in
from windtunnel.quoting import under

LEARNING_RATE = "recipe.training.peak_lr_factor"
NO_WORDS = ("true", "false", "null", "nan", "inf")
"""What the command line reads as something other than text."""


def after_training(plan: Plan, root: Path) -> str:
    """The command that reads a finished sweep: of one variant, of learning rates, or of a trial.

    A fit of fewer runs than L(N, D) takes would be refused, so it is not proposed.
    """
    command = f"windtunnel fit sweep={plan.name}{under(root)}"
    variants = variants_in(plan.measured)
    if plan.config is None:
        return command
    runs = Counter(str(without_seed(run.variant)) for run in plan.measured)
    can_fit = min(runs.values()) >= LEAST_RUNS
    if len(variants) == 1:
        return command if can_fit else f"windtunnel report sweep={plan.name}{under(root)}"
    features = features_of(plan.config)
    if features == [(LEARNING_RATE,)]:
        return f"{command} law=learning_rate"
    last = [*variants.values()][-1]
    trial = f"windtunnel compare sweep={plan.name}{under(root)}"
    if len(features) > 1:
        first = features[0][0]
        trial += f" {as_option('variant', {first: last[first]})}"
    return f"{trial}, or {command} {as_option('variant', last)}" if can_fit else trial


def launch_elsewhere(root: Path, promotion_id: str) -> str:
    """The command that registers a promotion's forecast for another engine, and closes it."""
    return f"windtunnel launch promotion={promotion_id}{under(root)} trained=elsewhere"


def closing_command(root: Path, name: str) -> str:
    """The command that holds a table's forecast against its run."""
    return f"windtunnel ledger close={name}{under(root)}"


def as_option(name: str, mapping: Mapping[str, Any]) -> str:
    """``name='{path: value}'`` as a shell and the command line read it."""
    values = ", ".join(f"{path}: {_value(value)}" for path, value in mapping.items())
    return f"{name}='{{{values}}}'"


def _value(value: Any) -> str:
    is_word = isinstance(value, str) and all(char.isalnum() or char in "_-." for char in value)
    if is_word and value[:1].isalpha() and value.lower() not in NO_WORDS:
        return str(value)
    return json.dumps(value)
