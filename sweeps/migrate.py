"""Runs kept by an earlier version of the program, brought under the names of this one.

A run's id follows from its scientific fields, so a new field gives every run a new id although
nothing about it has changed. Here stands what each version added and the value by which runs before
it had computed; with it they are found again, finished ones and those under way with their
checkpoints, where they would have been trained anew. What changed the *numbers* of a run is its
``numerics`` version, which stays what it was: such a run is another one and is left as such.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.files import durable_folder, sync_folder
from model.locks import alone
from model.training.identity import run_identity, trunk_identity
from model.typed import build, to_plain
from sweeps.files import read_json, write_json
from sweeps.spec import SPEC_VERSION, RunSpec, run_id
from sweeps.store import Store

ADDED: dict[int, dict[str, Any]] = {
    2: {
        "train.schedule.num_merged": 8,
        "train.schedule.trunk": False,
        "train.schedule.warmup_tokens": None,
        "trunk": "",
    },
    3: {"train.optimizer.kind": "adamw"},
    4: {"model.own": []},
    5: {"train.initial_weights": None},
    6: {"train.optimizer.muon": None},
    7: {"model.attention.output_gate": "none"},
}
"""By version, what it added to a spec and the value that stands for runs from before it."""

MARK = "spec_version"


def migrate(store: Store) -> int:
    """Bring every run of ``store`` to SPEC_VERSION; how many had another name before.

    Looks at the runs once for each version of the program: a file ``spec_version`` in the root says
    that all are of this one. Killed at any moment it goes on where it was.

    Raises:
        ConfigError: a run of an earlier version is under way, or its spec was edited.
    """
    mark = store.root / MARK
    if _is_marked(mark):
        return 0
    store.root.mkdir(parents=True, exist_ok=True)
    with alone(store.root / f".{MARK}.lock"):
        return 0 if _is_marked(mark) else _bring_all_over(store, mark)


def _is_marked(mark: Path) -> bool:
    return mark.exists() and bool(read_json(mark) == SPEC_VERSION)


def _bring_all_over(store: Store, mark: Path) -> int:
    old = {}
    for folder in sorted(store.runs_dir.glob("*/spec.json")):
        plain = read_json(folder)
        if isinstance(plain, dict):
            spec = _spec_of(plain, folder)
            if plain["spec_version"] < SPEC_VERSION or run_id(spec) != folder.parent.name:
                old[folder.parent.name] = spec
    names = _new_names(old)
    for name in old:
        if store.state(name).status == "running":
            raise ConfigError(
                f"run {name} of an earlier version of this program is still running; stop it or "
                "let it end before this version uses the store"
            )
    for name, spec in old.items():
        trunk = names.get(spec.trunk, spec.trunk)
        _bring_over(store, name, names[name], replace(spec, trunk=trunk))
    if old:  # before the mark: after it no command looks for a name that a power cut took back
        sync_folder(store.runs_dir)
    write_json(mark, SPEC_VERSION)
    return len(old)


def _spec_of(plain: dict[str, Any], path: Path) -> RunSpec:
    """The spec in this version's fields."""
    version = plain.get("spec_version")
    if not isinstance(version, int) or not 1 <= version <= SPEC_VERSION:
        raise ConfigError(f"{path}: spec version {version}, this program knows 1 to {SPEC_VERSION}")
    for later in range(version + 1, SPEC_VERSION + 1):
        for dotted, value in ADDED[later].items():
            node = plain
            *parents, name = dotted.split(".")
            for parent in parents:
                node = node[parent]
            node.setdefault(name, value)
    return build(RunSpec, {**plain, "spec_version": SPEC_VERSION}, where=str(path))


def _new_names(old: dict[str, RunSpec]) -> dict[str, str]:
    """A trunk is no part of an id, so the names don't hang on each other."""
    return {name: run_id(spec) for name, spec in old.items()}


def _bring_over(store: Store, name: str, new_name: str, spec: RunSpec) -> None:
    """Each step may be the last before a kill: the folder's name is changed at the end."""
    folder = store.run_dir(name)
    identity = run_identity(spec.model, spec.train, spec.corpus_fingerprint)
    trunk = trunk_identity(spec.model, spec.train, spec.corpus_fingerprint)
    # The run's own are links to an attempt's, but in a folder that was copied with links followed.
    for place in (*store.attempts(name), folder):
        checkpoints, record = place / "checkpoints", place / "record.json"
        if not checkpoints.is_symlink():
            _relabel(checkpoints, identity)
        if record.exists() and not record.is_symlink():
            write_json(record, {**read_json(record), "run_id": new_name})
    _relabel(folder / "snapshots", trunk)
    write_json(folder / "spec.json", to_plain(spec))
    if new_name == name:
        return
    if store.run_dir(new_name).exists():
        # Trained anew by this version before it was asked to look: that one stays.
        aside = store.root / "redone"
        durable_folder(aside)
        shutil.move(folder, aside / f"{name}.earlier-version")
        sync_folder(aside)
    else:
        os.rename(folder, store.run_dir(new_name))


def _relabel(checkpoints: Path, identity: str) -> None:
    """Say whose the checkpoints are now."""
    if not checkpoints.exists():
        return
    from model.training.checkpoint import checkpoint_paths, relabel, settle  # here: it needs torch

    settle(checkpoints)
    for path in checkpoint_paths(checkpoints):
        relabel(path, identity)
