"""A command that ends with the process that started it: by the kernel on Linux, elsewhere not."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

PROJECT = Path(__file__).resolve().parents[2]
DOUBLE = PROJECT / "tests" / "macos_double"

PARENT = """
import os, subprocess, sys, time
lifeline = [sys.executable, "-m", "model.lifeline", str(os.getpid()), sys.executable, "-c"]
child = subprocess.Popen([*lifeline, sys.argv[1]])
print(child.pid, flush=True)
child.wait()
print("waited", flush=True)
time.sleep(60)
"""


@pytest.fixture(params=["Linux", "macOS"])
def parent(request: pytest.FixtureRequest) -> Callable[[str], subprocess.Popen[str]]:
    """Starts a process with a child that runs the given lines."""
    folders = [str(DOUBLE)] * (request.param == "macOS") + [str(PROJECT)]

    def start(lines: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", PARENT, lines],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        )
        assert process.stdout is not None
        request.addfinalizer(process.stdout.close)
        request.addfinalizer(process.wait)
        request.addfinalizer(process.kill)
        return process

    return start


def is_there(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in listed.split()]


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def started(process: subprocess.Popen[str]) -> tuple[int, list[int]]:
    """The command of ``process``, once it runs, and who watches for it."""
    assert process.stdout is not None
    said = {process.stdout.readline().strip(), process.stdout.readline().strip()}
    command = int((said - {"up"}).pop())
    assert is_there(command)
    return command, children(command)


def sleeping(seconds: int) -> str:
    return f"import time; print('up', flush=True); time.sleep({seconds})"


def test_a_command_goes_with_a_parent_that_is_killed(
    parent: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = parent(sleeping(60))
    command, company = started(process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(map(is_there, [command, *company])))


def test_a_command_that_ends_leaves_nobody(
    parent: Callable[[str], subprocess.Popen[str]],
) -> None:
    process = parent(sleeping(1))
    _, company = started(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "waited\n"
    wait_until(lambda: not any(map(is_there, company)))
