"""The files of a sweep, each parsed again only when it has changed, for pages that live long."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from analysis.curves import Curve, read_curve
from analysis.expert_use import ExpertUse, read_expert_use
from analysis.feature_trial import Trial
from analysis.records import RunRecord
from analysis.study import Study
from sweeps.plan import Plan
from sweeps.store import Store
from windtunnel.commands.status import known_plan
from windtunnel.trials import read_trial

T = TypeVar("T")
Stamp = tuple[int, int, int]


class Sources:
    """Reads under one root; keeps what it has parsed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = Store(root)
        self._kept: dict[tuple[str, str], tuple[Stamp | None, object]] = {}

    def plan(self, sweep: str) -> Plan:
        """The plan of ``sweep``; ConfigError if there is none."""
        path = str(self.store.plan_path(sweep))
        return self._once("plan", path, lambda: known_plan(self.store, sweep))

    def study(self, sweep: str) -> Study | None:
        """The sweep's fit, None before the first."""
        path = self.fit_path(sweep)
        return self._once("study", str(path), lambda: Study.load(path) if path.exists() else None)

    def trial(self, path: Path) -> Trial:
        """A feature trial."""
        return self._once("trial", str(path), lambda: read_trial(path))

    def trial_paths(self, sweep: str) -> list[Path]:
        """Where the sweep's trials lie."""
        return sorted(self.store.plan_path(sweep).parent.glob("trials/*/trial.json"))

    def fit_path(self, sweep: str) -> Path:
        """Where the sweep's fit lies, or will lie."""
        return self.store.plan_path(sweep).with_name("fit.json")

    def record(self, run_id: str) -> RunRecord | None:
        """The record of a run, None if there is none yet."""
        path = f"{self.store.runs_dir}/{run_id}/record.json"
        return self._once("record", path, lambda: self.store.record(run_id))

    def curve(self, run_id: str) -> Curve | None:
        """The training curve of a run, as far as it has come."""
        path = self.metrics_path(run_id)
        return self._once("curve", str(path), lambda: read_curve(path))

    def use(self, run_id: str) -> ExpertUse | None:
        """How a run used its experts at its end."""
        path = self.metrics_path(run_id)
        return self._once("use", str(path), lambda: read_expert_use(path))

    def metrics_path(self, run_id: str) -> Path:
        """What a run has logged: its published file, or that of its newest attempt."""
        published = self.store.run_dir(run_id) / "metrics.jsonl"
        if published.exists():
            return published
        attempts = [folder / "metrics.jsonl" for folder in self.store.attempts(run_id)]
        return attempts[-1] if attempts else published

    def _once(self, kind: str, path: str, read: Callable[[], T]) -> T:
        stamp, key = stamp_of(path), (kind, path)
        kept = self._kept.get(key)
        if kept is not None and stamp is not None and kept[0] == stamp:
            return kept[1]  # type: ignore[return-value]
        value = read()
        self._kept[key] = (stamp, value)
        return value


def stamp_of(path: str | Path) -> Stamp | None:
    """Changes whenever the file does; None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
