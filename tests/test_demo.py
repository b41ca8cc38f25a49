"""demo.sh: a launch that its gates refuse is an answer, any other fault ends it."""

import os
import subprocess
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[1] / "demo.sh"
ALL = ["sweep", "status", "fit", "promote", "launch", "ledger", "report"]


@pytest.mark.parametrize(
    ("verb", "code", "ran"),
    [("", 0, ALL), ("launch", 4, ALL), ("launch", 1, ALL[:5]), ("fit", 3, ALL[:3])],
)
def test_a_refused_launch_is_followed_by_the_ledger_and_the_report(
    verb: str, code: int, ran: list[str], tmp_path: Path
) -> None:
    told = tmp_path / "told"
    double = tmp_path / "windtunnel"
    double.write_text(f'#!/bin/sh\necho "$1" >> {told}\n[ "$1" != "{verb}" ] || exit {code}\n')
    double.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    found = subprocess.run(
        ["bash", str(DEMO)], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert found.returncode == code
    assert told.read_text().split() == ran
    assert ("Its gates refused the launch" in found.stdout) is (code == 4)
