"""What a sweep varies in order to learn from it. A seed is no feature: it repeats one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sweeps.plan import SEED, PlannedRun, SweepConfig, without_seed


def features_of(config: SweepConfig) -> list[tuple[str, ...]]:
    """The dotted paths of each feature: an axis, or all that move together.

    What has one value only is none.
    """
    axes = {path: values for path, values in config.axes.items() if path != SEED}
    features: list[tuple[str, ...]] = [(path,) for path, values in axes.items() if values[1:]]
    if any(values[1:] for values in config.zipped.values()):
        features.append(tuple(config.zipped))
    return features


def variants_in(runs: Iterable[PlannedRun]) -> dict[str, dict[str, Any]]:
    """What the axes set, each once and in order."""
    found = [without_seed(run.variant) for run in runs]
    return {str(variant): variant for variant in found}
