"""Documents read once into files from which any of them can be taken again.

A job's documents lie one after the other in ``<key>.text``, and ``<key>.npy`` says where. The
latter is written last and under its final name at once, so a job whose index is there is done: what
was killed goes on with the jobs that are not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.training.data.documents import Document, Job, Report, merged
from model.training.data.files import READ_AT_ONCE
from model.training.data.safely import replaced_by, save_array

INDEX = np.dtype(
    [
        ("high", "<u8"),  # first 8 bytes of the digest as a number, so that they sort like it
        ("low", "<u8"),  # the next 8
        ("offset", "<u8"),
        ("length", "<u4"),
        ("domain", "<u2"),
        ("job", "<u4"),
        ("is_tokens", "?"),
    ]
)
Index = NDArray[np.void]
ROWS_AT_ONCE = 65_536  # as tuples; the rest of a job's index is packed


@dataclass(frozen=True)
class SpoolTask:
    """One job, and the folder its documents go to."""

    folder: Path
    job: Job


def write_job(task: SpoolTask) -> None:
    """Read a job's documents into the folder, unless that was done before."""
    target = task.folder / f"{task.job.key}.npy"
    if target.exists():
        return
    report: Report = {}
    domains: dict[str, int] = {}
    parts = [np.zeros(0, dtype=INDEX)]
    rows: list[tuple[int, int, int, int, int, int, bool]] = []
    offset = 0
    with replaced_by(task.folder / f"{task.job.key}.text") as file:
        for document in task.job.documents(report):
            digest = document.digest
            domain = domains.setdefault(document.domain, len(domains))
            high, low = int.from_bytes(digest[:8]), int.from_bytes(digest[8:16])
            length = file.write(document.text)
            rows.append((high, low, offset, length, domain, 0, document.is_tokens))
            offset += length
            if len(rows) == ROWS_AT_ONCE:
                parts.append(np.array(rows, dtype=INDEX))
                rows.clear()
    with replaced_by(task.folder / f"{task.job.key}.json") as file:
        file.write(json.dumps({"domains": list(domains), "report": report}).encode())
    save_array(target, np.concatenate([*parts, np.array(rows, dtype=INDEX)]))


@dataclass(frozen=True)
class Spool:
    """Every document of a corpus: where it lies, and what it is called."""

    folder: Path
    keys: tuple[str, ...]
    domains: tuple[str, ...]
    """By name; the numbers in an index are places here."""

    @classmethod
    def read(cls, folder: Path, jobs: Sequence[Job]) -> tuple[Spool, Index, Report]:
        """What the jobs have written: the spool, its whole index, and what was left out."""
        keys = tuple(job.key for job in jobs)
        heads = [json.loads((folder / f"{key}.json").read_bytes()) for key in keys]
        domains = tuple(sorted({domain for head in heads for domain in head["domains"]}))
        parts = []
        for number, (key, head) in enumerate(zip(keys, heads, strict=True)):
            part = np.load(folder / f"{key}.npy")
            numbers = np.array(
                [domains.index(domain) for domain in head["domains"]], dtype=np.uint16
            )
            if len(part):
                part["domain"] = numbers[part["domain"]]
            part["job"] = number
            parts.append(part)
        index = np.concatenate(parts) if parts else np.zeros(0, dtype=INDEX)
        return cls(folder, keys, domains), index, merged(head["report"] for head in heads)

    def reader(self) -> SpoolReader:
        """For taking documents out."""
        return SpoolReader(self)


class SpoolReader:
    """Takes documents out of a spool; files stay open between them."""

    def __init__(self, spool: Spool) -> None:
        self._spool = spool
        self._files: dict[int, int] = {}

    def __enter__(self) -> SpoolReader:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            os.close(file)

    def document(self, row: Mapping[str, Any] | np.void) -> Document:
        """The document of one row of the index."""
        job = int(row["job"])
        if job not in self._files:
            if len(self._files) >= 512:  # a process may hold about a thousand files open
                os.close(self._files.pop(next(iter(self._files))))
            path = self._spool.folder / f"{self._spool.keys[job]}.text"
            self._files[job] = os.open(path, os.O_RDONLY)
        text = os.pread(self._files[job], int(row["length"]), int(row["offset"]))
        return Document(self._spool.domains[int(row["domain"])], text, bool(row["is_tokens"]))


def portions(lengths: NDArray[np.integer], size: int = 2 * READ_AT_ONCE) -> list[tuple[int, int]]:
    """[first, last) of runs of documents that hold about ``size`` bytes together."""
    if not len(lengths):
        return []
    begins = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)[:-1]]) // size
    firsts = np.flatnonzero(np.diff(begins, prepend=-1)).tolist()
    return list(zip(firsts, [*firsts[1:], len(lengths)], strict=True))
