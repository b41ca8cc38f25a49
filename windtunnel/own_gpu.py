"""Whether runs of a plan would find the GPUs they need: on this machine, or asked for of Ray."""

from __future__ import annotations

import os

from analysis.wording import counted
from model.errors import ConfigError
from sweeps.executors import ExecutorConfig
from sweeps.executors.config import LocalConfig, RayConfig

HERE = ("inline", "local")
"""Executors whose runs stay on this machine; of the others' machines nothing is known here."""


def has_gpu() -> bool:
    """Whether a run of this machine would find one."""
    return _count() > 0


def refuse_absent_gpu(device: str, executor: ExecutorConfig) -> None:
    """Refuse runs that could only fail, or would share a GPU that nobody counts.

    Raises:
        ConfigError: they are to run on more GPUs than there are here, or on a cluster's without
            asking for any.
    """
    if device == "cuda" and isinstance(executor, RayConfig) and executor.gpus_per_run == 0:
        raise ConfigError(
            "device=cuda and executor.gpus_per_run=0: Ray would be asked for no GPU, and start the "
            "runs where there is none, or all of them on one; add executor.gpus_per_run=1, or 0.25 "
            "where four runs may share one"
        )
    if device != "cuda" or executor.kind not in HERE:
        return
    wanted = max(1, executor.gpus) if isinstance(executor, LocalConfig) else 1
    if (there := _count()) >= wanted:
        return
    of = f", executor.gpus={wanted} asks for {wanted}" if wanted > 1 else ""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    hidden = f" (CUDA_VISIBLE_DEVICES={visible!r})" if visible is not None else ""
    raise ConfigError(
        f"device=cuda: {counted(there, 'usable GPU', 'usable GPUs') if there else 'no usable GPU'} "
        f"on this machine{hidden}{of}; take device=auto or cpu, or run where they are with "
        "executor=slurm or ray"
    )


def _count() -> int:
    import torch  # here: it takes a second, and few plans ask

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
