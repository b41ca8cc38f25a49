"""One process at a time, with the kernel's locks and on file systems that refuse them."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from model import locks
from model.locks import alone

REFUSING = """
import errno, fcntl, os
def refuse(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
fcntl.flock = refuse
"""
HOLDING = """
import sys, time
from pathlib import Path
from model import locks
locks.BEAT_S = 0.1
with locks.alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
print("released", flush=True)
"""


@pytest.fixture(params=["flock", "ENOLCK", "ENOTSUP", "ENOSYS"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What the file system answers."""
    if request.param != "flock":

        def refuse(*_: object) -> None:
            raise OSError(getattr(errno, request.param), "not here")

        monkeypatch.setattr(fcntl, "flock", refuse)
    return str(request.param)


@contextmanager
def holder(lock: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock where the kernel's is refused."""
    command = [sys.executable, "-c", REFUSING + HOLDING, str(lock)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_nobody_holds_it_beside_another(kind: str, tmp_path: Path) -> None:
    """Each opens the file for itself, as processes do; counted by reading, waiting and writing."""
    lock, count = tmp_path / "a.lock", tmp_path / "count"
    count.write_text("0")

    def add(times: int) -> None:
        for _ in range(times):
            with alone(lock):
                found = int(count.read_text())
                time.sleep(0.002)
                count.write_text(str(found + 1))

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(add, 8) for _ in range(4)]:
            done.result()
    assert count.read_text() == "32"
    left = [path.name for path in tmp_path.glob("a.lock.claim-*")]
    assert len(left) == (kind != "flock"), "one claim stays, to count on from"


def test_a_number_is_one_processs_and_never_comes_back(tmp_path: Path) -> None:
    """A waiting process may have looked before others used the next numbers and cleared them."""
    lock = tmp_path / "a.lock"
    assert [locks._make(lock, 1), locks._make(lock, 1)] == [True, False]
    assert locks._make(lock, 2)
    assert not locks._make(lock, 1), "it is gone, and its time is over"
    assert [path.name for path in tmp_path.iterdir()] == ["a.lock.claim-000002"]


def test_who_holds_it_may_remove_it(kind: str, tmp_path: Path) -> None:
    """Whoever waited for the file that is gone goes on with the new one."""
    lock, inside = tmp_path / "a.lock", []

    def hold() -> None:
        with alone(lock):
            inside.append("in")
            time.sleep(0.01)
            lock.unlink(missing_ok=True)
            inside.append("out")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(hold) for _ in range(8)]:
            done.result()
    assert inside == ["in", "out"] * 8
    assert not lock.exists()


def test_an_error_within_lets_go(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "a.lock"):
        raise ZeroDivisionError
    started = time.monotonic()
    with alone(tmp_path / "a.lock"):
        assert time.monotonic() - started < locks.LEASE_S / 2


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "LEASE_S", 1.0)


def test_the_claim_of_a_killed_process_is_taken_over(refused: None, tmp_path: Path) -> None:
    """After a lease without a beat, and by one of those who wait for it at a time."""
    lock, inside = tmp_path / "a.lock", []

    def hold() -> None:
        with alone(lock):
            inside.append(len(inside))
            assert inside.count(inside[-1]) == 1
            time.sleep(0.05)

    with holder(lock) as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        with ThreadPoolExecutor(3) as pool:
            for done in [pool.submit(hold) for _ in range(3)]:
                done.result()
        assert time.monotonic() - started >= locks.LEASE_S
    assert inside == [0, 1, 2]


def test_a_claim_that_beats_is_never_taken_over(refused: None, tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with holder(lock) as process, ThreadPoolExecutor(1) as pool:
        assert process.stdin is not None
        waiting = pool.submit(lambda: alone(lock).__enter__())
        time.sleep(2 * locks.LEASE_S)
        assert not waiting.done()
        process.stdin.close()
        waiting.result(timeout=20)
        assert len(list(tmp_path.glob("*.claim-*"))) == 1


def test_another_error_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output"), alone(tmp_path / "a.lock"):
        pass
    with pytest.raises(FileNotFoundError), alone(tmp_path / "nowhere" / "a.lock"):
        pass
