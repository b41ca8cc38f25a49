"""A finished sweep whose truth is known: planned as any other, its losses drawn from a surface.

Loaded by the fixture of the same name in ``tests/conftest.py``; nothing is trained.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from analysis.laws import LossSurface
from analysis.points import points_from_records
from analysis.records import DomainLoss, LayerLoad, RecordSet, RunRecord
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from model.accounting import CONVENTION
from model.training.data import prepare_corpus
from model.typed import to_plain
from sweeps.attempt import Attempt, Outcome
from sweeps.described import described
from sweeps.files import write_json
from sweeps.plan import Plan, make_plan
from sweeps.plan_file import write_plan
from sweeps.spec import RunSpec
from sweeps.store import Store
from windtunnel import composition, yaml_folders
from windtunnel.commands import promote as promote_command
from windtunnel.commands import sweep as sweep_command
from windtunnel.launch import forecast_row, outcome_of
from windtunnel.ledger import ledger_of
from windtunnel.promotion import Promotion, Promotions

TRUTH = LossSurface(E=1.1, A=330.0, B=45.0, alpha=0.42, beta=0.34)
NOISE_SD = 0.003
QUICK = FitSettings(starts=400, replicates=100)
OVERRIDES = (
    "sweep=quickstart",
    "data=synthetic",
    "data.tokens=60000",
    # Pinned, so that what is tested does not move when the shipped ladder and recipe are tuned.
    "recipe=ling",
    "recipe.training.peak_lr_factor=0.05",
    "recipe.training.batch_tokens.coefficient=256",
    "recipe.training.batch_tokens.exponent=0",
    "ladder.smallest_flops_per_token=2.6e5",
    "ladder.size_ratio=2",
    "ladder.smallest_tokens=65536",
    "ladder.budget_ratio=2",
)


def make(root: Path, *overrides: str) -> Plan:
    """Plan the quickstart on a small corpus under ``root`` and make every run's folder."""
    dirs = yaml_folders.config_dirs()
    words = [*OVERRIDES, f"root={root}", *overrides]
    config = sweep_command.sweep_config(
        composition.load("sweep", sweep_command.Config, words, dirs)
    )
    corpus = prepare_corpus(config.corpus, config.runtime.data_dir)
    plan = make_plan(config, corpus)
    store = Store(root)
    write_plan(plan, store.plan_path(plan.name))
    for run in plan.runs:
        store.create(run.spec)
    return plan


def measured(spec: RunSpec, *, truth: LossSurface = TRUTH, noise_sd: float = NOISE_SD) -> RunRecord:
    """The record a run of ``spec`` would leave if ``truth`` were the world."""
    told = described(spec)
    rng = np.random.default_rng(int(told["run_id"].rpartition("-")[2], 16))
    flops_per_token = told["flops_per_token"]
    loss = float(truth(flops_per_token, spec.train.tokens) * np.exp(rng.normal(0, noise_sd)))
    moe = spec.model.moe
    return RunRecord(
        **told,
        status="done",
        loss_nats=loss,
        bits_per_byte=loss / np.log(2),
        train_loss_nats=1.01 * loss,
        by_domain={
            "text": DomainLoss(loss_nats=loss, bits_per_byte=loss / np.log(2), tokens=65_536)
        },
        load_by_layer=tuple(
            layer_load(layer, moe.num_experts, rng)
            for layer in range(spec.model.num_layers)
            if moe and spec.model.is_moe_layer(layer)
        ),
        wall_s=3 + told["train_flops"] / 3e10,
        tokens_per_s=3e10 / flops_per_token,
        provenance={"packages": {"torch": "2.13.0"}, "started": 1.7e9, "ended": 1.7e9 + 60},
    )


def layer_load(layer: int, experts: int, rng: np.random.Generator) -> LayerLoad:
    """An uneven load and the measures that follow from it."""
    load = rng.gamma(14, size=experts)
    load /= load.sum()
    return LayerLoad(
        layer=layer,
        max_vio=float(load.max() * experts - 1),
        min_vio=float(1 - load.min() * experts),
        normalized_entropy=float(np.exp(-np.sum(load * np.log(load))) / experts),
        dead_frac=0.0,
        load=tuple(load),
    )


