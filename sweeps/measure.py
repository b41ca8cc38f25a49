"""Train one spec and say what it measured: the writer's side of ``analysis.records``."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from analysis.records import DomainLoss, LayerLoad, RunRecord
from model.accounting import CONVENTION, count_params, flops_per_token
from model.errors import ConfigError
from model.training.config import RuntimeConfig, WandbTracker
from model.training.data import PreparedCorpus, open_corpus, prepare_corpus
from model.training.distributed.job import Job, free_address, run_job
from model.training.mirrors import mirror_failure
from model.training.result import TrainResult
from model.typed import build, to_plain
from sweeps.attempt import Progress
from sweeps.described import described
from sweeps.memory import micro_batches
from sweeps.protocol import fingerprint, protocol_of
from sweeps.provenance import git_state, provenance
from sweeps.spec import NUMERICS_VERSION, RunSpec, run_id
from sweeps.spread import node_command, read_spread
from sweeps.store import Store
from sweeps.trunks import has_snapshots


def measure_run(spec: RunSpec, attempt_dir: Path, report: Callable[[Progress], None]) -> RunRecord:
    """Train ``spec`` in the attempt's folder, going on from the checkpoints that lie there."""
    _require_numerics(spec)
    git_state()  # of the program that runs; its checkout may move on meanwhile
    run_dir = attempt_dir.parents[1]
    spec = kept_under(spec, run_dir.parents[1])
    trunk = _diverged_trunk(spec, run_dir)
    if trunk is not None:
        return record_of(spec, trunk, attempt_dir)
    corpus = planned_corpus(spec)
    snapshots_dir = run_dir / "snapshots"
    trunk_dir = _begins_from(spec, run_dir)
    on_progress = _reporting(report, attempt_dir)
    spread = read_spread(run_dir)
    if spread is not None:
        job = Job(
            name=run_id(spec),
            model=spec.model,
            train=spec.train,
            corpus_fingerprint=corpus.fingerprint,
            runtime=labelled(spec),
            parallel=spread.parallel,
            nodes=spread.nodes,
            rendezvous=free_address() if spread.nodes > 1 else "localhost:0",
            snapshots_dir=snapshots_dir,
            trunk_dir=trunk_dir,
        )
        result = run_job(job, attempt_dir, on_progress, node_command())
        return record_of(spec, result, attempt_dir, corpus.text_fingerprint)

    from model.training.trainer import train  # here: planning and the driver need no torch

    result = train(
        spec.model,
        spec.train,
        corpus,
        labelled(spec),
        attempt_dir,
        on_progress=on_progress,
        name=run_id(spec),
        snapshots_dir=snapshots_dir,
        trunk_dir=trunk_dir,
        micro_batches=micro_batches(run_dir, spec.train, int(attempt_dir.name)),
    )
    return record_of(spec, result, attempt_dir, corpus.text_fingerprint)


def measure_pack(
    specs: Sequence[RunSpec],
    attempt_dirs: Sequence[Path],
    reports: Sequence[Callable[[Progress], None]],
    on_record: Callable[[int, RunRecord], None],
) -> None:
    """The same for runs that can go together (:mod:`sweeps.packing`), as one stacked model.

    ``on_record(index, record)`` is called as each run ends.
    """
    from model.training.packed import Member, train_packed

    for spec in specs:
        _require_numerics(spec)
    git_state()
    first = kept_under(specs[0], attempt_dirs[0].parents[3])
    members = [
        Member(config=spec.train, run_dir=folder, on_progress=_reporting(report, folder))
        for spec, folder, report in zip(specs, attempt_dirs, reports, strict=True)
    ]
    corpus = planned_corpus(first)

    def on_result(index: int, result: TrainResult) -> None:
        folder = attempt_dirs[index]
        on_record(index, record_of(specs[index], result, folder, corpus.text_fingerprint))

    train_packed(first.model, members, corpus, first.runtime, on_result)


