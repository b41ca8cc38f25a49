"""What tests of several packages share: a finished sweep whose truth is known."""

from __future__ import annotations

import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

# Without a GPU Triton's kernels are interpreted. Triton asks for this when it is first imported,
# and other libraries import it too, so it is said before any test file is read.
if not any(Path("/dev").glob("nvidia[0-9]*")):
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.hookimpl(optionalhook=True)  # of a plugin that `pytest` by itself does without
def pytest_xdist_auto_num_workers() -> int:
    """Of ``--numprocesses=auto``, as `make test` has it."""
    from model.system import usable_cores

    return usable_cores()


@pytest.fixture(scope="session")
def known_sweep() -> ModuleType:
    """The module ``tests/known_sweep.py``."""
    return _beside("known_sweep")


@pytest.fixture(scope="session")
def wandb_files() -> ModuleType:
    """The module ``tests/wandb_files.py``."""
    return _beside("wandb_files")


@pytest.fixture(params=["Linux", "macOS"])
def disk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What has been synced since, as ``tests/on_disk.py`` notes it."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("what a descriptor stands for is read from /proc")
    return _beside("on_disk").Disk(request.param, monkeypatch)


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


MAC = Path(__file__).with_name("macos_double")


@pytest.fixture
def mac_environment() -> dict[str, str]:
    """In which an interpreter, and those it starts, are the double of a Mac's."""
    project = MAC.parents[1]
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(MAC / "bin"), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join([str(MAC), str(project)]),
    }


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This interpreter, as far as what :mod:`model.system` says goes."""
    from model import system
    from sweeps import liveness

    answers = (system.sysctl, system.cpu_name, system.cpu_features, liveness._machine)
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setenv("PATH", str(MAC / "bin"), prepend=os.pathsep)
    read = system.read_system_file
    monkeypatch.setattr(
        system,
        "read_system_file",
        lambda path: "" if path[:5] in ("/proc", "/sys/") else read(path),
    )
    for answer in answers:
        answer.cache_clear()
    yield
    for answer in answers:
        answer.cache_clear()


@dataclass(frozen=True)
class Finished:
    """A root with a finished, fitted, promoted and launched quickstart; read it only."""

    root: Path
    plan: Any
    records: list[Any]
    study: Any
    promotion: Any
    outcome: Any


@pytest.fixture(scope="session")
def finished(known_sweep: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One such root for all tests that only read it."""
    root = tmp_path_factory.mktemp("finished") / "tunnel"
    plan = known_sweep.make(root)
    records = known_sweep.finish_all(root, plan)
    study = known_sweep.fit(root, plan)
    promotion = known_sweep.promote(root)
    outcome = known_sweep.measured(promotion.spec)
    known_sweep.launch(root, promotion, outcome)
    return Finished(root, plan, records, study, promotion, outcome)
