"""`windtunnel status`: what it says to do next."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sweeps.attempt import Attempt, Heartbeat, Progress
from sweeps.status import sweep_status
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands.status import longest_of_each_size
from windtunnel.console import duration


def test_what_failed_can_be_tried_again_with_or_without_runs_left(
    finished: Any, known_sweep: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    first, *others = [run.spec for run in known_sweep.make(root).runs]
    words = ["status", "sweep=quickstart", f"root={root}"]
    assert cli.main(words) == 1
    assert capsys.readouterr().out.endswith("To continue: the command that started it.\n")
    known_sweep.fail(root, first, "lost its node")
    assert cli.main([*words, "json=true"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"failed": 1, "planned": len(others)}
    assert [r["reason"] for r in found["runs"] if r["status"] == "failed"] == ["lost its node"]
    assert cli.main(["status", f"root={root}", "json=true"]) == 1
    (listed,) = json.loads(capsys.readouterr().out)["sweeps"]
    assert listed == {key: found[key] for key in listed}
    assert cli.main(words) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert said.endswith("started it; with retry=failed it tries what failed again.")
    for spec in others:
        known_sweep.finish(root, spec, known_sweep.measured(spec))
    assert cli.main(words) == 1
    said = capsys.readouterr().out
    assert "To try what failed again: the command that started it, with retry=failed." in said


def test_each_kind_is_listed_up_to_so_many_rows(
    finished: Any, known_sweep: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    plan = known_sweep.make(root)
    words = ["status", "sweep=quickstart", f"root={root}"]
    sizes: dict[float, list[Any]] = {}
    for run in plan.runs:
        sizes.setdefault(run.cost.flops_per_token, []).append(run)
    by_size = [runs for _, runs in sorted(sizes.items())]
    for runs in by_size[:3]:
        for run in runs:
            known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))
    largest = by_size[-1]
    for number, run in enumerate(largest[:3]):
        known_sweep.fail(root, run.spec, f"reason number {number}")
    going = by_size[3][0].spec
    attempt = Attempt.claim(Store(root).create(going), after=0, now=time.time())
    half = Progress(
        step=going.train.num_steps // 2,
        num_steps=going.train.num_steps,
        tokens_per_s=1234.0,
        loss=2.3456,
    )
    attempt.beat(Heartbeat(beat=1, time=time.time(), phase="training", progress=half))
    assert cli.main([*words, "rows=2"]) == 1
    said = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    # The two largest sizes of three that have a finished run, each by its longest.
    longest = [max(runs, key=lambda run: run.cost.train_flops) for runs in by_size[:3]]
    for run in longest[1:]:
        loss = f"{known_sweep.measured(run.spec).loss_nats:.4f}"
        assert any(run.run_id[:8] in line and loss in line for line in said)
    shortest = f"{known_sweep.measured(longest[0].spec).loss_nats:.4f}"
    assert not any(shortest in line for line in said)
    assert "sizes: 1 more; rows=2 shows all" not in said
    assert "sizes: 1 more; rows=3 shows all" in said
    assert "failed: 1 more; rows=3 shows all" in said
    text = " ".join(said)
    assert "reason number 0" in text
    assert "reason number 1" in text
    assert "reason number 2" not in text
    (row,) = [line for line in said if "1,234" in line]
    assert f"{half.step}/{half.num_steps} 2.346" in row
    assert "training" in row
    left_s = going.train.tokens * (1 - half.frac) / 1234.0
    assert row.endswith(duration(left_s))
    assert (
        said[-1] == f"Running. To watch: windtunnel status sweep=quickstart root={root} watch=true"
    )
    found = longest_of_each_size(sweep_status(plan, Store(root)))
    assert [report.run.run_id for report in found] == [run.run_id for run in longest]


def test_scripts_are_told_whether_all_is_done(
    finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["status", f"root={tmp_path}"]) == 1
    assert "No sweep under" in capsys.readouterr().out
    assert cli.main(["status", f"root={tmp_path}", "json=true"]) == 1
    assert json.loads(capsys.readouterr().out) == {"schema": "status/1", "sweeps": []}
    assert cli.main(["status", "sweep=quickstart", f"root={tmp_path}"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "There are: none. To train it: windtunnel sweep sweep=quickstart" in said
    root = f"root={finished.root}"
    assert cli.main(["status", "sweep=other", root]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.endswith("There are: quickstart")
    assert cli.main(["status", root]) == 0
    assert "quickstart" in capsys.readouterr().out
    assert cli.main(["status", root, "json=true"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)["sweeps"]
    assert (listed["complete"], listed["counts"]) == (True, {"done": len(finished.plan.runs)})
    assert cli.main(["status", "sweep=quickstart", root]) == 0
    assert "All done. Next: " in capsys.readouterr().out
    for wrong in ("every_s=0", "rows=0"):
        assert cli.main(["status", root, wrong]) == 2
        assert "must be positive, got 0" in capsys.readouterr().err


def test_watching_ends_with_the_last_run(
    finished: Any, known_sweep: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    runs = list(known_sweep.make(root).runs)
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        """While one looks, a third of the runs end."""
        slept.append(seconds)
        for run in [runs.pop() for _ in range(min(10, len(runs)))]:
            known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))

    monkeypatch.setattr("windtunnel.commands.status.time.sleep", sleep)
    number = len(runs)
    words = ["status", "sweep=quickstart", f"root={root}", "watch=true", "every_s=0.5"]
    assert cli.main(words) == 0
    assert slept == [0.5] * -(-number // 10)
