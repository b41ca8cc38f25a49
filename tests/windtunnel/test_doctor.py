"""`windtunnel doctor`: what it finds, what it advises, and when no run could work."""

import io
import os
import shutil
from pathlib import Path

import pytest

from model.kernels import compiled, threads
from model.kernels.compiled import compiled_by
from model.system import usable_cores
from windtunnel.commands import doctor
from windtunnel.commands.doctor import Config, Finding
from windtunnel.console import make_console


def examined(root: Path) -> tuple[int, str]:
    pipe = io.StringIO()
    code = doctor.run(Config(root=root, measure_s=0.05), make_console(pipe))
    return code, pipe.getvalue()


def test_a_working_machine_passes(tmp_path: Path) -> None:
    code, text = examined(tmp_path / "not" / "there" / "yet")
    assert code == 0
    for name in ("Python", "CPU", "memory", "disk", "torch", "matmul", "experts, fp32", "W&B"):
        assert name in text
    assert "ms a layer: reference" in " ".join(text.split())
    assert "rest of a step" in text
    assert f"by {compiled_by()}" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 100
    assert not (tmp_path / "not").exists(), "looking changes nothing"


def test_a_root_that_can_not_be_written_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    code, text = examined(tmp_path / "file" / "tunnel")
    assert code == 2
    assert "! disk: " in text
    assert "root=DIR" in text


def test_little_disk_and_no_compiler_are_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10**8)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    code, text = examined(tmp_path)
    assert code == 0, "a warning stops nobody"
    assert "! disk: below 2 GiB" in text
    assert "! C++ compiler: " in text


def test_the_matmul_speed_is_a_speed() -> None:
    slow, fast = (doctor.matmul_flops_per_s(seconds) for seconds in (0.02, 0.2))
    assert 1e8 < slow < 1e13
    assert fast >= 0.2 * slow


@pytest.mark.parametrize("code", [0, 1])
def test_slurms_commands_alone_are_no_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = doctor.slurm().found
    assert found.startswith(str(tmp_path / "sbatch"))
    assert ("no cluster answers" in found) is (code != 0)


def test_what_computes_the_rest_says_why_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled_by() != "none":
        monkeypatch.setattr(threads, "why_one_thread", lambda: "the runtime has no such function")
        assert "on one thread (the runtime has no such function)" in doctor.rest_of_a_step()

    def refuse() -> None:
        raise compiled.NoCompiledKernel("c++ could not build the kernel: error: as it says")

    monkeypatch.setattr(compiled, "load_library", refuse)
    assert doctor.rest_of_a_step().endswith("could not build the kernel: error: as it says")


@pytest.mark.usefixtures("on_a_mac")
def test_on_a_mac_the_processor_is_named_and_advice_is_a_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = f"{usable_cores()} of {os.cpu_count()} cores usable"
    assert doctor.cpu() == Finding(name="CPU", found=f"Apple M2, {cores}, asimd bf16")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "xcode-select --install" in doctor.compilers().advice
