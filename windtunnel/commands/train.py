"""Train one model, without a sweep: a preset's shape, the recipe's learning rate and batch.

The run lies beside those of the sweeps, under the same rules: the same command again trains nothing
twice, a killed run goes on from its checkpoint, and what a sweep has trained already is not trained
again. The vocabulary is the corpus's. `dry_run=true` shows the plan.

Exit codes: 0 done, 1 stopped on the way, 3 failed or diverged.

Example:
  windtunnel train model=tiny tokens=262144
  windtunnel train model=small tokens=2e6 data=text data.paths=[notes] recipe.training.min_steps=200
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from model.config import ModelConfig, require_positive
from model.errors import RunFailed
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    CorpusConfig,
    EvaluationConfig,
    HealthConfig,
    Precision,
    RuntimeConfig,
    ScheduleConfig,
    StageConfig,
    TrackerConfig,
)
from model.training.data import PreparedCorpus
from sweeps.cost import SHIPPED, cost_of
from sweeps.executors import ExecutorConfig, make_executor
from sweeps.executors.config import usable_cores
from sweeps.plan import Plan, PlannedRun, epochs_of
from sweeps.recipe import Recipe, train_for
from sweeps.run import run_sweep
from sweeps.spec import RunSpec, run_id
from sweeps.status import sweep_status
from sweeps.store import Store
from windtunnel.console import brief, duration, say
from windtunnel.corpora import prepared
from windtunnel.fallen import fallen_lines
from windtunnel.root import bring_over, usable_root
from windtunnel.sweep_progress import SweepProgress
from windtunnel.sweep_tables import plan_table
from windtunnel.tracking import located, tell_mirror


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/train.yaml``."""

    root: Path
    model: ModelConfig
    data: CorpusConfig
    tokens: int
    """Training tokens, rounded to whole batches."""
    sequence_length: int
    seed: int
    recipe: Recipe
    """Only its training half is read."""
    schedule: ScheduleConfig
    balance: BalanceConfig
    evaluation: EvaluationConfig
    checkpoint: CheckpointConfig
    precision: Precision
    mtp_loss_weight: float
    health: HealthConfig
    stages: tuple[StageConfig, ...]
    """What changes with the stages of the data."""
    tracker: TrackerConfig
    threads: int | None
    """Null: all cores of this machine."""
    device: Literal["auto", "cpu", "cuda"]
    executor: ExecutorConfig
    dry_run: bool

    def __post_init__(self) -> None:
        require_positive(tokens=self.tokens, sequence_length=self.sequence_length)
        if self.threads is not None:
            require_positive(threads=self.threads)


def run(config: Config, console: Console) -> int:
    """Plan one run, train it if it is not done, say what it measured."""
    store = Store(usable_root(config.root))
    if not config.dry_run:
        bring_over(store, console)
    runtime = RuntimeConfig(
        threads=config.threads or usable_cores(),
        device=config.device,
        data_dir=config.root / "data",
        tracker=located(config.tracker, config.root, "single"),
    )
    corpus = prepared(config.data, runtime.data_dir, console)
    spec = spec_of(config, corpus, runtime)
    name = run_id(spec)
    cost = cost_of(SHIPPED, spec.model, spec.train, len(corpus.domains))
    plan = Plan(name=name, runs=(PlannedRun(run_id=name, spec=spec, cost=cost),))
    status = sweep_status(plan, store)
    console.print(plan_table(plan, status))
    if config.dry_run:
        say(console, "A dry run: nothing was started.")
        return 0
    with SweepProgress(console, plan, store) as progress:
        executor = make_executor(config.executor, runtime, store.root)
        result = run_sweep(plan, store, executor, progress.show, retry=("failed", "diverged"))
    for reason in (*result.failed.values(), *result.diverged.values()):
        raise RunFailed(name, f"{brief(reason)} (its log: {store.run_dir(name) / 'log.txt'})")
    record = store.record(name)
    if record is None or result.unfinished:
        say(console, f"Stopped: {result.stopped}; the same command goes on from the checkpoint.")
        return 1
    if status.is_complete:
        say(console, "This run was done before; nothing was trained.")
    by_domain = ", ".join(
        f"{domain} {loss.loss_nats:.4f} ({loss.bits_per_byte:.3f} bits per byte)"
        for domain, loss in record.by_domain.items()
    )
    say(console, f"Loss {record.heldout_nats:.4f} nats per token: {by_domain}")
    pace = f"{record.tokens_per_s:,.0f} tokens/s"
    say(console, f"{record.tokens:,} tokens in {duration(record.wall_s)}, {pace}")
    for line in fallen_lines(plan, store):
        say(console, line)
    tell_mirror(console, runtime.tracker)
    say(console, f"Everything about it: {store.run_dir(name)}")
    return 0


def spec_of(config: Config, corpus: PreparedCorpus, runtime: RuntimeConfig) -> RunSpec:
    """The run as the worker gets it."""
    model = replace(config.model, vocab_size=corpus.vocab_size)
    spec = RunSpec(
        rung="single",
        model=model,
        train=train_for(
            config.recipe.training,
            model=model,
            tokens=config.tokens,
            sequence_length=config.sequence_length,
            seed=config.seed,
            schedule=config.schedule,
            balance=config.balance,
            evaluation=config.evaluation,
            checkpoint=config.checkpoint,
            precision=config.precision,
            mtp_loss_weight=config.mtp_loss_weight,
            health=config.health,
            stages=config.stages,
        ),
        corpus=config.data,
        corpus_fingerprint=corpus.fingerprint,
        runtime=runtime,
    )
    epochs_of(spec, corpus)  # refuses a run that the corpus is too short for
    return spec
