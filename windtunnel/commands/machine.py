"""Plan a run on a machine: parallel sizes, memory per GPU, time, GPU-hours. Trains nothing.

For a model in `conf/model` or for a promotion, whose own plan is used unless `gpus` is given.
Without sizes (`parallel=...`) it searches for the fastest that fit. `build=true` builds every
rank's stages for that many GPUs on the meta device; `export=DIR` exports the run for Megatron-LM
and torchtitan. For scripts, `json=true` prints the plan as one JSON object.

Example:
  windtunnel machine model=ling_1t_mtp hardware=h800 gpus=2016 parallel=ling_1t build=true
  windtunnel machine model=ling_mini hardware=h100 gpus=288
  windtunnel machine model=ling_mini hardware=h100 gpus=288 json=true
  windtunnel machine model=ling_mini hardware=h200 gpus=1 parallel=one_gpu
  windtunnel machine promotion=latest export=handover
  windtunnel machine promotion=latest hardware=h100 gpus=64
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console
from rich.text import Text

from model.config import ModelConfig, require, require_positive
from model.errors import ConfigError
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from windtunnel.answers.machine import one_gpu_answer, plan_answer
from windtunnel.console import prose
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.machine.dry_run import dry_run
from windtunnel.machine.handover import write_handover
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import one_gpu_plan
from windtunnel.machine.plan import MachinePlan, best_plan, plan_for
from windtunnel.machine.sizes import FixedSizes, SearchedSizes
from windtunnel.machine.tables import describe_dry_run, describe_one_gpu, describe_plan
from windtunnel.next_step import launch_elsewhere
from windtunnel.promotion import Promotion, Promotions

LING_1T_GPUS = 2016
"""Of its pre-training (arXiv:2510.22115, section 5)."""


@dataclass(frozen=True, kw_only=True)
class OneGpu:
    """A single GPU that holds the whole model, see :mod:`windtunnel.machine.one_gpu`."""

    kind: Literal["one_gpu"] = "one_gpu"
    sequences: int
    recompute: bool
    updates_in_backward: bool

    def __post_init__(self) -> None:
        require_positive(sequences=self.sequences)


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/machine.yaml``."""

    root: Path
    model: ModelConfig
    hardware: Hardware
    gpus: int | None
    """None: those of the sizes, or of the promotion's plan, or of Ling-1T."""
    parallel: SearchedSizes | FixedSizes | OneGpu
    promotion: str | None
    """In place of the model and the training below."""
    tokens: int
    sequence_length: int
    batch_tokens: int
    peak_lr: float
    build: bool
    export: Path | None

    def __post_init__(self) -> None:
        require_positive(tokens=self.tokens, batch_tokens=self.batch_tokens)
        if self.gpus is not None:
            require_positive(gpus=self.gpus)


def run(config: Config, console: Console) -> int:
    """Plan, and build or write if asked."""
    model, train = config.model, _training(config)
    promotion: Promotion | None = None
    if config.promotion is not None:
        promotion = Promotions(config.root).find(config.promotion)
        model, train = promotion.spec.model, promotion.spec.train
    if isinstance(config.parallel, OneGpu):
        return _on_one_gpu(config, config.parallel, model, train.sequence_length, console)
    if isinstance(config.parallel, FixedSizes):
        sizes = config.parallel.sizes
        require(
            config.gpus in (None, sizes.world_size),
            f"parallel.sizes multiply to {sizes.world_size}, gpus is {config.gpus}",
        )
        sizes.check(model, train)
        plan = plan_for(model, train, config.hardware, sizes)
    elif promotion is not None and config.gpus is None:
        plan = _plan_of(promotion)
    else:
        plan = best_plan(model, train, config.hardware, config.gpus or LING_1T_GPUS)
    if not config.json:
        for part in describe_plan(plan):
            console.print(part)
    built = dry_run(model, train, plan) if config.build else None
    if built is not None and not config.json:
        for part in describe_dry_run(plan, built):
            console.print(part)
    written: Sequence[Path] = ()
    if config.export is not None:
        written = write_handover(config.export, model, train, plan.parallel)
    if config.json:
        write_answer("machine", plan_answer(plan, built, written))
        return 0
    for path in written:
        console.print(Text(f"Written: {path}"))
    if written and promotion is not None:
        first = launch_elsewhere(config.root, promotion.id)
        prose(console, f"Before that engine begins, register the forecast: {first}")
    return 0


def _plan_of(promotion: Promotion) -> MachinePlan:
    """What it was promoted for."""
    if promotion.machine is None:
        raise ConfigError(
            f"promotion: {promotion.id} fits no plan of the machine it was promoted for; name "
            "another with hardware=... gpus=N"
        )
    return promotion.machine


def _on_one_gpu(
    config: Config, how: OneGpu, model: ModelConfig, sequence_length: int, console: Console
) -> int:
    require(config.gpus in (None, 1), f"parallel=one_gpu plans for one GPU, gpus is {config.gpus}")
    require(
        not config.build and config.export is None,
        "parallel=one_gpu has no ranks to build and no engine to export to; leave out build and "
        "export",
    )
    plan = one_gpu_plan(
        model,
        config.hardware,
        sequence_length=sequence_length,
        sequences=how.sequences,
        recompute=how.recompute,
        updates_in_backward=how.updates_in_backward,
    )
    if config.json:
        write_answer("machine", one_gpu_answer(plan, config.hardware))
        return 0
    console.print(describe_one_gpu(plan, config.hardware))
    return 0


def _training(config: Config) -> TrainConfig:
    """A published pre-training: whole batches, bfloat16, the rest as Ling trains."""
    steps = max(1, config.tokens // config.batch_tokens)
    return TrainConfig(
        tokens=steps * config.batch_tokens,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=config.peak_lr),
        schedule=ScheduleConfig(kind="constant"),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        precision="bf16",
    )
