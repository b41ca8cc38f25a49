"""The rules of the house that the import linter does not hold: one outside thing, one door."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("windtunnel", "sweeps", "analysis", "model")

DOORS = {
    "hydra": "windtunnel/",
    "omegaconf": "windtunnel/",
    "wandb": "model/training/wandb_mirror.py",
    "tensorboard": "model/training/tensorboard_mirror.py",
    "matplotlib": "analysis/plots",
    "rich": "windtunnel/",
    "jinja2": "windtunnel/report/",
    "triton": "model/kernels/",
    "submitit": "sweeps/executors/",
    "ray": "sweeps/executors/",
}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def imported(path: Path) -> Iterator[str]:
    """Top-level names of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_one_outside_thing_one_door() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}, whose door is {DOORS[name]}"
        for path in sources()
        for name in imported(path)
        if name in DOORS and not str(path.relative_to(ROOT)).startswith(DOORS[name])
    ]
    assert not wrong


def test_figures_are_made_without_pyplot() -> None:
    """It keeps every figure it makes and is one for the whole process."""
    wrong = [
        str(path.relative_to(ROOT))
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom) and "pyplot" in ast.unparse(node)
    ]
    assert not wrong


def test_the_doors_are_used() -> None:
    """A rule about a thing nobody imports would hold nothing."""
    used = {name for path in sources() for name in imported(path)}
    assert {"hydra", "omegaconf", "wandb", "matplotlib", "rich", "triton"} <= used


@pytest.mark.parametrize(
    "modules",
    [
        "analysis",
        "analysis.fitting, analysis.laws, analysis.records, analysis.study, analysis.bootstrap",
        "model",
        "model.config, model.accounting, model.typed, model.training.config, model.training.data",
        "model.training.corpora",
        "sweeps.plan, sweeps.store, sweeps.run, sweeps.status",
        "windtunnel.cli, windtunnel.composition, windtunnel.commands.sweep",
        "windtunnel.commands.status, windtunnel.commands.doctor, windtunnel.commands.fit",
        "windtunnel.commands.promote, windtunnel.commands.launch, windtunnel.commands.model",
    ],
)
def test_torch_stays_out_of_what_only_plans_and_fits(modules: str) -> None:
    code = f"import sys; sys.modules['torch'] = None; import {modules}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=lambda p: p.stem)
def test_what_a_benchmark_imports_is_there(path: Path) -> None:
    """They are run by hand and not type-checked: a name that moved would be missed for months."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_no_test_folder_is_a_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_test_files_have_different_names() -> None:
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert len(names) == len(set(names))


def test_every_package_is_shipped_and_checked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    assert set(project["hatch"]["build"]["targets"]["wheel"]["packages"]) == set(PACKAGES)
    assert set(project["mypy"]["files"]) == set(PACKAGES)
    assert set(project["importlinter"]["root_packages"]) == set(PACKAGES)


def test_the_wheel_carries_the_yaml(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed: no wheel can be built")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel"]
    subprocess.run([*command, "--directory", str(tmp_path)], check=True, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "conf").rglob("*.yaml"):
        assert f"windtunnel/conf/{path.relative_to(ROOT / 'conf')}" in names
    unpacked = tmp_path / "unpacked"
    zipfile.ZipFile(wheel).extractall(unpacked)
    for package in PACKAGES:
        assert (unpacked / package).is_dir()
    # From another folder, with the wheel's files first on the path.
    code = (
        f"import sys; sys.path.insert(0, {str(unpacked)!r}); "
        "from windtunnel import cli, yaml_folders; "
        f"assert str(yaml_folders.CONF_DIR).startswith({str(unpacked)!r}); "
        "sys.exit(cli.main(['sweep', 'sweep=quickstart', '--cfg']))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True)


def test_every_benchmark_is_in_the_list() -> None:
    folder = ROOT / "benchmarks"
    programs = {
        path.name
        for path in folder.glob("*.py")
        if f"python benchmarks/{path.name}" in path.read_text(encoding="utf-8")
    }
    listed = set(re.findall(r"`(\w+\.py)`", (folder / "README.md").read_text(encoding="utf-8")))
    assert listed == programs
