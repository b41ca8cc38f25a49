"""What runs on Linux runs on a Mac, as far as a double of it can tell (``tests/macos_double``)."""

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("windtunnel", "sweeps", "analysis", "model")
OUTSIDE_A_LAPTOP = ("model.kernels.triton_", "sweeps.executors.ray", "sweeps.executors.slurm")

FOLDERS = r"/(proc|sys|dev/shm)/.*"
ALLOWED = {
    "model/files.py": {"os.fsync"},  # which does not reach the disk of a Mac
    "model/system.py": {"os.sched_getaffinity", "/proc/cpuinfo", "/sys/fs/cgroup/cpu.max"},
    "sweeps/liveness.py": {
        "/proc/",
        "/proc/self/ns/pid",
        "/proc/sys/kernel/random/boot_id",
    },
    "sweeps/executors/slurm.py": {"os.waitid"},  # clusters are Linux's
    "windtunnel/own_memory.py": {
        "/proc/meminfo",
        "/sys/fs/cgroup/memory.current",
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory.stat",
    },
}
"""What only Linux has, and the files that do without it elsewhere."""


def of_linux_alone() -> set[str]:
    """``module.name`` of all that the double takes away."""
    double = (ROOT / "tests" / "macos_double" / "sitecustomize.py").read_text(encoding="utf-8")
    listed = next(
        node.value
        for node in ast.parse(double).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ABSENT"
    )
    assert isinstance(listed, ast.Dict)
    names = set()
    for module, words in zip(listed.keys, listed.values, strict=True):
        assert isinstance(module, ast.Name)
        names |= {f"{module.id}.{word}" for word in ast.literal_eval(words).split()}
    return names


def used(path: Path, alone: set[str]) -> Iterator[str]:
    """What of Linux's a file names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in alone:
                yield name
        elif isinstance(node, ast.Constant) and re.fullmatch(FOLDERS, str(node.value)):
            yield str(node.value)


def test_what_linux_alone_has_is_used_where_there_is_a_way_without() -> None:
    alone = {"os.fsync", *of_linux_alone()}
    assert "os.sched_getaffinity" in alone
    found = {
        str(path.relative_to(ROOT)): names
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if (names := set(used(path, alone)))
    }
    assert found == ALLOWED


IMPORT_ALL = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="a double of a Mac, made of Linux")
def test_a_sweep_on_the_double_of_a_mac(tmp_path: Path, mac_environment: dict[str, str]) -> None:
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(paths)]
    names = [name for name in names if not name.startswith(OUTSIDE_A_LAPTOP)]

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, *command],
            env=mac_environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("-c", IMPORT_ALL, *names)
    cell = ("ladder.sizes=1", "ladder.budgets=1", "ladder.noise_seeds=[]")
    said = run("-m", "windtunnel.cli", "sweep", "sweep=smoke", *cell)
    assert "1 of 1 run done" in said
    (record,) = (tmp_path / "tunnel" / "runs").glob("*/record.json")
    (claim,) = record.parent.glob("attempts/*/claim.json")
    hardware = json.loads(record.read_text())["provenance"]["hardware"]
    assert (hardware["system"], hardware["cpu"]) == ("Darwin arm64", "Apple M2")
    owner = json.loads(claim.read_text())["owner"]
    assert owner["machine"] == "6C1E0C4B-7C7E-4A55-9A4C-1F0D6A3B9E21"
    assert owner["start_ticks"] > 1.7e9


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(("version", "is_enough"), [("(3, 9)", False), ("(3, 11)", True)])
def test_a_python_that_is_too_old_is_named_before_anything_is_installed(
    tmp_path: Path, version: str, is_enough: bool
) -> None:
    """As a Mac's own, whose pip finds no version of the first package and says so at length."""
    for name in ("Makefile", "pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / "old python"  # which makes no environment, so that nothing is installed
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || exit 7\n'
        f'exec {sys.executable} -c "import sys; sys.version_info = {version}; $2"\n'
    )
    python.chmod(0o755)
    command = ["make", "install", f"PYTHON='{python}'"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert ("-m venv" in done.stdout) is is_enough
    assert ("This is Python 3.9, from 3.11 on is needed" in done.stderr) is not is_enough


TRITON_OF = {"2.13.0": "3.7.1"}
"""What the framework's builds for Linux ask for, by their metadata. Its builds without CUDA ask for
none: a machine that has one of those installs whatever else is pinned."""


def test_the_pinned_packages_can_be_installed_together() -> None:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.partition(";")[0].strip().split("==") for line in lines if "==" in line)
    assert pinned["triton"] == TRITON_OF[pinned["torch"]]
