"""The machine under a run: device, threads, matrix products, and what a record says of them."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

from model.errors import ConfigError
from model.kernels.compiled import compiled_by
from model.training.config import RuntimeConfig


def set_up(runtime: RuntimeConfig, *, has_own_parts: bool = False) -> torch.device:
    """Configure this process for one run and choose its device.

    On a GPU an operation that can't leave the same bits every time is an error, and attention takes
    its deterministic way; with a user's own parts of the block it is a warning, and attention takes
    its faster way, whose gradients differ in their last bits from one time to the next.

    Raises:
        ConfigError: when the device asked for is not there.
    """
    torch.set_num_threads(runtime.threads)
    has_cuda = torch.cuda.is_available()
    if runtime.device == "cuda" and not has_cuda:
        raise ConfigError(
            "runtime.device: cuda was asked for but no GPU is usable; set cpu or auto"
        )
    if runtime.device == "cpu" or not has_cuda:
        return torch.device("cpu")
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=has_own_parts)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    return torch.device("cuda")


def describe_numerics(device: torch.device) -> dict[str, Any]:
    """What decides the bits of a run besides its spec; kept in the record."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    numerics = {
        "torch": torch.__version__,
        "device": f"{device.type} {name}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "float32_matmul": torch.get_float32_matmul_precision(),
    }
    if device.type == "cuda":
        numerics["repeatable"] = not torch.is_deterministic_algorithms_warn_only_enabled()
    if device.type == "cpu":
        numerics["kernels_compiled_by"] = compiled_by()
    return numerics
