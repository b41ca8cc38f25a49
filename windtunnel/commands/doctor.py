"""Check this machine: which kernels it will use, how fast they are, and what to fix.

Looks at Python, torch and its threads, the CPU's vector units, the speed of a float32 matmul,
memory, free disk under the root, compilers, Slurm and W&B, and which kernels would compute the
experts and the rest of a step on each device and in each type, with measured times of the
alternatives. A line marked `!` is worth fixing and says how. The exit code is 2 when no run could
work. For scripts, `json=true` prints one JSON object with every finding and what was measured.

Example:
  windtunnel doctor
  windtunnel doctor json=true
  windtunnel doctor root=/scratch/tunnel
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

from analysis.wording import counted
from model.config import require_positive
from model.system import cpu_features, cpu_name, is_macos, usable_cores
from windtunnel.console import say, si, table
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.own_memory import own_memory
from windtunnel.quoting import under

CPU_FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16", "asimd", "bf16")
PACKAGES = ("numpy", "scipy", "pandas", "hydra-core", "wandb", "tokenizers", "rich")
ENOUGH_DISK_BYTES = 2 * 2**30
ENOUGH_MEMORY_BYTES = 2 * 2**30
# A core of a ten-year-old server does about 30 GFLOP/s; far below it something else is wrong.
SLOW_CORE_FLOPS_PER_S = 15e9


ANSWER_S = 5.0
"""For Slurm's controller, which answers within a second where there is one."""


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/doctor.yaml``."""

    root: Path
    """Where runs, sweeps and data would be kept."""
    measure_s: float
    """Seconds spent on measuring the matmul speed, and about as many on the expert kernels."""

    def __post_init__(self) -> None:
        require_positive(measure_s=self.measure_s)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the examination."""

    name: str
    found: str
    advice: str = ""
    """What to do; empty where all is well."""
    fatal: bool = False
    measured: Mapping[str, float] = field(default_factory=dict)
    """Numbers by name, with their unit in it."""


def run(config: Config, console: Console) -> int:
    """Print every finding; 2 if any would stop every run."""
    if config.json:
        return _answer(list(examine(config)))
    with console.status("Measuring; the first time, the kernels are compiled in half a minute"):
        findings = list(examine(config))
    rows = [("!" if f.advice else "", f.name, f.found) for f in findings]
    console.print(table(["", "what", "found"], rows, left=3))
    for finding in findings:
        if finding.advice:
            say(console, f"! {finding.name}: {finding.advice}")
    fatal = [finding for finding in findings if finding.fatal]
    if not fatal:
        command = f"windtunnel sweep sweep=quickstart{under(config.root)}"
        say(console, f"This machine can run a sweep: {command}")
    return 2 if fatal else 0


def _answer(findings: Sequence[Finding]) -> int:
    can_run = not any(finding.fatal for finding in findings)
    found = [
        {
            "name": finding.name,
            "found": finding.found,
            "advice": finding.advice,
            "is_fatal": finding.fatal,
            "measured": finding.measured,
        }
        for finding in findings
    ]
    write_answer("doctor", {"can_run": can_run, "findings": found})
    return 0 if can_run else 2


def examine(config: Config) -> Iterator[Finding]:
    """Every finding, cheap ones first."""
    yield python()
    yield cpu()
    yield memory()
    yield disk(config.root)
    yield from torch_and_speed(config.measure_s)
    yield compilers()
    yield from kernels(config.measure_s)
    yield slurm()
    yield wandb_login()
    yield Finding(name="packages", found=", ".join(_versions(PACKAGES)))


def python() -> Finding:
    """The interpreter."""
    return Finding(name="Python", found=f"{platform.python_version()} at {sys.executable}")


def cpu() -> Finding:
    """Cores this process may use, and the vector units of the CPU."""
    flags, cores = cpu_features(), {"usable_cores": usable_cores()}
    present = [feature for feature in CPU_FEATURES if feature in flags]
    found = f"{cpu_name() or platform.machine()}, {usable_cores()} of {os.cpu_count()} cores usable"
    found += f", {' '.join(present) or 'no vector unit known to us'}"
    if flags and not {"avx2", "asimd"} & set(present):
        advice = "no AVX2: runs work but are slow; estimates in plans will be too low"
        return Finding(name="CPU", found=found, advice=advice, measured=cores)
    return Finding(name="CPU", found=found, measured=cores)


def memory() -> Finding:
    """Memory available now, after a container's limit."""
    own = own_memory()
    if own is None:
        return Finding(name="memory", found="unknown on this system")
    measured = {"memory_available_bytes": own.available, "memory_total_bytes": own.total}
    found = f"{own.available / 2**30:.1f} GiB free of {own.total / 2**30:.1f} GiB"
    if own.available < ENOUGH_MEMORY_BYTES:
        advice = "below 2 GiB: run fewer workers, executor.workers=1"
        return Finding(name="memory", found=found, advice=advice, measured=measured)
    return Finding(name="memory", found=found, measured=measured)


def disk(root: Path) -> Finding:
    """Free space where runs are kept, and whether files can be made there."""
    existing = next(
        folder for folder in [root.absolute(), *root.absolute().parents] if folder.exists()
    )
    free = shutil.disk_usage(existing).free
    found, measured = f"{si(free)}B free under {root}", {"disk_free_bytes": free}
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        advice = f"can't write there ({error.strerror}); choose another folder with root=DIR"
        return Finding(name="disk", found=found, advice=advice, fatal=True, measured=measured)
    if free < ENOUGH_DISK_BYTES:
        advice = "below 2 GiB: checkpoints may not fit; free some or choose another root=DIR"
        return Finding(name="disk", found=found, advice=advice, measured=measured)
    return Finding(name="disk", found=found, measured=measured)


