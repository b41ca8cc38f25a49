"""What the framework's own compiled library offers to ours: functions, as addresses to call."""

from __future__ import annotations

import ctypes
import platform
from functools import cache
from pathlib import Path

import torch


@cache
def address(name: str) -> int | None:
    """Of a C function of the framework or of a library it uses, in the copy that it uses itself;
    None if there is no such function.
    """
    try:
        return ctypes.cast(_library()[name], ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None


@cache
def _library() -> ctypes.CDLL:
    suffix = "dylib" if platform.system() == "Darwin" else "so"
    # Already loaded: this finds it again, and in it whatever it was linked with.
    return ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"))
