"""Train one model, without a sweep: a preset's shape, the recipe's learning rate and batch.

The run is stored with those of the sweeps, under the same rules: repeating the command trains
nothing twice, a killed run resumes from its checkpoint, and a run that a sweep has already trained
is not trained again. The vocabulary comes from the corpus. `dry_run=true` shows the plan.
weights=FOLDER starts from existing weights (a published checkpoint, or what `windtunnel convert`
makes of one) and their model. Only the weights are taken over: the optimizer starts fresh.
processes=fixed trains over several processes.

Exit codes: 0 done, 1 stopped early, 3 failed or diverged.

Example:
  windtunnel train model=tiny tokens=262144
  windtunnel train model=small tokens=2e6 data=text data.paths=[notes] recipe.training.min_steps=200
  windtunnel train weights=downloads/Ling-mini-2.0 data=text data.paths=[notes] \\
      data.tokenizer.kind=file data.tokenizer.path=downloads/Ling-mini-2.0/tokenizer.json
  windtunnel train weights=export tokens=1e6 processes=fixed processes.sizes.shard=2
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from analysis.wording import brief
from model.config import ModelConfig, require, require_positive
from model.errors import RunFailed
from model.system import usable_cores
from model.training.config import InitialWeights, RuntimeConfig, TrackerConfig
from model.training.corpora import CorpusConfig
from model.training.data import PreparedCorpus
from sweeps.cost import SHIPPED, cost_of
from sweeps.executors import ExecutorConfig, make_executor
from sweeps.plan import Plan, PlannedRun, epochs_of
from sweeps.run import run_sweep
from sweeps.spec import RunSpec, run_id
from sweeps.spread import set_spread
from sweeps.status import sweep_status
from sweeps.store import Store
from sweeps.training import TrainingSettings, train_for
from windtunnel.console import duration, prose, say
from windtunnel.corpora import prepared
from windtunnel.fallen import fallen_lines
from windtunnel.first_compile import compiles_first
from windtunnel.machine.sizes import FixedSizes, OneProcess, PlannedSizes, spread_of
from windtunnel.own_gpu import refuse_absent_gpu
from windtunnel.own_memory import refuse_too_large
from windtunnel.root import bring_over, usable_root
from windtunnel.sweep_progress import SweepProgress
from windtunnel.sweep_tables import plan_table
from windtunnel.tracking import located, require_login, tell_mirror

if TYPE_CHECKING:
    from model.training.initial import GivenWeights


@dataclass(frozen=True, kw_only=True)
class Config(TrainingSettings):
    """``conf/train.yaml``; of the recipe only the training half is read."""

    root: Path
    model: ModelConfig
    weights: Path | None
    """A published checkpoint or a folder of weights to begin with; its model is then trained."""
    data: CorpusConfig
    tokens: int
    """Training tokens, rounded to whole batches."""
    seed: int
    tracker: TrackerConfig
    threads: int | None
    """Null: all cores of this machine."""
    device: Literal["auto", "cpu", "cuda"]
    executor: ExecutorConfig
    processes: PlannedSizes | OneProcess | FixedSizes
    dry_run: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(tokens=self.tokens)
        if self.threads is not None:
            require_positive(threads=self.threads)


def run(config: Config, console: Console) -> int:
    """Plan one run, train it if it is not done, say what it measured."""
    require(
        not isinstance(config.processes, PlannedSizes),
        "processes=plan: a plan belongs to a promotion; name the sizes with processes=fixed, or "
        "train in one process",
    )
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
    given = _given(config, corpus)
    spec = spec_of(config, corpus, runtime, given)
    spread = spread_of(config.processes, None, config.executor, config.device)
    if spread is not None:
        spread.parallel.check(spec.model, spec.train)
    name = run_id(spec)
    cost = cost_of(SHIPPED, spec.model, spec.train, len(corpus.domains))
    plan = Plan(name=name, runs=(PlannedRun(run_id=name, spec=spec, cost=cost),))
    status = sweep_status(plan, store)
    console.print(plan_table(plan, status))
    left = () if status.is_complete else plan.runs
    if left:
        refuse_absent_gpu(config.device, config.executor)
        require_login(runtime.tracker)
    refuse_too_large(left, config.executor, config.device, console, dry_run=config.dry_run)
    if left and (note := compiles_first(config.device, config.executor)):
        say(console, note)
    if config.dry_run:
        say(console, "A dry run: nothing was started.")
        return 0
    run_dir = store.create(spec)
    if given is not None:
        from model.training.initial import place_weights  # here: it needs torch

        place_weights(given, run_dir / "begins")
    set_spread(run_dir, spread)
    with SweepProgress(console, plan, store) as progress:
        executor = make_executor(config.executor, runtime, store.root, spread)
        result = run_sweep(plan, store, executor, progress.show, retry=("failed", "diverged"))
    for reason in (*result.failed.values(), *result.diverged.values()):
        raise RunFailed(name, f"{brief(reason)} (its log: {store.run_dir(name) / 'log.txt'})")
    record = store.record(name)
    if record is None or result.unfinished:
        say(console, f"Stopped: {result.stopped}; the same command resumes from the checkpoint.")
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
        prose(console, line)
    tell_mirror(console, runtime.tracker)
    say(console, f"Everything about it: {store.run_dir(name)}")
    return 0


def _given(config: Config, corpus: PreparedCorpus) -> GivenWeights | None:
    """The weights the run begins with, if they fit the text.

    Raises:
        ConfigError: they are not whole, or of a vocabulary smaller than the tokenizer's.
    """
    if config.weights is None:
        return None
    from model.training.initial import given_weights  # here: it needs torch

    given = given_weights(config.weights)
    require(
        given.model.vocab_size >= corpus.vocab_size,
        f"weights={config.weights}: a vocabulary of {given.model.vocab_size}, the corpus's "
        f"tokenizer has {corpus.vocab_size}; name theirs with data.tokenizer.kind=file "
        "data.tokenizer.path=.../tokenizer.json",
    )
    return given


def spec_of(
    config: Config,
    corpus: PreparedCorpus,
    runtime: RuntimeConfig,
    given: GivenWeights | None = None,
) -> RunSpec:
    """The run as the worker gets it; its model is that of ``given``, where there is one."""
    if given is None:
        model, initial = replace(config.model, vocab_size=corpus.vocab_size), None
    else:
        model, initial = given.model, InitialWeights(sha256=given.digest())
    train = train_for(
        config,
        model=model,
        tokens=config.tokens,
        seed=config.seed,
    )
    spec = RunSpec(
        rung="single",
        model=model,
        train=replace(train, initial_weights=initial),
        corpus=config.data,
        corpus_fingerprint=corpus.fingerprint,
        runtime=runtime,
    )
    epochs_of(spec, corpus)  # refuses a run that the corpus is too short for
    return spec
