"""The whole way with real training: sweep, status, fit, report, promote, launch, ledger; twice."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from windtunnel import cli

SWEEP = ("sweep", "sweep=smoke", "ladder.sizes=2", "ladder.smallest_tokens=4096")

Call = Callable[..., str]


@pytest.fixture
def call(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command on a fresh root; its output, with lines joined and spaces made single."""

    def run(*words: str, code: int = 0) -> str:
        assert cli.main([*words, f"root={tmp_path}"]) == code
        captured = capsys.readouterr()
        return " ".join((captured.out + captured.err).split())

    return run


def record_stamps(root: Path) -> dict[str, int]:
    records = (root / "runs").glob("*/record.json")
    return {path.parent.name: path.stat().st_mtime_ns for path in records}


@pytest.mark.slow
def test_from_a_sweep_to_a_checked_forecast_and_again(call: Call, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "windtunnel.cli", *SWEEP, f"root={tmp_path}"]
    first = subprocess.run(command, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr + first.stdout
    assert "8 of 8 runs done, in" in first.stdout
    assert "\x1b" not in first.stdout, "piped output is plain"
    for path in (tmp_path / "runs").glob("*/record.json"):
        record = json.loads(path.read_text())
        assert f"{record['run_id']}: loss {record['loss_nats']:.4f} nats" in first.stdout

    assert "8 runs, 8 done" in call("status", "sweep=smoke")
    assert "8 points" in call("fit", "sweep=smoke")
    # One threshold that nothing reaches, the others out of the way: the launch is refused by this
    # gate alone, wherever the test runs.
    gates = ("gates.holdout_error=1e-9", "gates.interval_width=9", "gates.refuse_statuses=[]")
    assert "Forecast: " in call("promote", "sweep=smoke", *gates)
    assert "holdout_error" in call("launch", code=4)
    launched = call("launch", "override.holdout_error='the test of the way'")
    assert "measured" in launched
    assert "inside" in launched.lower() or "outside" in launched.lower()
    assert "of 1 measured" in call("ledger")
    assert call("report", "sweep=smoke")
    page = (tmp_path / "sweeps" / "smoke" / "report" / "index.html").read_text()
    assert "smoke" in page

    # Again: nothing is trained, nothing is forecast after the fact.
    stamps = record_stamps(tmp_path)
    assert len(stamps) == 9
    assert "8 of 8 runs already done; nothing was trained." in call(*SWEEP)
    assert "Promoted before" in call("promote", "sweep=smoke", *gates)
    assert "Nothing was trained" in call("launch")
    assert record_stamps(tmp_path) == stamps
    rows = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert [json.loads(row)["kind"] for row in rows] == ["forecast", "outcome"]
