"""A machine that has compiled nothing yet is told that its first runs wait for that."""

from __future__ import annotations

from pathlib import Path

import pytest

from windtunnel import cli

SWEEP = ["sweep", "sweep=smoke", "dry_run=true"]
TRAIN = ["train", "model=tiny", "data=toy", "tokens=2e4", "dry_run=true"]
SAID = "First the kernels are compiled, once on this machine: about a minute"


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where they are kept: an empty folder, beside a compiler that is there."""
    compiler = tmp_path / "c++"
    compiler.touch(mode=0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "windtunnel" / "kernels"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("words", [SWEEP, TRAIN])
def test_it_is_said_until_something_is_compiled(
    words: list[str], kernels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*words, f"root={tmp_path}/tunnel", "device=cpu"]
    assert cli.main(words) == 0
    assert SAID in " ".join(capsys.readouterr().out.split())
    (kernels / "cpu-0123456789abcdef.so").touch()
    assert cli.main(words) == 0
    assert SAID not in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("elsewhere", [["executor=slurm"], ["executor=slurm", "device=cuda"]])
def test_nothing_is_said_of_other_machines(
    elsewhere: list[str], kernels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*SWEEP, f"root={tmp_path}/tunnel", *elsewhere]) == 0
    assert SAID not in " ".join(capsys.readouterr().out.split())


def test_without_a_compiler_there_is_nothing_to_wait_for(
    kernels: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    assert cli.main([*SWEEP, f"root={tmp_path}/tunnel", "device=cpu"]) == 0
    assert SAID not in " ".join(capsys.readouterr().out.split())
