"""Megatron token files as documents that are tokens already.

``NAME.idx`` describes ``NAME.bin`` (Megatron-LM, megatron/core/datasets/indexed_dataset.py), all
little-endian: 9 bytes ``MMIDIDX`` and two zeros, uint64 version 1, uint8 dtype code, uint64 number
of sequences S, uint64 number of document borders B, int32[S] sequence lengths, int64[S] byte
offsets into the ``.bin``, int64[B] the sequence each document begins with, the last one S.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.data.documents import JOB_BYTES, Document, JobList, Report, count, sha256
from model.training.data.files import Hashes, expand
from model.training.sources import MegatronFiles

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}
"""By the code in the file; 6 and 7 are floats, which are no tokens."""


@dataclass(frozen=True)
class MegatronJob:
    """Documents ``first`` .. ``last - 1`` of a pair of files."""

    path: Path
    domain: str
    digest: str
    first: int
    last: int
    size: int
    end_token: int | None

    @cached_property
    def key(self) -> str:
        """Contents of both files, which documents, and the end token taken off."""
        portion = f"{self.first}-{self.last}:{self.end_token}"
        return sha256(f"megatron:{self.domain}:{self.digest}:{portion}".encode())

    def documents(self, report: Report) -> Iterator[Document]:
        """The tokens of each document, its end token taken off."""
        count(report, "files", int(self.first == 0))
        index = read_index(self.path)
        edges = index.offsets[self.first : self.last + 1]
        with self.path.with_suffix(".bin").open("rb") as file:
            file.seek(int(edges[0]))
            for length in np.diff(edges).tolist():
                tokens = np.frombuffer(file.read(length), dtype=index.dtype)
                if self.end_token is not None and len(tokens) and tokens[-1] == self.end_token:
                    tokens = tokens[:-1]
                if not len(tokens):
                    count(report, "empty_documents")
                elif tokens.min() < 0:
                    raise ConfigError(
                        f"data.paths: {self.path} has the negative token {min(tokens)}"
                    )
                else:
                    yield Document(self.domain, tokens.astype("<u4").tobytes(), is_tokens=True)


@dataclass(frozen=True)
class Index:
    """What an ``.idx`` file says: the type of the tokens, and where each document lies."""

    dtype: np.dtype[np.integer]
    offsets: NDArray[np.int64]
    """[documents + 1]: bytes into the ``.bin``."""


def read_index(path: Path) -> Index:
    """Read an ``.idx`` file and hold it against its ``.bin``.

    Raises:
        ConfigError: when it is not one, or the two do not belong together.
    """

    def refuse(problem: str) -> ConfigError:
        return ConfigError(f"data.paths: {path} is not the index of token files: {problem}")

    content = path.read_bytes()
    if len(content) < HEADER.size:
        raise refuse(f"it has {len(content)} bytes")
    magic, version, code, num_sequences, num_borders = HEADER.unpack_from(content)
    if magic != MAGIC or version != 1:
        raise refuse("it does not begin with MMIDIDX, version 1")
    if code not in DTYPES:
        raise refuse(f"dtype code {code} is no type of whole numbers")
    if len(content) < HEADER.size + 12 * num_sequences + 8 * num_borders:
        raise refuse("it is cut short")
    place = HEADER.size
    lengths = np.frombuffer(content, "<i4", num_sequences, place).astype(np.int64)
    place += 4 * num_sequences
    offsets = np.frombuffer(content, "<i8", num_sequences, place)
    place += 8 * num_sequences
    borders = np.frombuffer(content, "<i8", num_borders, place)
    dtype: np.dtype[np.integer] = np.dtype(DTYPES[code])
    edges = np.concatenate([[0], np.cumsum(lengths * dtype.itemsize)])
    if not np.array_equal(edges[:-1], offsets):
        raise refuse("its sequences do not follow each other")
    is_whole = num_borders > 0 and borders[0] == 0 and borders[-1] == num_sequences
    if not is_whole or (np.diff(borders) < 0).any():
        raise refuse("its documents do not cover its sequences")
    actual = path.with_suffix(".bin").stat().st_size
    if edges[-1] != actual:
        raise refuse(f"it describes {edges[-1]} bytes, {path.stem}.bin has {actual}")
    return Index(dtype, edges[borders])


def megatron_files(source: MegatronFiles, domain: str, where: str, hashes: Hashes) -> JobList:
    """Every pair of files of the source, in portions of a job's size."""
    jobs: list[MegatronJob] = []
    paths = [p for p in expand(source.paths, f"{where}.paths") if p.suffix == ".idx"]
    if not paths:
        raise ConfigError(
            f"{where}.paths: no .idx file among those named; name them, or their folder"
        )
    for path in paths:
        if not path.with_suffix(".bin").is_file():
            raise ConfigError(f"{where}.paths: {path} has no {path.stem}.bin beside it")
        digest = hashes.of(path)[1] + hashes.of(path.with_suffix(".bin"))[1]
        offsets = read_index(path).offsets
        portion = offsets[:-1] // JOB_BYTES
        firsts = np.flatnonzero(np.diff(portion, prepend=-1)).tolist()
        for first, last in zip(firsts, [*firsts[1:], len(offsets) - 1], strict=True):
            size = int(offsets[last] - offsets[first])
            jobs.append(MegatronJob(path, domain, digest, first, last, size, source.end_token))
    return JobList(tuple(jobs))
