"""Parquet tables and Hugging Face datasets as documents: one text column of many rows."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.training.data.documents import JOB_BYTES, Document, JobList, Report, count, sha256
from model.training.data.files import Hashes, TextFile, expand
from model.training.data.text import cut
from model.training.sources import HubDataset, ParquetFiles
from model.typed import to_plain

ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class ParquetJob:
    """Some row groups of a file."""

    file: TextFile
    row_groups: tuple[int, ...]
    size: int
    column: str
    document_bytes: int

    @cached_property
    def key(self) -> str:
        """Content of the file, the row groups, and how they are read."""
        file = f"{self.file.domain}:{self.file.digest}:{self.row_groups}"
        return sha256(f"parquet:{file}:{self.column}:{self.document_bytes}".encode())

    def documents(self, report: Report) -> Iterator[Document]:
        """The text of every row, cut where it is long; empty rows are counted."""
        count(report, "files", int(self.row_groups[:1] == (0,)))
        with _open_parquet(self.file.path) as table:
            batches = table.iter_batches(
                ROWS_AT_ONCE, row_groups=list(self.row_groups), columns=[self.column]
            )
            for batch in batches:
                for text in batch.column(0).to_pylist():
                    yield from _pieces(
                        text, self.file.domain, self.document_bytes, report, str(self.file.path)
                    )


@dataclass(frozen=True)
class HubJob:
    """A Hugging Face dataset from its first row on."""

    source: HubDataset
    domain: str
    content: str
    """Hash of a local folder's files; empty for a dataset that its revision pins."""

    size: int = JOB_BYTES

    @cached_property
    def key(self) -> str:
        """What is read, by content or by revision."""
        return sha256(f"hub:{self.domain}:{to_plain(self.source)}:{self.content}".encode())

    def documents(self, report: Report) -> Iterator[Document]:
        """The text of every row, cut where it is long; empty rows are counted."""
        source = self.source
        rows = _stream(source)
        for number, row in enumerate(rows):
            if number == source.max_documents:
                break
            count(report, "rows")
            if source.column not in row:
                raise ConfigError(
                    f"data: dataset {source.dataset} has no column {source.column!r}; "
                    f"it has: {', '.join(sorted(row))}"
                )
            text = row[source.column]
            yield from _pieces(text, self.domain, source.document_bytes, report, source.dataset)


def parquet_files(source: ParquetFiles, domain: str, where: str, hashes: Hashes) -> JobList:
    """Every file of the source, its row groups joined up to a job's size."""
    jobs: list[ParquetJob] = []
    for path in expand(source.paths, f"{where}.paths"):
        file = TextFile(domain, path, *hashes.of(path))
        with _open_parquet(path) as table:
            names = table.schema_arrow.names
            if source.column not in names:
                raise ConfigError(
                    f"{where}.column: {path} has no column {source.column!r}; "
                    f"it has: {', '.join(names)}"
                )
            sizes = [
                table.metadata.row_group(i).total_byte_size for i in range(table.num_row_groups)
            ]
        group: list[int] = []
        for index in range(len(sizes)):
            group.append(index)
            total = sum(sizes[i] for i in group)
            if total >= JOB_BYTES or index == len(sizes) - 1:
                jobs.append(
                    ParquetJob(file, tuple(group), total, source.column, source.document_bytes)
                )
                group = []
    return JobList(tuple(jobs))


def hub_dataset(source: HubDataset, domain: str, where: str, hashes: Hashes) -> JobList:
    """A dataset in a folder, or one on the hub where that is allowed.

    Raises:
        ConfigError: it is no folder and the network is not to be used.
    """
    if Path(source.dataset).is_dir():
        digests = sorted(hashes.of(path)[1] for path in expand([source.dataset], where))
        return JobList((HubJob(source, domain, sha256(" ".join(digests).encode())),))
    if not source.network:
        raise ConfigError(
            f"{where}.dataset: {source.dataset!r} is no folder here, and the network is not used "
            "unless asked to; download it, or set network=true and a revision"
        )
    return JobList((HubJob(source, domain, ""),))


def _pieces(
    text: Any, domain: str, document_bytes: int, report: Report, where: str
) -> Iterator[Document]:
    if text is not None and not isinstance(text, str):
        raise ConfigError(f"data: {where}: the column holds {type(text).__name__}, not text")
    if not text or not text.strip():
        count(report, "empty_documents")
        return
    for piece in cut(text.encode(), document_bytes):
        yield Document(domain, piece)


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise _missing("pyarrow", "Parquet files") from None
    try:
        return ParquetFile(path)
    except (ArrowInvalid, OSError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"data.paths: {path} is not a Parquet file ({problem})") from None


def _stream(source: HubDataset) -> Any:
    if not source.network:
        # Read once, when the library is first imported: also a folder's loader may look online.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
    try:
        from datasets import load_dataset
    except ImportError:
        raise _missing("datasets", "Hugging Face datasets") from None
    try:
        return load_dataset(
            source.dataset,
            source.subset,
            split=source.split,
            revision=source.revision,
            streaming=True,
        )
    except (ValueError, OSError) as error:
        problem = str(error).splitlines()[0]
        raise ConfigError(f"data: cannot read dataset {source.dataset}: {problem}") from None


def _missing(package: str, what: str) -> ConfigError:
    return ConfigError(f"data: {what} need {package}: pip install 'windtunnel-moe[data]'")