def torch_and_speed(measure_s: float) -> Iterator[Finding]:
    """The torch build, its threads, and what a float32 matmul reaches on one thread."""
    try:
        import torch
    except ImportError as error:
        advice = f"can't be imported ({error}); install it: pip install torch"
        yield Finding(name="torch", found="missing", advice=advice, fatal=True)
        return
    build = f"CUDA {torch.version.cuda}" if torch.cuda.is_available() else "CPU"
    threads = counted(torch.get_num_threads(), "thread", "threads")
    yield Finding(
        name="torch",
        found=f"{torch.__version__}, {build}, {threads}, {torch.backends.cpu.get_cpu_capability()}",
    )
    speed = matmul_flops_per_s(measure_s)
    found = f"{speed / 1e9:.0f} GFLOP/s on one thread (float32, 512 x 512)"
    advice = ""
    if speed < SLOW_CORE_FLOPS_PER_S:
        advice = "slow: is the machine busy, or is this an emulated CPU?"
    measured = {"matmul_flops_per_s": speed}
    yield Finding(name="matmul", found=found, advice=advice, measured=measured)


def matmul_flops_per_s(measure_s: float) -> float:
    """Best of many 512 x 512 float32 products on one thread."""
    import torch

    size, threads = 512, torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, right = torch.rand(size, size), torch.rand(size, size)
        best, ends = float("inf"), time.perf_counter() + measure_s
        while time.perf_counter() < ends:
            began = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return 2 * size**3 / best


def compilers() -> Finding:
    """A C++ compiler, which the compiled expert kernel needs once."""
    names = [name for name in ("c++", "g++", "clang++") if shutil.which(name)]
    if not names:
        install = "xcode-select --install" if is_macos() else "apt install g++"
        advice = f"without one the compiled expert kernel is left out ({install})"
        return Finding(name="C++ compiler", found="none", advice=advice)
    return Finding(name="C++ compiler", found=", ".join(names))


def kernels(measure_s: float) -> Iterator[Finding]:
    """What computes the experts of the laptop's ladder on each device and in each type, why, and
    how long each alternative takes; and what the rest of a step is computed by.
    """
    import torch

    from model.kernels.select import select
    from model.kernels.speed import EXPERT_WIDTH, WIDTH, kernels_here, layer_seconds

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
            for dtype, word in ((torch.float32, "fp32"), (torch.bfloat16, "bf16")):
                choice = select(dtype, WIDTH, EXPERT_WIDTH, device=device)
                seconds = {
                    name: layer_seconds(name, device, dtype, measure_s / 8)
                    for name in kernels_here(device, dtype)
                }
                times = ", ".join(f"{name} {1e3 * s:.2f}" for name, s in seconds.items())
                found = f"{choice.name}: {choice.reason}; ms a layer: {times}"
                where = word if device == "cpu" else f"{word} on the GPU"
                fastest = min(seconds, key=seconds.__getitem__)
                advice = ""
                if seconds[fastest] < 0.8 * seconds[choice.name]:
                    advice = (
                        f"{fastest} was faster than {choice.name} just now; is the machine busy?"
                    )
                yield Finding(
                    name=f"experts, {where}",
                    found=found,
                    advice=advice,
                    measured={f"layer_s.{name}": took_s for name, took_s in seconds.items()},
                )
    finally:
        torch.set_num_threads(threads)
    yield Finding(name="rest of a step", found=rest_of_a_step())


def rest_of_a_step() -> str:
    """What computes norms, routers, attention, loss and optimizer, and the plain products."""
    from model.kernels import block
    from model.kernels.blas import sgemm_address
    from model.kernels.compiled import NoCompiledKernel, compiled_by, load_library
    from model.kernels.threads import why_one_thread

    try:
        load_library()
    except NoCompiledKernel as error:
        return f"by the framework's operations: {error}"
    products = "the framework's sgemm" if sgemm_address() else "our own tiles of vectors"
    bf16 = "the framework, which casts more than it gains: slower than fp32 for small models"
    if block.can_round():
        bf16 = "vector registers (AVX512-BF16)"
    if block.has_tiles():
        products = f"the tile unit (AMX), small ones by {products}"
        bf16 = "the tile unit"
    alone = f", on one thread ({why_one_thread()})" if why_one_thread() else ""
    return (
        f"compiled for this machine by {compiled_by()}{alone}; plain fp32 products by {products}; "
        f"precision=bf16 by {bf16}"
    )


def slurm() -> Finding:
    """Whether jobs could be submitted from here."""
    path = shutil.which("sbatch")
    if path is None:
        return Finding(name="Slurm", found="not here; runs stay on this machine")
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--noheader"], capture_output=True, check=False, timeout=ANSWER_S
        )
        answers = asked.returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        answers = False
    quiet = "; no cluster answers, so executor=slurm can't be used here"
    return Finding(name="Slurm", found=path if answers else f"{path}{quiet}")


def wandb_login() -> Finding:
    """Whether W&B could be reached by name; runs are mirrored offline without it."""
    from model.training.wandb_mirror import is_logged_in

    found = "logged in" if is_logged_in() else "not logged in; tracker=wandb writes offline"
    return Finding(name="W&B", found=found)


def _versions(names: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} missing"
