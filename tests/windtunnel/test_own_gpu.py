"""Runs for GPUs that are not here are refused at the plan, and those that run elsewhere are not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeps.executors.config import LocalConfig
from windtunnel import cli
from windtunnel.own_gpu import refuse_absent_gpu

NO_GPU = "windtunnel: device=cuda: no usable GPU on this machine"
SWEEP = ["sweep", "sweep=smoke", "data=toy", "device=cuda"]
TRAIN = ["train", "model=tiny", "data=toy", "tokens=2e4", "device=cuda"]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many this machine has, to be set; none at first."""
    here = [0]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: here[0] > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here[0])
    return here


@pytest.mark.parametrize("words", [SWEEP, TRAIN])
@pytest.mark.parametrize("more", [[], ["dry_run=true"], ["dry_run=true", "executor=inline"]])
def test_a_plan_is_refused_in_one_line_without_its_gpu(
    words: list[str],
    more: list[str],
    gpus: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*words, f"root={tmp_path}", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(NO_GPU)
    assert not list(tmp_path.glob("runs/*")), "nothing was begun"
    gpus[0] = 1
    assert cli.main([*words, f"root={tmp_path}", "dry_run=true"]) == 0


@pytest.mark.parametrize(
    "elsewhere", [["executor=slurm"], ["executor=ray", "executor.gpus_per_run=0.5"]]
)
def test_runs_of_a_cluster_need_none_here(
    elsewhere: list[str], gpus: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"root={tmp_path}", "dry_run=true", *elsewhere]
    assert cli.main([*SWEEP, *words]) == 0
    assert cli.main([*SWEEP, f"root={tmp_path}", "dry_run=true", "device=auto"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [SWEEP, TRAIN])
@pytest.mark.parametrize("more", [[], ["dry_run=true"]])
def test_runs_of_ray_on_gpus_must_ask_for_them(
    words: list[str], more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, f"root={tmp_path}", "executor=ray", *more]
    assert cli.main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("windtunnel: device=cuda and executor.gpus_per_run=0: ")
    assert "add executor.gpus_per_run=1" in line
    assert not list(tmp_path.glob("runs/*")), "nothing was begun"
    assert cli.main([*words, "dry_run=true", "device=auto"]) == 0


def test_fewer_gpus_than_are_shared_out_are_too_few(gpus: list[int]) -> None:
    gpus[0] = 2
    refuse_absent_gpu("cuda", LocalConfig(gpus=2))
    with pytest.raises(Exception, match=r"2 usable GPUs on this machine.*executor.gpus=3 asks"):
        refuse_absent_gpu("cuda", LocalConfig(gpus=3))
    refuse_absent_gpu("auto", LocalConfig(gpus=3))


def test_a_launch_is_refused_unless_its_run_is_over(
    finished: Any, gpus: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(finished.root, tmp_path / "tunnel", symlinks=True)
    words = ["launch", "promotion=latest", f"root={root}", "device=cuda", "dry_run=true"]
    assert cli.main(words) == 4, "only its gates refuse it: nothing is left to train"
    assert NO_GPU not in capsys.readouterr().err
    shutil.rmtree(root / "runs" / finished.promotion.run_id)
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(NO_GPU)
    assert cli.main([*words, "trained=elsewhere"]) == 4
