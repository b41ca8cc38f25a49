"""What a machine's first runs wait for, and no estimate counts: the compiling of the kernels."""

from __future__ import annotations

from typing import Literal

from model.system import compiler_on_path, kernel_cache
from sweeps.executors import ExecutorConfig
from sweeps.executors.config import LocalConfig
from sweeps.packing import device_of
from windtunnel.own_gpu import HERE


def compiles_first(device: Literal["auto", "cpu", "cuda"], executor: ExecutorConfig) -> str:
    """A sentence where runs on this machine's CPU find nothing compiled yet; else empty."""
    has_gpus = isinstance(executor, LocalConfig) and executor.gpus > 0
    if executor.kind not in HERE or device_of(device, has_gpus=has_gpus) != "cpu":
        return ""
    if compiler_on_path() is None or any(kernel_cache().glob("*.so")):
        return ""
    return (
        "First the kernels are compiled, once on this machine: about a minute that the estimate "
        "leaves out"
    )
