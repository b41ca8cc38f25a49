"""What a W&B run kept offline, from its ``.wandb`` file: W&B's records in LevelDB's log format.

Loaded by the fixture of the same name in ``tests/conftest.py``. The messages are W&B's own; their
framing is read here, since its reader for Python is gone: after 7 bytes of header, blocks of 32,768
bytes with chunks of (checksum 4, length 2, kind 1: whole, first, middle, last).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, HEADER = 32_768, 7


@dataclass
class Kept:
    """One run as W&B would upload it."""

    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] = field(default_factory=list)
    artifacts: list[Any] = field(default_factory=list)
    exit_code: int | None = None


def read(folder: Path) -> Kept:
    """The run in an ``offline-run-*`` folder."""
    (path,) = folder.glob("run-*.wandb")
    kept = Kept()
    for message in _messages(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(message)
        _take(kept, record)
    return kept


def _take(kept: Kept, record: Any) -> None:
    match record.WhichOneof("record_type"):
        case "run":
            kept.run = record.run
            kept.config |= _items(record.run.config.update)
        case "config":
            kept.config |= _items(record.config.update)
        case "history":
            kept.history.append(_items(record.history.item))
        case "summary":
            kept.summary |= _items(record.summary.update)
        case "metric":
            kept.metrics.append(record.metric.name or record.metric.glob_name)
        case "artifact":
            kept.artifacts.append(record.artifact)
        case "exit":
            kept.exit_code = record.exit.exit_code


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _messages(text: bytes) -> Iterator[bytes]:
    at, part = HEADER, b""
    while at + HEADER <= len(text):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        length = int.from_bytes(text[at + 4 : at + 6], "little")
        kind = text[at + 6]
        if kind == 0:
            at += left
            continue
        part += text[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):
            yield part
            part = b""
