"""Compile the C++ kernels once per machine, into a cache, with the compiler that is there.

A library is built for the very CPU it will run on (``-march=native``), so the cache key holds the
sources, the flags, the compiler and the CPU's own feature list: a home directory shared by unlike
machines never serves one machine's build to another.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("cpu.cpp")
"""The expert kernel."""
FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++17",
    "-ffp-contract=fast",  # multiply-adds become one instruction
    "-fno-math-errno",
    "-fopenmp",
    "-shared",
    "-fPIC",
)
COMPILE_TIMEOUT_S = 300


class NoCompiledKernel(RuntimeError):
    """There is no compiled kernel on this machine; the message says why."""


@cache
def load_library(source: Path = SOURCE) -> ctypes.CDLL:
    """The library of one C++ file, built first if this machine has not built it yet.

    Raises:
        NoCompiledKernel: no compiler was found, or it failed; with its first error line.
    """
    compiler = find_compiler()
    path = cache_dir() / f"{source.stem}-{_key(compiler, source)}.so"
    if not path.exists():
        _compile(compiler, source, path)
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiledKernel(f"{path} does not load: {error}") from None


def find_compiler() -> str:
    """$CXX, else the first of g++, c++ and clang++ on the path."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++"]
    for name in wanted:
        found = shutil.which(name)
        if found:
            return found
    raise NoCompiledKernel(f"no C++ compiler found (looked for {', '.join(wanted)}); install g++")


def cache_dir() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/windtunnel/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "windtunnel" / "kernels"


def _key(compiler: str, source: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    headers = sorted(SOURCE.parent.glob("*.h"))
    texts = [path.read_text() for path in (source, *headers)]
    parts = [*texts, " ".join(FLAGS), version.stdout, _cpu_features()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _cpu_features() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _compile(compiler: str, source: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            # Built under another name and renamed: a worker beside us sees a whole file or none.
            built = Path(folder) / path.name
            command = [compiler, *FLAGS, "-o", str(built), str(source), f"-I{SOURCE.parent}"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S
            )
            if done.returncode != 0:
                first = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise NoCompiledKernel(f"{compiler} could not build the kernel: {first}")
            os.replace(built, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiledKernel(f"{compiler} could not build the kernel: {error}") from None
