"""Tokens on disk: shards mapped into memory, each part checked before it is first used."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError

BLOCK_BYTES = 2**20
"""Checked at once: about a millisecond, and 16 letters in the manifest."""


@dataclass(frozen=True)
class Shard:
    """One file of tokens, and the hash of each of its blocks."""

    file: str
    tokens: int
    blocks: tuple[str, ...]


class Tokens:
    """The tokens of one side of a domain, in one or several shards."""

    def __init__(self, folder: Path, shards: Sequence[Shard], dtype: str) -> None:
        self._folder = folder
        self._shards = shards
        self._dtype: np.dtype[np.integer] = np.dtype(dtype)
        self._ends = np.cumsum([shard.tokens for shard in shards])
        self._mapped: dict[int, NDArray[np.integer]] = {}
        self._unchecked = [np.ones(len(shard.blocks), dtype=bool) for shard in shards]
        self._num_unchecked = sum(len(shard.blocks) for shard in shards)
        for shard in shards:
            path = folder / shard.file
            expected = shard.tokens * self._dtype.itemsize
            if not path.exists():
                raise damaged(folder, f"{shard.file} is missing")
            if path.stat().st_size < expected:
                raise damaged(folder, f"{shard.file} is cut short")

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return len(self) * self._dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[np.integer]:
        """All of them, for a small corpus and for tests."""
        return np.asarray(self[np.arange(len(self))], dtype=dtype or self._dtype)

    def __getitem__(self, positions: NDArray[np.int64]) -> NDArray[np.integer]:
        """Tokens at positions, of any shape.

        Raises:
            ConfigError: where what is on disk is not what was written.
        """
        if len(self._shards) == 1:
            return self._read(0, positions)
        out = np.empty(positions.shape, dtype=self._dtype)
        number = np.searchsorted(self._ends, positions, side="right")
        for shard in np.unique(number).tolist():
            here = number == shard
            begin = self._ends[shard] - self._shards[shard].tokens
            out[here] = self._read(shard, positions[here] - begin)
        return out

    def check_all(self) -> None:
        """Check every block now.

        Raises:
            ConfigError: where what is on disk is not what was written.
        """
        for shard, unchecked in enumerate(self._unchecked):
            self._check(shard, np.flatnonzero(unchecked))

    def _read(self, shard: int, positions: NDArray[np.int64]) -> NDArray[np.integer]:
        if self._num_unchecked:
            blocks = np.unique(positions * self._dtype.itemsize // BLOCK_BYTES)
            self._check(shard, blocks[self._unchecked[shard][blocks]])
        return self._array(shard)[positions]

    def _array(self, shard: int) -> NDArray[np.integer]:
        if shard not in self._mapped:
            path = self._folder / self._shards[shard].file
            try:
                mapped = np.load(path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise damaged(self._folder, f"{path.name}: {error}") from None
            if mapped.dtype != self._dtype or mapped.shape != (self._shards[shard].tokens,):
                raise damaged(self._folder, f"{path.name} is not what was written")
            # A plain view: indexing np.memmap itself costs more than the reading.
            self._mapped[shard] = np.asarray(mapped)
        return self._mapped[shard]

    def _check(self, shard: int, blocks: NDArray[np.intp]) -> None:
        array = self._array(shard)
        for block in blocks.tolist():
            if block_hash(array, block) != self._shards[shard].blocks[block]:
                name = self._shards[shard].file
                raise damaged(self._folder, f"{name} is not what was written, in its block {block}")
            self._unchecked[shard][block] = False
            self._num_unchecked -= 1


def block_hash(array: NDArray[np.integer], block: int) -> str:
    """Hash of the ``block``-th part of an array of tokens."""
    size = BLOCK_BYTES // array.dtype.itemsize
    part = np.ascontiguousarray(array[block * size : (block + 1) * size])
    return hashlib.blake2b(part.data, digest_size=8).hexdigest()


def shards_from(entries: Sequence[Mapping[str, Any]]) -> tuple[Shard, ...]:
    """Shards as a manifest has them."""
    return tuple(Shard(e["file"], e["tokens"], tuple(e["blocks"])) for e in entries)


def damaged(folder: Path, problem: str) -> ConfigError:
    """A prepared corpus is not what was written."""
    return ConfigError(
        f"data: the prepared corpus {folder} is damaged ({problem}); "
        "delete that folder and run the command again to prepare it afresh"
    )
