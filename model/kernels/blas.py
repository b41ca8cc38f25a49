"""The framework's own matrix product, as an address that compiled kernels can call.

Calling it from C++ avoids the framework's dispatch, which is most of a small product's time.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch

from model.kernels.framework import address
from model.system import cpu_vendor


@cache
def sgemm_address() -> int | None:
    """The address of ``sgemm_`` where it is MKL's on a CPU of its maker, else None.

    There it beats our own tiles at every shape of a step; on other CPUs MKL takes a path that
    reaches less than half of the machine's peak (LOG.md, 2026-11-26). Decided by the CPU's vendor
    and not by a measurement, so that a run's bits do not depend on how busy the machine was.
    """
    if not torch.backends.mkl.is_available() or cpu_vendor() != "GenuineIntel":
        return None
    return address("sgemm_")


def hand_over_sgemm(library: ctypes.CDLL) -> None:
    """Have a compiled library call it, and keep a small product to the thread that asks for it."""
    library.wt_use_sgemm.argtypes, library.wt_use_sgemm.restype = [ctypes.c_void_p] * 2, None
    library.wt_use_sgemm(sgemm_address(), address("MKL_Set_Num_Threads_Local"))