def _require_numerics(spec: RunSpec) -> None:
    if spec.numerics != NUMERICS_VERSION:
        raise ConfigError(
            f"planned for numerics version {spec.numerics}, this program computes by version "
            f"{NUMERICS_VERSION}; its numbers would not be comparable; plan the sweep again"
        )


def _reporting(
    report: Callable[[Progress], None], attempt_dir: Path
) -> Callable[[int, int, float], None]:
    """What the trainer calls, passed on with the newest training loss."""

    def on_progress(step: int, num_steps: int, tokens_per_s: float) -> None:
        report(
            Progress(
                step=step,
                num_steps=num_steps,
                tokens_per_s=tokens_per_s,
                loss=_last_train_loss(attempt_dir / "metrics.jsonl"),
            )
        )

    return on_progress


def labelled(spec: RunSpec) -> RuntimeConfig:
    """The runtime, its W&B mirror told what the run is for."""
    tracker = spec.runtime.tracker
    if not isinstance(tracker, WandbTracker):
        return spec.runtime
    tags = (*tracker.tags, spec.rung)
    return replace(spec.runtime, tracker=replace(tracker, job_type=spec.role, tags=tags))


def _begins_from(spec: RunSpec, run_dir: Path) -> Path | None:
    """Snapshots the run may begin with: its trunk's, or of the run whose second stage it is."""
    if spec.trunk:
        return run_dir.parent / spec.trunk / "snapshots"
    begins = run_dir / "begins"
    return begins if begins.exists() else None


def _diverged_trunk(spec: RunSpec, run_dir: Path) -> TrainResult | None:
    """What a run measures whose trunk went wrong before the run's own first step; else None."""
    store = Store(run_dir.parents[1])
    trunk = store.record(spec.trunk) if spec.trunk else None
    if trunk is None or trunk.status == "done" or has_snapshots(store, spec):
        return None
    return TrainResult(
        status="diverged",
        reason=f"its trunk {spec.trunk} diverged: {trunk.reason}",
        steps=trunk.steps,
        tokens=trunk.tokens,
        loss_nats=None,
        bits_per_byte=None,
        train_loss_nats=trunk.train_loss_nats,
        by_domain={},
        load_by_layer=(),
        wall_s=0.0,
        tokens_per_s=0.0,
        seconds={},
        epochs={},
        numerics={},
    )


def record_of(
    spec: RunSpec, result: TrainResult, attempt_dir: Path, text_fingerprint: str = ""
) -> RunRecord:
    """The record of a run that ended, done or diverged.

    A diverged run whose weights give no number has no held-out loss. ``text_fingerprint`` is of the
    tokens in whatever shares: runs that differ in those alone can be told from runs of other text.
    """
    origin = provenance(
        attempt_dir.parents[1], attempt=int(attempt_dir.name), threads=spec.runtime.threads
    )
    unmirrored = mirror_failure(attempt_dir)
    seen = described(spec)
    seen |= {
        "tokens": result.tokens,
        "steps": result.steps,
        "train_flops": seen["flops_per_token"] * result.tokens,
    }
    return RunRecord(
        **seen,
        status=result.status,
        reason=result.reason,
        loss_nats=result.loss_nats,
        bits_per_byte=result.bits_per_byte,
        train_loss_nats=result.train_loss_nats,
        by_domain={
            name: DomainLoss(
                loss_nats=loss.loss_nats, bits_per_byte=loss.bits_per_byte, tokens=loss.tokens
            )
            for name, loss in result.by_domain.items()
        },
        # Both sides name the fields alike; the record's reader must not import the trainer.
        load_by_layer=tuple(LayerLoad(**vars(load)) for load in result.load_by_layer),
        wall_s=result.wall_s,
        tokens_per_s=result.tokens_per_s,
        provenance={
            **origin,
            "numerics": dict(result.numerics),
            "seconds": dict(result.seconds),
            "epochs": dict(result.epochs),
            **({"text_fingerprint": text_fingerprint} if text_fingerprint else {}),
            **({"stages": list(result.stages)} if result.stages else {}),
            **({"fp8_fallen": list(result.fp8_fallen)} if result.fp8_fallen else {}),
            **({"rewinds": list(result.rewinds)} if result.rewinds else {}),
            **({"computed_by": list(result.computed_by)} if len(result.computed_by) > 1 else {}),
            **({"trunk": spec.trunk} if spec.trunk else {}),
            **({"mirror_failed": unmirrored} if unmirrored else {}),
        },
    )


