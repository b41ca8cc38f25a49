"""Train a promotion and compare it with its forecast.

The gates are checked and the forecast is registered in the ledger before training starts. It uses
the same code as the rungs, over as many processes as the machine plan has GPUs: on this machine, or
with executor=slurm on a cluster. After a kill the same command resumes from the checkpoint, also
with other parallel sizes; once the run is over, it trains nothing and shows the outcome.
`dry_run=true` prints the flight plan and, for a machine plan of several GPUs, builds every rank on
the meta device. Every evaluation on the way is compared with its forecast band; `alarm.stop=true`
ends a run that leaves it.

`trained=elsewhere` is for a run that another engine trains: it registers the forecast, and given
the weights afterwards measures them on the rungs' held-out text and closes the forecast.

Exit codes: 0 measured (inside or outside), 1 stopped early, 3 failed or diverged, 4 refused.

Example:
  windtunnel launch promotion=latest dry_run=true
  windtunnel launch promotion=latest
  windtunnel launch promotion=latest executor=slurm executor.gres=gpu:8
  windtunnel launch promotion=latest processes=fixed processes.sizes.shard=2
  windtunnel launch promotion=latest override.extrapolation='a test of how far the law carries'
  windtunnel launch promotion=latest trained=elsewhere
  windtunnel launch promotion=latest trained=elsewhere trained.weights=from_megatron
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from rich.console import Console

from model.config import require, require_positive
from model.errors import RunFailed
from model.system import usable_cores
from model.training.config import RuntimeConfig, TrackerConfig
from model.training.data import PreparedCorpus
from sweeps.attempt import attempt_dir
from sweeps.cost import SHIPPED, RunCost, Sample, calibrated, cost_of, usage_of
from sweeps.events import Event
from sweeps.executors import ExecutorConfig, make_executor
from sweeps.measure import kept_under, planned_corpus
from sweeps.plan import Plan
from sweeps.spec import read_spec
from sweeps.store import Store
from windtunnel.alarm import AlarmConfig, alarm_sentence, looks_of
from windtunnel.along import evaluations_in, in_flight
from windtunnel.console import duration, prose, say
from windtunnel.elsewhere import Elsewhere, Here
from windtunnel.launch import (
    Launched,
    accepted_overrides,
    hand_over,
    launch,
    planned,
)
from windtunnel.ledger import ledger_of
from windtunnel.ledger_rows import Entry, ForecastRow
from windtunnel.machine.dry_run import dry_run
from windtunnel.machine.sizes import FixedSizes, OneProcess, PlannedSizes, spread_of
from windtunnel.machine.tables import describe_dry_run
from windtunnel.next_step import launch_elsewhere
from windtunnel.own_gpu import refuse_absent_gpu
from windtunnel.promotion import Promotion, Promotions
from windtunnel.promotion_tables import describe, origin_text, verdict_text, waypoint_text
from windtunnel.root import bring_over, usable_root
from windtunnel.sweep_progress import SweepProgress
from windtunnel.tracking import located, require_login, tell_mirror


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/launch.yaml``."""

    root: Path
    promotion: str
    executor: ExecutorConfig
    processes: PlannedSizes | OneProcess | FixedSizes
    trained: Here | Elsewhere
    tracker: TrackerConfig
    threads: int | None
    device: Literal["auto", "cpu", "cuda"]
    override: dict[str, str | None]
    keep_weights: int
    alarm: AlarmConfig
    dry_run: bool

    def __post_init__(self) -> None:
        if self.threads is not None:
            require_positive(threads=self.threads)
        require(self.keep_weights >= 0, f"keep_weights must be >= 0, got {self.keep_weights}")


def run(config: Config, console: Console) -> int:
    """Flight plan, or the flight."""
    promotion = Promotions(config.root).find(config.promotion)
    overrides = {name: reason for name, reason in config.override.items() if reason is not None}
    store, ledger = Store(usable_root(config.root)), ledger_of(config.root)
    if not config.dry_run:
        bring_over(store, console)
    spec = kept_under(promotion.spec, config.root)
    runtime = RuntimeConfig(
        threads=config.threads or usable_cores(),
        device=config.device,
        data_dir=spec.runtime.data_dir,
        tracker=located(config.tracker, config.root, promotion.sweep),
    )
    is_worked_here = isinstance(config.trained, Here) or config.trained.weights is not None
    if is_worked_here and store.record(promotion.run_id) is None:
        refuse_absent_gpu(config.device, config.executor)
        require_login(runtime.tracker)
    corpus = planned_corpus(spec)
    cost = estimated_cost(promotion, store, corpus)
    if config.dry_run:
        _print_flight_plan(promotion, cost, runtime, console)
        accepted_overrides(promotion, ledger, overrides)
        console.print("A dry run: nothing was registered, nothing was started.")
        return 0
    given = None
    if isinstance(config.trained, Elsewhere):
        if config.trained.weights is None:
            entry = hand_over(promotion, config.trained, store, ledger, overrides)
            return _handed_over(entry, config, console)
        from model.training.initial import given_weights  # here: it needs torch

        given = given_weights(config.trained.weights)
        cost = replace(cost, own_flops=0.0, wall_s=0.0)  # nothing is left to train
    spread = spread_of(config.processes, promotion.machine, config.executor, config.device)
    if spread is not None:
        spread.parallel.check(promotion.spec.model, promotion.spec.train)
    run = planned(promotion, cost, runtime, keep_weights=config.keep_weights, given=given)
    with SweepProgress(console, Plan(name=promotion.id, runs=(run,)), store) as progress:
        band = InFlight(promotion, store, progress, config.alarm)
        launched = launch(
            promotion,
            run,
            store=store,
            ledger=ledger,
            executor=make_executor(config.executor, runtime, store.root, spread),
            overrides=overrides,
            spread=spread,
            given=given,
            on_event=band.show,
        )
    tell_mirror(console, runtime.tracker)
    return _conclude(launched, promotion, console)