def finish(root: Path, spec: RunSpec, record: RunRecord) -> None:
    """Leave what a finished worker leaves: metrics, record, outcome."""
    run_dir = Store(root).create(spec)
    attempt = Attempt.claim(run_dir, after=0, now=time.time())
    steps = np.arange(1, record.steps + 1, max(1, record.steps // 200))
    end = record.train_loss_nats if record.loss_nats is None else record.loss_nats
    with (attempt.dir / "metrics.jsonl").open("w") as lines:
        for step in steps:
            fade = (5.5 - end) * (1 + step / 8) ** -0.9 * (1 - step / record.steps)
            line = {
                "kind": "train",
                "step": int(step),
                "tokens": int(step * record.batch_tokens),
                "train_loss_nats": float(end + fade),
            }
            lines.write(json.dumps(line) + "\n")
    write_json(attempt.dir / "record.json", to_plain(record))
    attempt.publish()
    attempt.end(Outcome(status=record.status, reason=record.reason, ended=time.time()))


def fail(root: Path, spec: RunSpec, reason: str) -> None:
    """Leave what a failed worker leaves."""
    attempt = Attempt.claim(Store(root).create(spec), after=0, now=time.time())
    attempt.end(Outcome(status="failed", reason=reason, ended=time.time()))


def finish_all(
    root: Path, plan: Plan, change: Callable[[RunRecord], RunRecord] = lambda record: record
) -> list[RunRecord]:
    """Finish every run of the plan; ``change`` may alter a record on its way to disk."""
    records = [change(measured(run.spec)) for run in plan.runs]
    for run, record in zip(plan.runs, records, strict=True):
        finish(root, run.spec, record)
    return records


def fit(root: Path, plan: Plan, settings: FitSettings = QUICK) -> Study:
    """Fit the finished runs and leave ``fit.json``."""
    store = Store(root)
    found = [store.record(run.run_id) for run in plan.runs]
    records = tuple(record for record in found if record is not None)
    points, exclusions = points_from_records(RecordSet(records=records, excluded=()))
    study = make_study(
        plan.name,
        points,
        exclusions,
        settings,
        protocol=records[0].protocol,
        protocol_fingerprints=(records[0].protocol_fingerprint,),
        convention=CONVENTION,
    )
    study.save(store.plan_path(plan.name).with_name("fit.json"))
    return study


def promote(root: Path, *overrides: str) -> Promotion:
    """Promote the next rung from the fit, as the command does."""
    words = [f"root={root}", "sweep=quickstart", *overrides]
    dirs = yaml_folders.config_dirs()
    config = composition.load("promote", promote_command.Config, words, dirs)
    promote_command.run(config, Console(file=io.StringIO()))
    return Promotions(root).find("latest")


SMALL = (
    "ladder.sizes=3",
    "ladder.budgets=3",
    "ladder.smallest_tokens=2048",
    "recipe.training.min_steps=20",
    "recipe.training.batch_factor=6",
    "evaluation.heldout_tokens=2048",
    "data.tokens=200000",
)
"""A sweep whose next rung trains for some seconds."""


def promote_small(root: Path, *made: str, promoted: tuple[str, ...] = ()) -> Promotion:
    """The next rung of a small sweep of invented records, for a launch that really trains.

    ``made`` are words for the sweep, ``promoted`` for its promotion.
    """
    plan = make(root, *SMALL, *made)
    finish_all(root, plan)
    fit(root, plan)
    return promote(root, *promoted)


def overrides(root: Path) -> list[str]:
    """Whatever gates the invented records fail, each passed by its name."""
    gates = Promotions(root).find("latest").gates
    return [f"override.{gate.name}=test" for gate in gates if not gate.passed]


def launch(root: Path, promotion: Promotion, record: RunRecord) -> None:
    """Register the forecast, then the outcome ``record`` brings."""
    ledger = ledger_of(root)
    ledger.register(forecast_row(promotion))
    finish(root, promotion.spec, record)
    ledger.record_outcome(outcome_of(promotion, record))
