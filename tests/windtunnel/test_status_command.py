"""`windtunnel status`: what it says to do next."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from windtunnel import cli


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
