"""What the system says of this machine: Linux in files under /proc and /sys, macOS by ``sysctl``.

The one place that knows where; what a system does not tell is empty or None, never an error.
"""

from __future__ import annotations

import os
import platform
import resource
import shutil
import subprocess
from functools import cache
from pathlib import Path

ANSWER_S = 10.0
"""For a command that answers in a hundredth of a second on a machine at rest."""
SYSTEM_FOLDERS = "/usr/bin:/bin:/usr/sbin:/sbin"
"""Where macOS keeps its commands, wherever the user's own path leads."""


def is_macos() -> bool:
    """Whether this is a Mac."""
    return platform.system() == "Darwin"


def read_system_file(path: str) -> str:
    """Its text; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def said_by(*command: str) -> str | None:
    """What a command of the system prints, in plain English and universal time.

    Empty where it has nothing to say; None where it can't be asked.
    """
    path = f"{os.environ.get('PATH', '')}:{SYSTEM_FOLDERS}"
    environment = {**os.environ, "PATH": path, "LC_ALL": "C", "TZ": "UTC0"}
    try:
        asked = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=ANSWER_S,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return None if asked.stderr.strip() and not asked.stdout else asked.stdout.strip()


def compiler_names() -> tuple[str, ...]:
    """C++ compilers in the order they are looked for: $CXX alone where it is set."""
    own = os.environ.get("CXX")
    return (own,) if own else ("g++", "c++", "clang++")


def compiler_on_path() -> str | None:
    """The first of them that is there."""
    return next(filter(None, map(shutil.which, compiler_names())), None)


def kernel_cache() -> Path:
    """Where compiled kernels are kept: $XDG_CACHE_HOME/windtunnel/kernels."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "windtunnel" / "kernels"


@cache
def sysctl(name: str) -> str:
    """What macOS answers to ``sysctl -n name``; empty elsewhere, and for what it does not know."""
    return (said_by("sysctl", "-n", name) or "") if is_macos() else ""


def usable_cores() -> int:
    """Cores this process may use: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    try:
        quota, period = read_system_file("/sys/fs/cgroup/cpu.max").split()
    except ValueError:
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def peak_memory_bytes(who: int = resource.RUSAGE_SELF) -> int:
    """The most memory that this process has had; of ``RUSAGE_CHILDREN`` the largest of them."""
    most = resource.getrusage(who).ru_maxrss
    return most if is_macos() else 1024 * most


@cache
def cpu_name() -> str:
    """What the processor is sold as; empty where the system does not tell."""
    return _cpuinfo().get("model name", "") or sysctl("machdep.cpu.brand_string")


@cache
def cpu_vendor() -> str:
    """Who made the processor, as it says itself; empty where the system does not tell."""
    return _cpuinfo().get("vendor_id", "")


@cache
def cpu_features() -> frozenset[str]:
    """The processor's features by Linux's names, as far as the system tells."""
    cpu = _cpuinfo()
    listed = cpu.get("flags") or cpu.get("Features", "")
    on_a_mac = {"asimd": "hw.optional.AdvSIMD", "bf16": "hw.optional.arm.FEAT_BF16"}
    return frozenset(listed.split()) | {
        feature for feature, name in on_a_mac.items() if sysctl(name) == "1"
    }


def _cpuinfo() -> dict[str, str]:
    """Linux's description of the first core."""
    first = read_system_file("/proc/cpuinfo").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
