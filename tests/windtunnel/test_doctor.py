"""`windtunnel doctor`: what it finds, what it advises, and when no run could work."""

import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from model.kernels import compiled, threads
from model.kernels.compiled import compiled_by
from model.system import usable_cores
from windtunnel import cli
from windtunnel.commands import doctor
from windtunnel.commands.doctor import Config, Finding
from windtunnel.console import make_console
from windtunnel.own_memory import OwnMemory


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
    *lines, last = text.splitlines()
    assert max(map(len, lines)) <= 100
    root = tmp_path / "not" / "there" / "yet"
    assert last.endswith(f"windtunnel sweep sweep=quickstart root={root}"), "whole, to be pasted"
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    code: int,
) -> None:
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text(f"#!/bin/sh\necho 12 jobs\nexit {code}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    found = doctor.slurm().found
    assert found.startswith(str(tmp_path / "sbatch"))
    assert ("no cluster answers" in found) is (code != 0)
    assert capfd.readouterr().out == "", "what Slurm says is not the doctor's"


def test_what_computes_the_rest_says_why_it_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    if compiled_by() != "none":
        monkeypatch.setattr(threads, "why_one_thread", lambda: "the runtime has no such function")
        assert "on one thread (the runtime has no such function)" in doctor.rest_of_a_step()

    def refuse() -> None:
        raise compiled.NoCompiledKernel("c++ could not build the kernel: error: as it says")

    monkeypatch.setattr(compiled, "load_library", refuse)
    assert doctor.rest_of_a_step().endswith("could not build the kernel: error: as it says")


@pytest.mark.parametrize(
    ("key", "machine", "found"),
    [
        ("abc", None, "logged in"),
        ("", None, "not logged in; tracker=wandb writes offline"),
        (None, "wandb.own.test", "logged in"),
        (None, "example.org", "not logged in; tracker=wandb writes offline"),
        (None, None, "not logged in; tracker=wandb writes offline"),
    ],
)
def test_wandb_knows_a_key_or_a_netrc(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    key: str | None,
    machine: str | None,
    found: str,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.own.test")
    if key is not None:
        monkeypatch.setenv("WANDB_API_KEY", key)
    if machine is not None:
        (tmp_path / ".netrc").write_text(f"machine {machine} login user password secret\n")
        (tmp_path / ".netrc").chmod(0o600)
    assert doctor.wandb_login() == Finding(name="W&B", found=found)


def test_runs_are_not_mirrored_to_a_server_that_has_no_key_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They trained, and nothing said that W&B had none of them."""
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.own.test")
    small = ["sweep", "sweep=smoke", f"root={tmp_path}", "tracker=wandb", "dry_run=true"]
    assert cli.main([*small, "tracker.mode=online"]) == 2
    assert "tracker.mode=online: not logged in to W&B" in capsys.readouterr().err
    assert cli.main(small) == 0
    monkeypatch.setenv("WANDB_API_KEY", "abc")
    assert cli.main([*small, "tracker.mode=online"]) == 0


@pytest.mark.parametrize(("available", "warned"), [(2 * 2**30 - 1, True), (2 * 2**30, False)])
def test_little_memory_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, available: int, warned: bool
) -> None:
    monkeypatch.setattr(doctor, "own_memory", lambda: OwnMemory(5 * 2**30, available))
    memory = doctor.memory()
    assert (memory.name, memory.found) == ("memory", "2.0 GiB free of 5.0 GiB")
    assert ("below 2 GiB" in memory.advice) is warned
    monkeypatch.setattr(doctor, "own_memory", lambda: None)
    assert doctor.memory() == Finding(name="memory", found="unknown on this system")


@pytest.mark.parametrize(
    ("free", "warned"), [(2 * 2**30 - 1, True), (2 * 2**30, False), (2 * 2**30 + 1, False)]
)
def test_little_disk_is_below_two_gibibytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, warned: bool
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    found = doctor.disk(tmp_path / "not" / "yet")
    assert found.found == f"2.15GB free under {tmp_path / 'not' / 'yet'}"
    assert (found.name, bool(found.advice), found.fatal) == ("disk", warned, False)


@pytest.mark.parametrize(
    ("flags", "told", "is_slow"),
    [
        ({"avx2", "amx_bf16", "sse"}, "avx2 amx_bf16", False),
        ({"asimd"}, "asimd", False),
        ({"sse", "avx512f"}, "avx512f", True),
        ({"sse"}, "no vector unit known to us", True),
        (set(), "no vector unit known to us", False),  # the system does not say
    ],
)
def test_a_processor_without_wide_vectors_is_slow(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], told: str, is_slow: bool
) -> None:
    monkeypatch.setattr(doctor, "cpu_features", lambda: flags)
    monkeypatch.setattr(doctor, "cpu_name", lambda: "Some CPU")
    found = doctor.cpu()
    cores = f"{usable_cores()} of {os.cpu_count()} cores usable"
    assert (found.name, found.found) == ("CPU", f"Some CPU, {cores}, {told}")
    assert bool(found.advice) is is_slow


@pytest.mark.parametrize(("speed", "warned"), [(14.9e9, True), (15e9, False)])
def test_a_slow_product_is_warned_of(
    monkeypatch: pytest.MonkeyPatch, speed: float, warned: bool
) -> None:
    monkeypatch.setattr(doctor, "matmul_flops_per_s", lambda seconds: speed)
    built, product = doctor.torch_and_speed(0.1)
    assert built.name == "torch"
    assert built.found.startswith(f"{torch.__version__}, ")
    assert product.found == "15 GFLOP/s on one thread (float32, 512 x 512)"
    assert (product.name, bool(product.advice)) == ("matmul", warned)


def test_a_product_is_timed_on_one_thread_and_the_others_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of three products at 2, 1 and 3 ms by the clock the fastest: 2·512³ FLOPs in one."""
    asked: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    ticks = iter([0.0, 0.0, 0.0, 0.002, 0.002, 0.002, 0.003, 0.003, 0.003, 0.006, 0.006])
    monkeypatch.setattr(doctor.time, "perf_counter", lambda: next(ticks))
    assert doctor.matmul_flops_per_s(0.005) == pytest.approx(2 * 512**3 / 0.001)
    assert asked == [1, 5]


def test_the_interpreter_is_named() -> None:
    found = f"{sys.version.split()[0]} at {sys.executable}"
    assert doctor.python() == Finding(name="Python", found=found)


def test_packages_are_told_with_their_versions() -> None:
    assert list(doctor._versions(("numpy", "no-such-package"))) == [
        f"numpy {np.__version__}",
        "no-such-package missing",
    ]


@pytest.mark.usefixtures("on_a_mac")
def test_on_a_mac_the_processor_is_named_and_advice_is_a_macs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cores = f"{usable_cores()} of {os.cpu_count()} cores usable"
    measured = {"usable_cores": usable_cores()}
    found = f"Apple M2, {cores}, asimd bf16"
    assert doctor.cpu() == Finding(name="CPU", found=found, measured=measured)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert "xcode-select --install" in doctor.compilers().advice