class InFlight:
    """The progress of a launch, and each evaluation on the way against its band as it comes."""

    def __init__(
        self, promotion: Promotion, store: Store, progress: SweepProgress, alarm: AlarmConfig
    ) -> None:
        self._alarm = alarm
        self._promotion = promotion
        self._store = store
        self._progress = progress
        self._shown: set[int] = set()

    def show(self, event: Event) -> None:
        """Take in one event of `run_sweep`.

        Raises:
            RunFailed: an alarm that may stop; the run's workers are ended, its checkpoint stays.
        """
        if event.kind != "skipped" and event.attempt:
            folder = attempt_dir(self._store.run_dir(event.run.run_id), event.attempt)
            measured = evaluations_in(folder / "metrics.jsonl")
            waypoints = self._promotion.waypoints
            looks = looks_of(waypoints, measured, self._alarm.false_alarms)
            for look, (waypoint, found) in zip(looks, in_flight(waypoints, measured), strict=True):
                if look.step not in self._shown:
                    self._shown.add(look.step)
                    self._progress.line(waypoint_text(waypoint, found))
                    if look.rings:
                        self._progress.line(alarm_sentence(look))
                    if look.rings and look.deviations > 0 and self._alarm.stop:
                        raise RunFailed(self._promotion.run_id, alarm_sentence(look))
        self._progress.show(event)


def estimated_cost(promotion: Promotion, store: Store, corpus: PreparedCorpus) -> RunCost:
    """What the run is made of, its time learned from the runs of the fit."""
    num_domains = len(corpus.domains)
    samples = []
    for run_id in promotion.evidence.run_ids:
        record = store.record(run_id)
        if record is not None:
            spec = read_spec(store.run_dir(run_id) / "spec.json")
            usage = usage_of(spec.model, spec.train, num_domains, shares_trunk=bool(spec.trunk))
            samples.append(Sample(usage=usage, wall_s=record.wall_s))
    spec, prices = promotion.spec, calibrated(SHIPPED, samples)
    whole = cost_of(prices, spec.model, spec.train, num_domains)
    if promotion.begun_from is None:
        return whole
    left = 1 - promotion.begun_from.step / spec.train.num_steps
    wall_s = prices.start_s + left * (whole.wall_s - prices.start_s)
    return replace(whole, own_flops=left * whole.own_flops, wall_s=wall_s)


def _print_flight_plan(
    promotion: Promotion, cost: RunCost, runtime: RuntimeConfig, console: Console
) -> None:
    for part in describe(promotion):
        console.print(part)
    spec, machine = promotion.spec, promotion.machine
    if machine is not None and machine.gpus > 1:
        for part in describe_dry_run(machine, dry_run(spec.model, spec.train, machine)):
            console.print(part)
        time = (
            f"{duration(machine.days * 86_400)} on {machine.gpus} {machine.hardware.name}, by plan"
        )
    else:
        time = (
            f"{duration(cost.wall_s)} on one thread, by what the sweep's runs took; the launch "
            f"uses {runtime.threads}"
        )
    console.print(f"Estimated time: {time}", markup=False)


def _handed_over(entry: Entry, config: Config, console: Console) -> int:
    """The forecast as it stands, and what closes it."""
    name = entry.forecast.promotion_id
    console.print(f"{name}: {verdict_text(entry)}", markup=False)
    _print_overrides(entry, console)
    if entry.outcome is not None:
        for line in origin_text(entry):
            prose(console, line)
        return 0
    again = launch_elsewhere(config.root, name)
    prose(console, "The forecast is registered; the other engine can begin. Then, to measure it:")
    say(console, f"  {again} trained.weights=FOLDER")
    return 0


def _print_overrides(entry: Entry, console: Console) -> None:
    assert isinstance(entry.forecast, ForecastRow), "a launch is of a promotion"
    for gate, reason in entry.forecast.overrides.items():
        console.print(f"  gate {gate} was overridden: {reason}", markup=False)


def _conclude(launched: Launched, promotion: Promotion, console: Console) -> int:
    if launched.record is None:
        console.print(
            "Stopped early; the forecast stays registered, the same command resumes from the "
            "checkpoint",
            markup=False,
        )
        return 1
    if launched.was_over:
        name = launched.record.run_id
        console.print(f"Nothing was trained: run {name} was over before", markup=False)
    console.print(f"{promotion.id}: {verdict_text(launched.entry)}", markup=False)
    _print_overrides(launched.entry, console)
    return 0 if launched.record.status == "done" else 3
