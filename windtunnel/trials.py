"""Feature trials that speak of a promoted configuration: what each has said of the option it takes.

A trial (`windtunnel compare`) leaves its verdict beside its sweep. A promotion from any sweep of
the same root is held against all of them whose feature its own configuration has a value for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from analysis.feature_trial import SCHEMA_VERSION, Trial, percent
from analysis.results import Interval
from model.typed import build
from sweeps.files import read_json
from sweeps.plan import SweepConfig


@dataclass(frozen=True, kw_only=True)
class TrialEvidence:
    """One trial, and the side of it that the promoted configuration is on."""

    sweep: str
    """Of the trial."""
    feature: str
    """``recipe.shape.qk_norm=False against True``."""
    takes: Literal["variant", "baseline"]
    gap: Interval
    """log(variant / baseline) in the middle of the trial's runs."""

    def contradicts(self, most: float) -> bool:
        """Whether the other side is better by more than ``most``, at every end of the interval."""
        return self.gap.low > most if self.takes == "variant" else self.gap.high < -most

    @property
    def sentence(self) -> str:
        """What it found, in a few words."""
        return (
            f"{self.sweep}: {self.feature} {percent(self.gap.value)} of the loss "
            f"({percent(self.gap.low)} to {percent(self.gap.high)}), the {self.takes} is taken"
        )


def trial_evidence(root: Path, config: SweepConfig) -> tuple[TrialEvidence, ...]:
    """The trials under ``root`` that concern ``config``, in the order of their sweeps.

    Raises:
        ConfigError: a trial's file is none.
    """
    paths = sorted((root / "sweeps").glob("*/trials/*/trial.json"))
    return tuple(_concerning(map(read_trial, paths), config))


def read_trial(path: Path) -> Trial:
    """One trial, of this version's schema or the one before it, which knew no leverage.

    Raises:
        ConfigError: the file is none.
    """
    kept = read_json(path)
    if isinstance(kept, dict) and kept.get("schema_version") == 1:
        ahead = [{**target, "leverage": None} for target in kept.get("targets", ())]
        for target in ahead:
            target.pop("multiplier", None)
        kept = {**kept, "schema_version": SCHEMA_VERSION, "targets": ahead}
    return build(Trial, kept, where=str(path))


def _concerning(trials: Iterable[Trial], config: SweepConfig) -> Iterable[TrialEvidence]:
    for trial in trials:
        sides: tuple[tuple[Literal["variant", "baseline"], Mapping[str, str]], ...] = (
            ("variant", trial.variant),
            ("baseline", trial.baseline),
        )
        for takes, side in sides:
            if all(_has(config, path, value) for path, value in side.items()):
                said = ", ".join(
                    f"{path}={value} against {trial.baseline[path]}"
                    for path, value in trial.variant.items()
                )
                yield TrialEvidence(sweep=trial.sweep, feature=said, takes=takes, gap=trial.mean)


def _has(config: SweepConfig, path: str, value: str) -> bool:
    node: Any = config
    for name in path.split("."):
        fields = node if isinstance(node, Mapping) else getattr(node, "__dict__", {})
        if name not in fields:
            return False
        node = fields[name]
    if str(node) == value:
        return True
    try:  # an axis may say 1 where the config has 1.0
        return float(node) == float(value)
    except (TypeError, ValueError):
        return False
