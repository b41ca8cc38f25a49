"""What a run has said is its own is on disk: a power cut takes neither a file nor a name."""

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest
import torch

from model.training.checkpoint import Checkpoint, save_checkpoint
from sweeps.attempt import Attempt, Outcome
from sweeps.files import write_json
from sweeps.plan import Plan
from sweeps.store import Store

Known = set[tuple[int, str]]
"""Numbers of files, and of folders with the names in them: a folder keeps its number when it is
renamed."""


FULL_SYNC = 51
"""``F_FULLFSYNC`` of macOS, where ``fsync`` alone ends in the drive's cache."""


def _take_no_notice(*_: object) -> None:
    """What a power cut leaves of macOS's fsync."""


@pytest.fixture(params=["Linux", "macOS"])
def durable(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Known:
    """Everything that the system's way to sync has put on disk."""
    known: Known = set()

    def noted(descriptor: int, *command: int) -> None:
        assert command in ((), (FULL_SYNC,))
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        number = os.fstat(descriptor).st_ino
        names = [each.name for each in path.iterdir()] if path.is_dir() else [""]
        known.update((number, name) for name in names)

    if request.param == "macOS":
        monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
        monkeypatch.setattr(fcntl, "fcntl", noted)
        monkeypatch.setattr(os, "fsync", _take_no_notice)
    else:
        monkeypatch.setattr(os, "fsync", noted)
    return known


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EINVAL, errno.ENOTTY, errno.EIO])
def test_a_disk_without_the_full_sync_gets_the_plain_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A shared folder or a stick; an error of the disk itself is one."""
    synced = []

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "F_FULLFSYNC", FULL_SYNC, raising=False)
    monkeypatch.setattr(fcntl, "fcntl", refuse)
    monkeypatch.setattr(os, "fsync", synced.append)
    if number == errno.EIO:
        with pytest.raises(OSError, match="Input/output"):
            write_json(tmp_path / "one.json", {})
        assert list(tmp_path.iterdir()) == []
    else:
        write_json(tmp_path / "one.json", {})
        assert len(synced) == 2  # the file and its folder


def is_on_disk(path: Path, known: Known) -> bool:
    is_file = path.is_file() and not path.is_symlink()
    has_content = not is_file or (path.stat().st_ino, "") in known
    return has_content and (path.parent.stat().st_ino, path.name) in known


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_every_name_from_the_root_to_a_checkpoint_is_on_disk(
    plan: Plan, tmp_path: Path, durable: Known
) -> None:
    top = tmp_path / "new"
    folder = Store(top / "tunnel").create(plan.runs[0].spec)
    attempt = Attempt.claim(folder, after=0, now=time.time())
    checkpoint = Checkpoint(1, {"w": torch.zeros(2)}, {})
    save_checkpoint(attempt.dir / "checkpoints", checkpoint, keep=2)
    write_json(attempt.dir / "record.json", {})
    attempt.publish()
    attempt.end(Outcome(status="done", ended=time.time()))
    there = [top, *top.rglob("*")]
    assert len(there) > 12
    assert [path for path in there if not is_on_disk(path, durable)] == []
