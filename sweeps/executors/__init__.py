"""Where the workers of a sweep run, behind one small protocol."""

from sweeps.executors.base import Executor, Handle
from sweeps.executors.config import (
    ExecutorConfig,
    InlineConfig,
    LocalConfig,
    RayConfig,
    SlurmConfig,
    expected_slots,
    make_executor,
    packing_for,
)

__all__ = [
    "Executor",
    "ExecutorConfig",
    "Handle",
    "InlineConfig",
    "LocalConfig",
    "RayConfig",
    "SlurmConfig",
    "expected_slots",
    "make_executor",
    "packing_for",
]
