"""What a run has said is its own is on disk: a power cut takes neither a file nor a name."""

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from model.files import write_atomic
from model.training.checkpoint import Checkpoint, save_checkpoint
from sweeps import migrate as migration
from sweeps.attempt import Attempt, Outcome
from sweeps.files import read_json, write_json
from sweeps.plan import Plan
from sweeps.spec import SPEC_VERSION
from sweeps.store import Store


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.EIO])
def test_a_disk_without_the_full_sync_gets_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A shared folder or a stick; an error of the disk itself is one."""
    synced = []

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", synced.append)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            write_json(tmp_path / "one.json", {})
        assert list(tmp_path.iterdir()) == []
    else:
        write_json(tmp_path / "one.json", {})
        assert len(synced) == 2  # the file and its folder


def test_every_name_from_the_root_to_a_checkpoint_is_on_disk(
    plan: Plan, tmp_path: Path, disk: Any
) -> None:
    top = tmp_path / "new"
    folder = Store(top / "tunnel").create(plan.runs[0].spec)
    attempt = Attempt.claim(folder, after=0, now=time.time())
    checkpoint = Checkpoint(1, {"w": torch.zeros(2)}, {})
    save_checkpoint(attempt.dir / "checkpoints", checkpoint, keep=2)
    write_json(attempt.dir / "record.json", {})
    attempt.publish()
    assert disk.lost(top) == [], "before anything says that it is done"
    attempt.end(Outcome(status="done", ended=time.time()))
    assert len(list(top.rglob("*"))) > 11
    assert disk.lost(top) == []


def test_what_an_attempt_takes_over_is_on_disk(plan: Plan, tmp_path: Path, disk: Any) -> None:
    top = tmp_path / "new"
    folder = Store(top).create(plan.runs[0].spec)
    first = Attempt.claim(folder, after=0, now=time.time())
    write_atomic(first.dir / "metrics.jsonl", b"{}\n")
    save_checkpoint(first.dir / "checkpoints", Checkpoint(1, {"w": torch.zeros(2)}, {}), keep=2)
    first.end(Outcome(status="interrupted", ended=time.time()))
    second = Attempt.claim(folder, after=1, now=time.time())
    assert {"metrics.jsonl", "checkpoints"} <= {path.name for path in second.dir.iterdir()}
    assert disk.lost(top) == []


def test_a_run_under_its_new_name_is_on_disk_before_the_root_is_called_migrated(
    plan: Plan, tmp_path: Path, disk: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Marked as migrated it is never looked at again: a name lost then would be trained anew."""
    store, (renamed, redone) = Store(tmp_path / "new"), plan.runs[:2]
    store.create(redone.spec)
    for run in (renamed, redone):
        folder = Store(tmp_path / "made").create(run.spec)
        attempt = Attempt.claim(folder, after=0, now=time.time())
        save_checkpoint(
            attempt.dir / "checkpoints",
            Checkpoint(1, {"w": torch.zeros(2)}, {"identity": "its"}),
            keep=2,
        )
        attempt.end(Outcome(status="interrupted", ended=time.time()))
        spec = folder / "spec.json"
        write_json(spec, {**read_json(spec), "spec_version": SPEC_VERSION - 1})
        folder.rename(store.run_dir(f"earlier-{run.run_id}"))
    lost: list[Path] = []

    def write(path: Path, value: object) -> None:
        if path == store.root / migration.MARK:
            lost.extend([*disk.lost(store.runs_dir), *disk.lost(store.root / "redone")])
        write_json(path, value)

    monkeypatch.setattr(migration, "write_json", write)
    assert migration.migrate(store) == 2
    assert {path.name for path in store.runs_dir.iterdir()} == {renamed.run_id, redone.run_id}
    assert len(list((store.root / "redone").iterdir())) == 1
    assert lost == []
