"""A machine plan's answer to a script."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from windtunnel.machine.dry_run import DryRun
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import OneGpuPlan
from windtunnel.machine.plan import MachinePlan


def plan_answer(plan: MachinePlan, built: DryRun | None, written: Sequence[Path]) -> dict[str, Any]:
    """Sizes, memory, time, and what was built and written."""
    return {
        "hardware": plan.hardware.name,
        "gpus": plan.gpus,
        "parallel": plan.parallel,
        "micro_batches": plan.micro_batches,
        **_memory(plan.memory_bytes, plan.hardware),
        "memory_by_place": [
            {
                "pipeline_rank": rank.pipeline_rank,
                "params": rank.params,
                "states_bytes": rank.states,
                "gathered_bytes": rank.gathered,
                "gradients_bytes": rank.gradients,
                "activations_bytes": rank.activations,
                "total_bytes": rank.total,
            }
            for rank in plan.memory
        ],
        "step_s": plan.step_s,
        "tokens_per_s": plan.tokens_per_s,
        "utilisation_frac": plan.utilisation,
        "bubble_frac": plan.split.bubble,
        "imbalance_frac": plan.split.imbalance,
        "days": plan.days,
        "gpu_hours": plan.gpu_hours,
        "assumptions": plan.assumptions,
        "built": None if built is None else [*built.ranks],
        "written": list(written),
    }


def one_gpu_answer(plan: OneGpuPlan, hardware: Hardware) -> dict[str, Any]:
    """A step of the whole model on one GPU."""
    return {
        "hardware": hardware.name,
        "gpus": 1,
        **_memory(plan.memory_bytes, hardware),
        "weights_bytes": plan.weights,
        "moments_bytes": plan.moments,
        "gradients_bytes": plan.gradients,
        "activations_bytes": plan.activations,
        "temporaries_bytes": plan.temporaries,
        "step_tokens": plan.tokens,
        "step_s": plan.step_s,
        "tokens_per_s": plan.tokens_per_s,
        "utilisation_frac": plan.utilisation,
    }


def _memory(fullest_bytes: int, hardware: Hardware) -> dict[str, Any]:
    return {
        "fits": fullest_bytes <= hardware.usable_bytes,
        "memory_bytes": fullest_bytes,
        "usable_bytes": hardware.usable_bytes,
    }
