"""Runs that this machine's memory can't hold are refused before they are started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.executors.config import LocalConfig, SlurmConfig
from windtunnel import cli, own_memory
from windtunnel.own_memory import OwnMemory

TRAIN = ["train", "model=tiny", "data=toy", "tokens=2e4", "threads=1", "device=cpu"]
STATE_BYTES = 272_896 * 16
"""Of the preset: float32 weights, gradients and two moments."""


def _never(*_: object, **__: object) -> None:
    raise AssertionError("it was started")


@pytest.mark.parametrize(
    ("total", "code", "said"),
    [(STATE_BYTES - 1, 2, "take 4.37MB, this machine has 4.37MB"), (STATE_BYTES, 0, "")],
)
def test_a_run_is_refused_from_the_first_byte_too_many(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    total: int,
    code: int,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_memory, "own_memory", lambda: OwnMemory(total, total))
    monkeypatch.setattr("windtunnel.commands.train.run_sweep", _never)
    assert cli.main([*TRAIN, "dry_run=true"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert ("It would be refused" in shown) is bool(said)
    if code:
        assert cli.main(TRAIN) == code
        assert said in capsys.readouterr().err


def test_a_cluster_and_what_is_done_need_no_memory_here(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_memory, "own_memory", lambda: OwnMemory(1, 1))
    runs = finished.plan.runs
    largest = max(runs, key=lambda run: run.cost.total_params)
    assert own_memory.too_large(runs, LocalConfig(), "cpu").startswith(largest.run_id[:5])
    assert own_memory.too_large(runs, SlurmConfig(), "cpu") == ""
    assert own_memory.too_large(runs, LocalConfig(), "cuda") == ""
    assert own_memory.too_large((), LocalConfig(), "cpu") == ""


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ("MemTotal: 8 kB\nMemFree: 2 kB\nMemAvailable: 4 kB\n", OwnMemory(8192, 4096)),
        ("MemTotal: 8 kB\nMemFree: 2 kB\nBuffers: 1 kB\n", OwnMemory(8192, 2048)),
        ("MemTotal: 8 kB\n", None),
        ("MemFree: 2 kB\n", None),
        ("", None),
    ],
)
def test_a_system_that_says_less_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, lines: str, found: OwnMemory | None
) -> None:
    files = {"/proc/meminfo": lines}
    monkeypatch.setattr(own_memory, "is_macos", lambda: False)
    monkeypatch.setattr(own_memory, "read_system_file", lambda path: files.get(path, ""))
    assert own_memory.own_memory() == found


@pytest.mark.parametrize(
    ("limit", "used", "stat", "found"),
    [
        ("6144\n", "1024\n", "", OwnMemory(6144, 4096)),  # 5120 are left of the container's
        ("6144\n", "4096\n", "", OwnMemory(6144, 2048)),
        ("6144\n", "", "", OwnMemory(6144, 4096)),
        ("65536\n", "1024\n", "", OwnMemory(8192, 4096)),
        ("max\n", "8000\n", "", OwnMemory(8192, 4096)),
        (
            "6144\n",
            "6000\n",
            "active_file 400\ninactive_file 3000\ntotal_inactive_file 9\n",
            OwnMemory(6144, 3144),
        ),
    ],
)
def test_a_container_has_what_its_limit_leaves_and_files_read_are_not_used(
    monkeypatch: pytest.MonkeyPatch, limit: str, used: str, stat: str, found: OwnMemory
) -> None:
    group = "/sys/fs/cgroup/memory"
    files = {"/proc/meminfo": "MemTotal: 8 kB\nMemAvailable: 4 kB\n"}
    files |= {f"{group}.max": limit, f"{group}.current": used, f"{group}.stat": stat}
    monkeypatch.setattr(own_memory, "is_macos", lambda: False)
    monkeypatch.setattr(own_memory, "read_system_file", lambda path: files.get(path, ""))
    assert own_memory.own_memory() == found


@pytest.mark.parametrize(
    ("precision", "optimizer", "bytes_a_param"),
    [("fp32", "adamw", 4 + 4 + 8), ("bf16", "adamw", 16), ("bf16_weights", "adamw8bit", 2 + 2 + 2)],
)
def test_smaller_numbers_need_less(
    finished: Any,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    optimizer: str,
    bytes_a_param: int,
) -> None:
    run = finished.plan.runs[0]
    train = replace(
        run.spec.train,
        precision=precision,
        optimizer=replace(run.spec.train.optimizer, kind=optimizer),
    )
    runs = (replace(run, spec=replace(run.spec, train=train)),)
    needed = bytes_a_param * run.cost.total_params
    for total, is_refused in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr(own_memory, "own_memory", lambda total=total: OwnMemory(total, 1))
        assert bool(own_memory.too_large(runs, LocalConfig(), "cpu")) is is_refused


def test_where_a_gpu_is_found_the_machine_s_own_memory_says_nothing(
    finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_memory, "own_memory", lambda: OwnMemory(1, 1))
    for has_gpu in (True, False):
        monkeypatch.setattr(own_memory, "has_gpu", lambda has_gpu=has_gpu: has_gpu)
        assert bool(own_memory.too_large(finished.plan.runs, LocalConfig(), "auto")) is not has_gpu
        assert own_memory.too_large(finished.plan.runs, LocalConfig(), "cpu")


@pytest.mark.usefixtures("on_a_mac")
def test_a_mac_is_asked_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    found = OwnMemory(total=2**34, available=2**14 * (1000 + 300_000 + 500))
    assert own_memory.own_memory() == found
    monkeypatch.setattr(own_memory, "said_by", lambda *command: None)
    assert own_memory.own_memory() is None
