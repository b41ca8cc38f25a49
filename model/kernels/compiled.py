"""Compile the C++ kernels once per machine, into a cache, with the compiler found there.

A library is built for the CPU it will run on (``-march=native``), so the cache key covers the
sources, the flags, the compiler and the CPU's feature list: a home directory shared by different
machines never serves one machine's build to another.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.kernels.recording import call
from model.kernels.threads import hand_over_threads
from model.locks import alone
from model.system import (
    compiler_names,
    compiler_on_path,
    cpu_features,
    cpu_name,
    kernel_cache,
)

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("cpu.cpp")
"""The expert kernel."""


def flags_for(system: str, machine: str) -> tuple[str, ...]:
    """How to compile for the CPU of this machine.

    Args:
        system: as ``platform.system()`` calls it.
        machine: as ``platform.machine()`` calls it.
    """
    if machine not in ("aarch64", "arm64"):
        native = ["-march=native"]
    elif system == "Darwin":
        # Apple's compiler assumes an M1 by itself, and did not know "native" before its version 15.
        native = []
    else:
        native = ["-mcpu=native"]  # on ARM -march alone leaves the tuning to chance
    return (
        "-O3",
        *native,
        "-std=c++17",
        "-ffp-contract=fast",  # fuse multiply-adds
        "-fno-math-errno",
        "-shared",
        "-fPIC",
    )


FLAGS = flags_for(platform.system(), platform.machine())
"""No ``-fopenmp``: threads are the framework's (``threads.py``)."""
COMPILE_TIMEOUT_S = 300

SIZE, FLAG, NUMBER, POINTER = ctypes.c_int64, ctypes.c_int32, ctypes.c_float, ctypes.c_void_p
"""C types of arguments."""


class NoCompiledKernel(RuntimeError):
    """There is no compiled kernel on this machine; the message says why."""


class SourcesChanged(RuntimeError):
    """The C++ changed under a running process, whose Python may call it with other arguments."""


def _sources() -> str:
    found = hashlib.sha256()
    for path in sorted((*SOURCE.parent.glob("*.h"), *SOURCE.parent.glob("*.cpp"))):
        found.update(path.read_bytes())
    return found.hexdigest()


_SOURCES = _sources()
"""As they were when the calling Python was imported."""
_stretches_s: list[float] = []
"""That :func:`built_s` adds up."""


class Operations:
    """The functions of one C++ file by name, for callers that also have a plain implementation.

    The last argument of each function is the number of threads, which calls append.
    """

    def __init__(
        self,
        source: str,
        subject: str,
        arguments: Mapping[str, Sequence[type]],
        *,
        results: Mapping[str, type] | None = None,
        prepare: Callable[[ctypes.CDLL], None] | None = None,
    ) -> None:
        """Nothing is compiled yet.

        Args:
            source: a file beside this one.
            subject: what the framework computes if this can't be compiled, in the plural.
            arguments: the C types of each function's arguments, without the threads.
            results: the C types of the functions that return something.
            prepare: called with a library before its first use.
        """
        self._source = SOURCE.with_name(source)
        self._subject = subject
        self._arguments = arguments
        self._results = results or {}
        self._prepare = prepare

    @cached_property
    def library(self) -> ctypes.CDLL | None:
        """Compiled at first use; None, said once, where that is not possible."""
        try:
            library = load_library(self._source)
        except NoCompiledKernel as error:
            logger.warning("%s are left to the framework: %s", self._subject, error)
            return None
        for name, types in self._arguments.items():
            function = getattr(library, name)
            function.argtypes, function.restype = [*types, FLAG], self._results.get(name)
        if self._prepare is not None:
            self._prepare(library)
        return library

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Tensors become their addresses, None a null pointer.

        The caller keeps them alive, and has made sure that there is a library.
        """
        plain = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
        plain.append(torch.get_num_threads())
        return call(getattr(self.library, name), plain, arguments)


@cache
def load_library(source: Path = SOURCE) -> ctypes.CDLL:
    """The library of one C++ file, built first if this machine has not built it yet.

    Raises:
        NoCompiledKernel: no compiler was found, or it failed; with its first error line.
        SourcesChanged: since this process began.
    """
    if _sources() != _SOURCES:
        raise SourcesChanged(
            f"{SOURCE.parent}: the kernels' sources have changed since this process began; "
            "start it again"
        )
    compiler = find_compiler()
    path = kernel_cache() / f"{source.stem}-{_key(compiler, source)}.so"
    if not path.exists():
        began = time.perf_counter()
        try:
            with _one_at_a_time(path):
                if not path.exists():  # a process beside this one may have built it meanwhile
                    _compile(compiler, source, path)
        finally:
            _stretches_s.append(time.perf_counter() - began)
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NoCompiledKernel(f"{path} does not load: {error}") from None
    hand_over_threads(library)
    return library


def compiled_by() -> str:
    """The compiler of this machine's kernels and its version; "none" where there are none."""
    try:
        library = load_library()
    except NoCompiledKernel:
        return "none"
    library.wt_compiler.restype = ctypes.c_char_p
    version: bytes = library.wt_compiler()
    return version.decode()


def find_compiler() -> str:
    """$CXX, else the first of g++, c++ and clang++ on the path."""
    if found := compiler_on_path():
        return found
    how = "xcode-select --install" if platform.system() == "Darwin" else "install g++"
    looked_for = ", ".join(compiler_names())
    raise NoCompiledKernel(f"no C++ compiler found (looked for {looked_for}); {how}")


def built_s() -> float:
    """Seconds that this process has built libraries, or waited for another that did: once a
    machine, and no part of the work that needs them."""
    return sum(_stretches_s)


def _key(compiler: str, source: Path) -> str:
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    headers = sorted(SOURCE.parent.glob("*.h"))
    texts = [path.read_text() for path in (source, *headers)]
    cpu = [platform.machine(), cpu_name(), *sorted(cpu_features())]
    parts = [*texts, " ".join(FLAGS), version.stdout, " ".join(cpu)]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold the right to build ``path``: workers that start together would all compile it.

    Where there can be no lock each builds its own.
    """
    with ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(alone(path.with_suffix(".lock")))
        except OSError as error:
            logger.debug("no lock beside %s: %s", path, error)
        yield


def _compile(compiler: str, source: Path, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            # Built under another name and renamed: others see a whole file or none.
            built = Path(folder) / path.name
            command = [compiler, *FLAGS, "-o", str(built), str(source), f"-I{SOURCE.parent}"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=COMPILE_TIMEOUT_S
            )
            if done.returncode != 0:
                why = _first_error(done.stderr)
                raise NoCompiledKernel(f"{compiler} could not build the kernel: {why}")
            os.replace(built, path)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoCompiledKernel(f"{compiler} could not build the kernel: {error}") from None


def _first_error(said: str) -> str:
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line]  # warnings may come before it
    return (errors or lines or ["no message"])[0]