def _last_train_loss(metrics: Path) -> float | None:
    """The training loss in the newest line that has one."""
    try:
        with open(metrics, "rb") as file:
            begin = max(0, os.fstat(file.fileno()).st_size - 65_536)
            file.seek(begin)
            lines = file.read().splitlines()
    except FileNotFoundError:
        return None
    for line in reversed(lines[1:] if begin else lines):  # the first is cut, but at the beginning
        values = json.loads(line)
        if "train_loss_nats" in values:
            return float(values["train_loss_nats"])
    return None


def kept_under(spec: RunSpec, root: Path) -> RunSpec:
    """``spec`` with its text where ``root`` keeps it: it may have been moved since, or copied.

    As planned where the text lies there alone.
    """
    own, planned = root / "data", spec.runtime.data_dir
    if not (own / spec.corpus_fingerprint).exists() and planned.exists():
        return spec
    return replace(spec, runtime=replace(spec.runtime, data_dir=own))


def planned_corpus(spec: RunSpec) -> PreparedCorpus:
    """The very corpus the run was planned for.

    Taken as it was prepared then, even if the files it was made from have changed since; prepared
    again only where it is gone, and refused if that gives another one.
    """
    data_dir = spec.runtime.data_dir
    if (data_dir / spec.corpus_fingerprint).exists():
        return open_corpus(data_dir, spec.corpus_fingerprint)
    corpus = prepare_corpus(spec.corpus, data_dir)
    if corpus.fingerprint != spec.corpus_fingerprint:
        raise ConfigError(
            f"the corpus has changed since the sweep was planned (fingerprint "
            f"{corpus.fingerprint}, planned {spec.corpus_fingerprint}) and the prepared one is "
            f"gone from {data_dir}; restore the files, or plan the sweep again"
        )
    return corpus


def check_record(record: RunRecord, spec: RunSpec) -> None:
    """Refuse a record that is not a whole and sane measurement of ``spec``.

    Raises:
        ConfigError: naming what is wrong. A run is done only after this.
    """
    build(RunRecord, to_plain(record), where="record")
    asked = {
        "run_id": run_id(spec),
        "protocol_fingerprint": fingerprint(protocol_of(spec)),
        "seed": spec.train.seed,
        "convention": CONVENTION,
        "flops_per_token": flops_per_token(spec.model, spec.train.sequence_length).house,
        "total_params": count_params(spec.model).total,
    }
    for name, value in asked.items():
        if getattr(record, name) != value:
            raise ConfigError(
                f"record.{name}: {getattr(record, name)!r}, but the spec says {value!r}"
            )
    if record.status == "diverged":
        return
    if (record.tokens, record.steps) != (spec.train.tokens, spec.train.num_steps):
        raise ConfigError(
            f"record.tokens: a run that is said to be done has {record.tokens} tokens in "
            f"{record.steps} steps, its spec says {spec.train.tokens} in {spec.train.num_steps}"
        )
    loss = record.loss_nats
    if loss is None or not (math.isfinite(loss) and loss > 0 and record.by_domain):
        raise ConfigError(f"record.loss_nats: {record.loss_nats} of a run that is said to be done")
    for layer in record.load_by_layer:
        if layer.load and abs(sum(layer.load) - 1) > 1e-6:
            raise ConfigError(
                f"record.load_by_layer: the load of layer {layer.layer} sums to {sum(layer.load)}"
            )
