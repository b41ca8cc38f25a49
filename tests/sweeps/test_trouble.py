"""A real full disk and a real read-only store, on a file system of the test's own."""

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sweeps.run import DiskFull, run_sweep
from sweeps.store import Store
from sweeps.trouble import EXIT_DISK_FULL, EXIT_STORE, patiently, store_trouble


def mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode == 0


def fill(path: Path) -> None:
    """Write until no byte fits any more."""
    with open(path, "wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 4096)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, mounted for this test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not mount("-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)):
        pytest.skip("mounting a small file system needs root; a full disk is not tried for real")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def on_small_disk(small_disk, toy):
    disk_toy = type(toy)(Store(small_disk))
    disk_toy.set(steps=30, step_s=0.02)
    return disk_toy


def test_a_full_disk_ends_the_sweep_in_one_line_and_loses_nothing(on_small_disk, plan):
    toy = on_small_disk
    finished = []
    filler = toy.store.root / "somebody_elses_file"

    def fill_after_the_first(event):
        if event.kind == "finished" and not finished:
            finished.append(event.run.run_id)
            fill(filler)

    with pytest.raises(DiskFull, match="free some space and run the same command again") as told:
        run_sweep(plan, toy.store, toy.executor(), fill_after_the_first)
    assert "\n" not in str(told.value)
    first = toy.store.record(finished[0])
    assert first is not None

    filler.unlink()
    result = run_sweep(plan, toy.store, toy.executor())
    assert result.is_complete
    assert finished[0] in result.skipped
    assert toy.store.record(finished[0]) == first


def test_a_store_that_is_read_only_for_a_while_is_sat_out(
    on_small_disk, small_disk, plan, monkeypatch
):
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.2,) * 1000)
    toy = on_small_disk
    events, back = [], []

    def on_event(event):
        events.append(event)
        # Only now: a file system with a file open for writing can't be made read-only, and the
        # worker of the only slot has just ended.
        if event.kind == "finished" and not back:
            assert mount("-o", "remount,ro", str(small_disk))
            back.append(threading.Timer(2.0, mount, ("-o", "remount,rw", str(small_disk))))
            back[0].start()

    result = run_sweep(plan, toy.store, toy.executor(slots=1), on_event)
    back[0].join()
    reasons = {event.reason for event in events if event.kind == "interrupted"}
    assert reasons == {f"{small_disk} can't be written (Read-only file system)"}
    assert result.is_complete, result


def test_a_worker_that_cannot_open_its_log_is_the_stores_trouble(on_small_disk, small_disk, plan):
    """Its run was planned before: the driver writes nothing, and the worker is the first to try."""
    run = plan.runs[0]
    run_dir = on_small_disk.store.create(run.spec)
    on_small_disk.set(steps=1)
    executor = on_small_disk.executor()

    def exit_code(handle):
        while (code := handle.poll()) is None:
            time.sleep(0.01)
        return code

    # Another before it, for the server that forks them has opened a log of its own.
    assert exit_code(executor.submit(on_small_disk.store.create(plan.runs[1].spec), 0)) == 0
    assert mount("-o", "remount,ro", str(small_disk))
    assert exit_code(executor.submit(run_dir, 0)) == EXIT_STORE
    executor.close()


def test_trouble_with_the_store_is_told_from_a_runs_own(tmp_path):
    full = store_trouble(tmp_path, OSError(28, "No space left on device"))
    assert full is not None
    assert full.exit_code == EXIT_DISK_FULL
    away = store_trouble(tmp_path, OSError(30, "Read-only file system"))
    assert away is not None
    assert away.exit_code == EXIT_STORE
    assert "can't be written (Read-only file system)" in away.reason
    assert store_trouble(tmp_path, ValueError("its own")) is None
    assert list(tmp_path.iterdir()) == []  # the probe cleans up after itself


def test_a_wrapped_error_is_known_by_trying(small_disk):
    fill(small_disk / "filler")
    trouble = store_trouble(small_disk, RuntimeError("writer failed: unexpected position"))
    assert trouble is not None
    assert trouble.exit_code == EXIT_DISK_FULL


def test_patience_ends_and_does_not_wait_for_a_full_disk(monkeypatch):
    naps = []
    monkeypatch.setattr("sweeps.trouble.time.sleep", naps.append)

    def full():
        raise OSError(28, "No space left on device")

    def gone():
        raise OSError(116, "Stale file handle")

    with pytest.raises(OSError, match="No space"):
        patiently(full)
    assert naps == []
    with pytest.raises(OSError, match="Stale"):
        patiently(gone, patience_s=0.0)
