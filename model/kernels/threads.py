"""The framework's own threads for compiled kernels: no compiler's OpenMP, no second runtime.

Two OpenMP runtimes in a process have two sets of threads that take the cores from each other, and
on macOS they crash. GCC's runtime and LLVM's export the same functions; see ``team.h``.
"""

from __future__ import annotations

import ctypes
import logging
from functools import cache

from model.kernels.framework import address

logger = logging.getLogger(__name__)

_FUNCTIONS = ("GOMP_parallel", "GOMP_barrier", "omp_get_thread_num", "omp_get_thread_limit")


def hand_over_threads(library: ctypes.CDLL) -> None:
    """Let a compiled library share its work out; without this it computes on the calling thread."""
    use_threads = getattr(library, "wt_use_threads", None)
    if use_threads is None:  # it has nothing to share
        return
    why_one = why_one_thread()
    if why_one:
        _say_once(f"compiled kernels compute on one thread: {why_one}")
        return
    use_threads.argtypes, use_threads.restype = [ctypes.c_void_p] * len(_FUNCTIONS), None
    use_threads(*map(address, _FUNCTIONS))


@cache
def why_one_thread() -> str:
    """Why compiled kernels can't have the framework's threads; empty if they can."""
    missing = [name for name in _FUNCTIONS if address(name) is None]
    if missing:
        return f"the framework's OpenMP runtime has no {missing[0]}"
    is_dynamic = address("omp_get_dynamic")
    if is_dynamic is not None and ctypes.CFUNCTYPE(ctypes.c_int)(is_dynamic)():
        # Shares are cut for the threads asked for, so that the bits depend on their number alone.
        return "OMP_DYNAMIC lets the runtime give fewer threads than were asked for; unset it"
    return ""


@cache
def _say_once(what: str) -> None:
    logger.warning(what)
