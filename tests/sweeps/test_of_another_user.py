"""Folders of another user, as an ordinary user meets them."""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import toy_worker

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3
PR_CAPBSET_DROP = 24
DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from sweeps.executors.local import LocalExecutor
from sweeps.plan_file import read_plan
from sweeps.run import run_sweep
from sweeps.store import Store
root = Path({root!r})
executor = LocalExecutor(slots=1, command=(sys.executable, {toy!r}))
result = run_sweep(read_plan(root / "plan.json"), Store(root), executor)
print(len(result.finished), result.failed)
"""


def ordinary() -> None:
    """Root without its powers over others' files; what belongs to uid 0 is its own."""
    prctl = ctypes.CDLL(None).prctl
    for power in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER):
        prctl(PR_CAPBSET_DROP, power, 0, 0, 0)


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root can give a folder away"
)
def test_a_run_of_another_user_fails_alone(plan, toy):
    from sweeps.plan_file import write_plan

    toy.set(steps=2)
    root: Path = toy.store.root
    write_plan(plan, root / "plan.json")
    theirs = toy.store.create(plan.runs[0].spec)
    for path in (theirs, theirs / "spec.json"):
        os.chown(path, 12345, 12345)
    text = DRIVER.format(here=str(Path(__file__).parent), root=str(root), toy=toy_worker.__file__)
    done = subprocess.run(
        [sys.executable, "-c", text],
        preexec_fn=ordinary,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    count, _, failed = done.stdout.partition(" ")
    assert int(count) == len(plan.runs) - 1
    assert f"{theirs}: Permission denied" in failed
