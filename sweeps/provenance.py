"""Where a record comes from: code, versions, machine, command, and every attempt it took."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from model.system import cpu_features, cpu_name
from sweeps.attempt import attempt_dir, read_claim, read_outcome
from sweeps.liveness import COMMAND_VARIABLE

PACKAGES = ("windtunnel-moe", "torch", "numpy", "scipy", "tokenizers", "safetensors")
"""Those whose version can change a run's bits, and ours."""


def provenance(run_dir: Path, *, attempt: int, threads: int) -> dict[str, Any]:
    """Everything a reader needs to repeat or to doubt the run, as plain values."""
    attempts = [_attempt(run_dir, number) for number in range(1, attempt + 1)]
    return {
        # What was typed; of a worker that was started by hand, its own command.
        "command": json.loads(os.environ.get(COMMAND_VARIABLE, "null")) or sys.orig_argv,
        "cwd": os.getcwd(),
        "host": socket.gethostname(),
        "git": git_state(),
        "packages": _packages(),
        "hardware": {**hardware(), "threads": threads},
        "started": attempts[0]["started"],
        "ended": time.time(),
        "attempts": attempts,
    }


@cache
def hardware() -> dict[str, Any]:
    """Processor, its widest vector instructions, cores, memory and GPUs of this machine."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name() or platform.processor() or "unknown",
        "vectors": next(
            (name for name in ("avx512f", "avx2", "asimd") if name in cpu_features()),
            "unknown",
        ),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "gpus": _gpus(),
    }


@cache
def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it; None outside a git checkout of this program."""
    folder = Path(__file__).resolve().parent
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no", "--", "..")
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "has_changes": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    return done.stdout.strip()


def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _attempt(run_dir: Path, number: int) -> dict[str, Any]:
    folder = attempt_dir(run_dir, number)
    claim, outcome = read_claim(folder), read_outcome(folder)
    return {
        "number": number,
        "host": claim.owner.host,
        "started": claim.started,
        "ended": outcome.ended if outcome else None,
        # The newest one is the one that is writing this.
        "outcome": f"{outcome.status}: {outcome.reason}".rstrip(": ") if outcome else None,
    }


def _gpus() -> list[str]:
    torch = sys.modules.get("torch")  # asked only where the run has brought it
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
