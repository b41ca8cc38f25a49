"""Which of a run's measured losses is fitted: the whole mixture's, a domain's or a stage's."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from analysis.records import RecordSet, RunRecord
from model.errors import ConfigError

WHOLE = "heldout"


def measured_as(records: RecordSet, loss: str) -> RecordSet:
    """The records with ``loss`` in the place of ``loss_nats``.

    Args:
        records: as they were read.
        loss: ``heldout``, ``domain:NAME``, or ``stage:NAME``. The loss of a stage is that of the
            model at the stage's end, so tokens and training FLOPs (M of the run's own sequence
            length) are those until there.

    Raises:
        ConfigError: no such loss; the message names those there are.
    """
    kind, _, name = loss.partition(":")
    if loss == WHOLE:
        return records
    if kind == "domain" and name:
        return replace(records, records=tuple(_of_domain(r, name) for r in records.records))
    if kind == "stage" and name:
        return replace(records, records=tuple(_of_stage(r, name) for r in records.records))
    raise ConfigError(f"loss: {loss!r} is none of heldout, domain:NAME, stage:NAME")


def _of_domain(record: RunRecord, name: str) -> RunRecord:
    measured = record.by_domain.get(name)
    if measured is None:
        raise _unknown(record, "domain", name, record.by_domain)
    return replace(record, loss_nats=measured.loss_nats, bits_per_byte=measured.bits_per_byte)


def _of_stage(record: RunRecord, name: str) -> RunRecord:
    stages = {stage["name"]: stage for stage in record.provenance.get("stages", ())}
    if name not in stages:
        raise _unknown(record, "stage", name, stages)
    tokens = stages[name]["steps"] * record.batch_tokens
    return replace(
        record,
        loss_nats=stages[name]["loss_nats"],
        bits_per_byte=None,
        tokens=tokens,
        train_flops=record.flops_per_token * tokens,
        steps=stages[name]["steps"],
    )


def _unknown(record: RunRecord, kind: str, name: str, known: Iterable[str]) -> ConfigError:
    there_are = ", ".join(known) or "none"
    return ConfigError(f"loss: run {record.run_id} has no {kind} {name!r}; it has: {there_are}")
