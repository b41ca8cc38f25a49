"""Train every model of a sweep: sizes x budgets under one protocol, each run once.

A finished run is never trained again; an interrupted one resumes from its checkpoint. Kill it at
any time and run the same command again. `dry_run=true` shows the plan and starts nothing.

Exit codes: 0 when every run is done, 1 when some are left or failed, 3 when all of them failed.

Example:
  windtunnel sweep sweep=quickstart dry_run=true
  windtunnel sweep sweep=quickstart
  windtunnel sweep sweep=quickstart ladder.sizes=4 data=text data.paths=[notes,src/*.py] name=mine
  windtunnel sweep sweep=quickstart retry=failed
  windtunnel sweep sweep=quickstart design=next budget.train_flops=3e11 next.tolerance=0.01
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from analysis.wording import brief, counted
from model.errors import ConfigError, RunFailed
from model.training.config import RuntimeConfig, TrackerConfig
from model.training.corpora import CorpusConfig
from model.training.data import PreparedCorpus
from sweeps.budget import Budget
from sweeps.cost import SHIPPED, Sample, calibrated, usage_of
from sweeps.events import SweepResult
from sweeps.executors import ExecutorConfig, expected_slots, make_executor, packing_for
from sweeps.ladder import LadderConfig
from sweeps.order import makespan_s
from sweeps.plan import Plan, PlannedRun, SweepConfig, make_plan, require_axes
from sweeps.plan_file import skim_plan, write_plan
from sweeps.run import run_sweep
from sweeps.spec import read_spec
from sweeps.status import OPEN, SweepStatus, sweep_status
from sweeps.store import Store
from sweeps.training import TrainingSettings
from windtunnel.console import duration, prose, say, sci
from windtunnel.corpora import prepared
from windtunnel.designed import DesignRules, next_batch
from windtunnel.fallen import fallen_lines
from windtunnel.first_compile import compiles_first
from windtunnel.next_step import after_training
from windtunnel.own_gpu import refuse_absent_gpu
from windtunnel.own_memory import refuse_too_large
from windtunnel.quoting import under
from windtunnel.root import bring_over, usable_root
from windtunnel.sweep_progress import SweepProgress
from windtunnel.sweep_tables import plan_table, run_label
from windtunnel.tracking import located, require_login, tell_mirror

Retry = Literal["none", "failed", "diverged", "all"]
RETRIED: dict[Retry, tuple[Literal["failed", "diverged"], ...]] = {
    "none": (),
    "failed": ("failed",),
    "diverged": ("diverged",),
    "all": ("failed", "diverged"),
}


@dataclass(frozen=True, kw_only=True)
class Config(TrainingSettings):
    """``conf/sweep.yaml``: the sweep, and how it is run."""

    root: Path
    name: str
    data: CorpusConfig
    ladder: LadderConfig
    axes: dict[str, Any]
    zipped: dict[str, Any]
    tracker: TrackerConfig
    threads: int
    device: Literal["auto", "cpu", "cuda"]
    executor: ExecutorConfig
    retry: Retry
    """Which runs of an earlier session to try again."""
    redo: tuple[str, ...]
    """Run ids to set aside and measure anew."""
    budget: Budget
    """What this session may use."""
    design: Literal["grid", "next"]
    """Every cell, or always those that tell most about the target, within the budget."""
    next: DesignRules
    dry_run: bool


def _redo(config: Config, plan: Plan, store: Store) -> None:
    """Set aside what is to be measured anew."""
    planned = {run.run_id for run in plan.runs}
    for name in config.redo:
        if name not in planned:
            raise ConfigError(
                f"redo: no run {name!r} in sweep {plan.name}; its runs are the folders' names "
                f"under {store.runs_dir}, and `windtunnel status sweep={plan.name}"
                f"{under(store.root)}` lists them"
            )
    for name in () if config.dry_run else config.redo:
        store.redo(name)


def run(config: Config, console: Console) -> int:
    """Plan, show, and unless it is a dry run, train what is missing."""
    sweep = sweep_config(config)
    require_axes(sweep)
    store = Store(usable_root(config.root))
    if not config.dry_run:
        bring_over(store, console)
    corpus = prepared(sweep.corpus, sweep.runtime.data_dir, console)
    plan = priced_plan(sweep, corpus, store, anew=config.redo)
    _refuse_anothers_plan(plan, store)
    _redo(config, plan, store)
    status = sweep_status(plan, store)
    slots = expected_slots(config.executor, sweep.runtime)
    retried = RETRIED[config.retry]
    expected_s = _expected_s(status, retried, slots)
    _print_plan(plan, status, console, rows=config.dry_run)
    _say_what_leaves(plan, store, console)
    again = [report.run for report in status.with_status("interrupted", *retried)]
    _say_if_threads_stay(again, sweep.runtime.threads, store, console)
    over = {"done", "failed", "diverged"} - set(retried)
    left = [report.run for report in status.runs if report.state.status not in over]
    device = sweep.runtime.device
    if left:
        refuse_absent_gpu(device, config.executor)
        require_login(sweep.runtime.tracker)
    refuse_too_large(left, config.executor, device, console, dry_run=config.dry_run)
    if config.design == "grid" and not status.is_complete:
        say(
            console,
            f"{status.counts['done']} of {counted(len(plan.runs), 'run', 'runs')} "
            f"already done; the rest takes about {duration(expected_s)} on "
            f"{counted(slots, 'worker', 'workers')}",
        )
    if left and (note := compiles_first(device, config.executor)):
        say(console, note)
    if config.design == "next":
        return _run_design(config, plan, store, console)
    if config.dry_run:
        say(console, "A dry run: nothing was started.")
        return 0
    executor = make_executor(config.executor, sweep.runtime, store.root)
    write_plan(plan, store.plan_path(plan.name))
    began = time.monotonic()
    with SweepProgress(console, plan, store, expected_s=expected_s) as progress:
        result = run_sweep(
            plan,
            store,
            executor,
            progress.show,
            retry=retried,
            budget=config.budget,
            packing=packing_for(config.executor, sweep.runtime),
        )
    tell_mirror(console, sweep.runtime.tracker)
    return _conclude(plan, result, store, console, time.monotonic() - began)


def _run_design(config: Config, plan: Plan, store: Store, console: Console) -> int:
    """Batches of the design, each run to its end, until it stops; what failed is not chosen."""
    given = config.budget.train_flops
    whole = given or plan.train_flops
    left, made = whole, 0
    executor = make_executor(config.executor, sweep_config(config).runtime, store.root)
    packing = packing_for(config.executor, sweep_config(config).runtime)
    session = replace(config.budget, train_flops=None)
    while True:
        batch = next_batch(plan, store, config.next, left, whole=whole) if left > 0 else None
        if batch is None or not batch.runs:
            stop = batch.why if batch else "the budget is spent"
            break
        prose(console, f"Next {counted(len(batch.runs), 'run', 'runs')}: {batch.why}")
        if config.dry_run:
            for run in batch.runs:
                say(console, f"  {run_label(run)}: {sci(run.cost.train_flops)} FLOPs")
            say(console, "A dry run: nothing was started.")
            return 0
        write_plan(plan, store.plan_path(plan.name))
        part = replace(plan, runs=batch.runs)
        expected_s = part.wall_s(expected_slots(config.executor, sweep_config(config).runtime))
        with SweepProgress(console, part, store, expected_s=expected_s) as progress:
            result = run_sweep(
                part, store, executor, progress.show, budget=session, packing=packing
            )
        made += len(result.finished)
        left -= part.train_flops
        if result.stopped or result.unfinished:
            stop = result.stopped or "runs are left"
            say(console, f"Stopped: {stop}. The same command continues.")
            return 1
    say(
        console,
        f"The design ends: {stop}. {counted(made, 'run', 'runs')} now; "
        f"{sci(whole - left)} of the grid's {sci(plan.train_flops)} FLOPs.",
    )
    say(console, f"Next: {after_training(plan, store.root)}")
    return 0


def sweep_config(config: Config) -> SweepConfig:
    """The part that decides what is run; the rest decides how."""
    return SweepConfig(
        name=config.name,
        ladder=config.ladder,
        corpus=config.data,
        runtime=RuntimeConfig(
            threads=config.threads,
            device=config.device,
            data_dir=config.root / "data",
            tracker=located(config.tracker, config.root, config.name),
        ),
        axes=dict(_flat("axes", config.axes)),
        zipped=dict(_flat("zipped", config.zipped)),
        **config.settings(),
    )


def priced_plan(
    sweep: SweepConfig, corpus: PreparedCorpus, store: Store, *, anew: Collection[str] = ()
) -> Plan:
    """The plan, its times learned from those of its runs that are finished on this machine.

    ``anew``: runs that are measured again, whose records may be beyond reading.
    """
    plan = make_plan(sweep, corpus)
    samples = [
        Sample(
            usage=usage_of(
                run.spec.model,
                run.spec.train,
                len(corpus.domains),
                shares_trunk=bool(run.spec.trunk),
            ),
            wall_s=record.wall_s,
        )
        for run in plan.runs
        if run.run_id not in anew and (record := store.record(run.run_id)) is not None
    ]
    prices = calibrated(SHIPPED, samples)
    return make_plan(sweep, corpus, prices=prices) if samples else plan


def _flat(where: str, mapping: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """``axes.recipe.training.x=[1,2]`` arrives nested; dotted paths are what a sweep takes."""
    for key, value in mapping.items():
        if isinstance(value, Mapping):
            for path, values in _flat(f"{where}.{key}", value):
                yield f"{key}.{path}", values
        elif isinstance(value, (list, tuple)):
            yield key, tuple(value)
        else:
            raise ConfigError(f"{where}.{key}: expected a list of values, got {value!r}")


def _refuse_anothers_plan(plan: Plan, store: Store) -> None:
    """Where a disk takes ``Mine`` for ``mine``, as a Mac's does, one sweep would replace another's
    plan; so it would in a folder that was renamed by hand."""
    path = store.plan_path(plan.name)
    try:
        there = skim_plan(path).name
    except (FileNotFoundError, ConfigError):
        return
    if there != plan.name:
        raise ConfigError(
            f"name={plan.name}: {path} is the plan of sweep {there} (most disks of a Mac don't "
            "tell Mine from mine); choose another name=..."
        )


def _say_what_leaves(plan: Plan, store: Store, console: Console) -> None:
    """Runs of an earlier text, or of more seeds or axes, would be left behind without a word."""
    try:
        earlier = skim_plan(store.plan_path(plan.name))
        before = earlier.runs[0].spec.corpus_fingerprint
    except (FileNotFoundError, ConfigError):
        return  # no plan that this program reads; the new one takes its place
    now = plan.runs[0].spec.corpus_fingerprint
    planned = {run.run_id for run in plan.runs}
    gone = [run.run_id for run in earlier.runs if run.run_id not in planned]
    done = sum((store.run_dir(name) / "record.json").exists() for name in gone)
    if before in {run.spec.corpus_fingerprint for run in plan.runs}:
        if done:
            prose(
                console,
                f"Note: {counted(done, 'finished run', 'finished runs')} of sweep {plan.name} "
                f"{'is' if done == 1 else 'are'} no part of this plan, whose ladder, axes or "
                f"recipe are others; they stay in {store.root}/runs, and the command that planned "
                "them has them again",
            )
        return
    prose(
        console,
        f"Note: the corpus is not the one that sweep {plan.name} was planned for (fingerprint "
        f"{now[:12]}, before {before[:12]}). Its {done} finished runs stay in {store.root}/runs "
        "and are no part of it any more; another name=... keeps both sweeps",
    )


def _say_if_threads_stay(
    begun: Collection[PlannedRun], threads: int, store: Store, console: Console
) -> None:
    """A run that was begun keeps its ``spec.json``, and with it the threads it has."""
    others = []
    for run in begun:
        if not store.has_begun(run.run_id):
            continue
        with suppress(FileNotFoundError, ConfigError):  # its worker will say so
            kept = read_spec(store.run_dir(run.run_id) / "spec.json").runtime.threads
            if kept != threads:
                others.append(kept)
    if others:
        theirs = " or ".join(map(str, sorted(set(others))))
        prose(
            console,
            f"Note: threads={threads} is for runs that begin now; "
            f"{counted(len(others), 'run', 'runs')} begun before will go on with {theirs}",
        )


def _expected_s(status: SweepStatus, retried: Collection[str], slots: int) -> float:
    """What is left, and what is to be tried again, on ``slots`` workers."""
    left = [report.left_s for report in status.with_status(*OPEN)]
    again = [report.run.cost.wall_s for report in status.with_status(*retried)]
    return makespan_s([*left, *again], slots)


def _print_plan(plan: Plan, status: SweepStatus, console: Console, *, rows: bool) -> None:
    if rows:
        console.print(plan_table(plan, status))
    for note in plan.notes:
        prose(console, f"Note: {note}")
    say(
        console,
        f"Sweep {plan.name}: {counted(len(plan.runs), 'run', 'runs')}, "
        f"{sci(plan.train_flops)} training FLOPs",
    )
    num_trunks = len(plan.runs) - len(plan.measured)
    if num_trunks:
        num_sharing = sum(bool(run.spec.trunk) for run in plan.runs)
        say(
            console,
            f"{num_trunks} of them are trunks that {num_sharing} others share; without sharing the "
            f"sweep would take {sci(plan.separate_flops)} training FLOPs "
            f"({plan.separate_flops / plan.train_flops:.1f} times as many)",
        )


def _conclude(
    plan: Plan, result: SweepResult, store: Store, console: Console, wall_s: float
) -> int:
    """Say how it ended and what to do next; the exit code."""
    total, done = len(plan.runs), len(result.finished) + len(result.skipped)
    all_runs = counted(total, "run", "runs")
    bad = {**result.failed, **result.diverged}
    if len(bad) == total:
        name, reason = next(iter(bad.items()))
        raise RunFailed(
            name,
            f"{brief(reason)} (all {all_runs} of sweep {plan.name} failed; the log of this one: "
            f"{store.run_dir(name) / 'log.txt'})",
        )
    labels = {run.run_id: run_label(run) for run in plan.runs}
    for kind, reasons in (("failed", result.failed), ("diverged", result.diverged)):
        if reasons:
            say(console, f"{len(reasons)} {kind}; try again with retry={kind}:")
        for name, reason in reasons.items():
            prose(console, f"  {labels[name]}: {brief(reason)}")
    for line in fallen_lines(plan, store):
        prose(console, line)
    if result.stopped:
        say(console, f"Stopped: {result.stopped}.")
    if not result.is_complete:
        left = len(result.unfinished)
        tail = f", {left} left; the same command continues with them" if left else ""
        say(console, f"{done} of {all_runs} done{tail}.")
        return 1
    if not result.finished:
        say(console, f"{total} of {all_runs} already done; nothing was trained.")
    else:
        before = f", {len(result.skipped)} of them before" if result.skipped else ""
        say(console, f"{total} of {all_runs} done{before}, in {duration(wall_s)}.")
    say(console, f"Next: {after_training(plan, store.root)}")
    return 0
