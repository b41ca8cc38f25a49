"""What the kernel benchmarks share: the machine's ceilings, interleaved timing, a table, its JSON.

The machine may be busy with other work. So all alternatives of a shape take turns within one run,
each figure is a median with its quartiles, and conclusions are ratios of such medians.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.kernels.compiled import NoCompiledKernel, load_library
from model.system import cpu_name
from model.training.environment import worker_environment


def in_worker_environment(threads: int) -> None:
    """Begin this program anew with the variables every training process gets."""
    wanted = worker_environment(threads)
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **wanted})


def options(defaults: Mapping[str, str]) -> dict[str, str]:
    """``key=value`` words of the command line over ``defaults``."""
    chosen = dict(defaults)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise SystemExit(f"{word}: give any of {', '.join(f'{k}=...' for k in defaults)}")
        chosen[key] = value
    return chosen


@dataclass(frozen=True)
class Ceiling:
    """Most that one core was seen to do; 0 where it could not be measured."""

    fp32_gflops: float
    bf16_gflops: float
    """In vector registers."""
    bf16_tiles_gflops: float
    """On the tile unit (AMX)."""
    copy_gb_s: float

    def gflops(self, dtype: str) -> float:
        if dtype == "fp32":
            return self.fp32_gflops
        return max(self.bf16_gflops, self.bf16_tiles_gflops)


def ceiling() -> Ceiling:
    """The best of a few tries: other work can only make them worse."""
    try:
        library = load_library(Path(__file__).with_name("ceiling.cpp"))
    except NoCompiledKernel as error:
        print(f"no ceilings: {error}")
        return Ceiling(0.0, 0.0, 0.0, 0.0)
    best = []
    for name in ("wt_fp32_gflops", "wt_bf16_gflops", "wt_tiles_gflops", "wt_copy_gb_s"):
        measure = getattr(library, name)
        measure.restype = ctypes.c_double
        best.append(max(measure() for _ in range(5)))
    return Ceiling(*best)


@dataclass(frozen=True)
class Timing:
    """Seconds of one alternative: the median and the quartiles of its rounds."""

    median: float
    low: float
    high: float


def interleaved(
    work: Mapping[str, Callable[[], object]],
    *,
    clock: Callable[[], float],
    rounds: int,
    at_least_s: float = 0.02,
) -> dict[str, Timing]:
    """Time every alternative once a round, in turn; short ones are repeated within their turn.

    A turn begins with a call that is not counted: the alternative before has left its own data in
    the caches, and a tile unit that was not used for 30 ms takes a call to come back to its speed.
    """
    repeats = {}
    for name, once in work.items():
        once()
        began = clock()
        once()
        repeats[name] = max(1, int(at_least_s / max(clock() - began, 1e-6)))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, once in work.items():
            once()
            began = clock()
            for _ in range(repeats[name]):
                once()
            seconds[name].append((clock() - began) / repeats[name])
    return {name: _timing(values) for name, values in seconds.items()}


def _timing(values: Sequence[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], values[0], values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, low, high)


def clock_for(threads: int) -> Callable[[], float]:
    """Processor time of one thread, which other work hardly changes; wall time of several."""
    return time.process_time if threads == 1 else time.perf_counter


def machine() -> dict[str, Any]:
    """What the figures belong to."""
    import torch

    return {
        "cpu": cpu_name() or platform.machine(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "load_1min": os.getloadavg()[0],
    }


def yaml_values(path: Path) -> Any:
    """What a YAML file of ``conf/`` says; ``141e9`` is a number there, as Hydra reads it."""
    import yaml

    def converted(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items()}
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    return converted(yaml.safe_load(path.read_text()))


def write_json(path: str, **content: Any) -> None:
    if path:
        Path(path).write_text(json.dumps(content, indent=1) + "\n")
