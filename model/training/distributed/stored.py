"""The tensors of a checkpoint that many processes wrote, read a part at a time by one.

A part is read with the rows that were written beside it and kept until another is asked for: of the
experts, which lie by ranks, those of one rank of ``expert`` at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, ReadItem
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from model.training.distributed.checkpoint import check_files
from model.training.distributed.index import CheckedReader


@dataclass
class StoredTensor:
    """One tensor; indexing reads the rows that it needs."""

    name: str
    stored: TensorStorageMetadata
    reader: CheckedReader
    _rows: range = field(default=range(0))
    _held: Tensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""
        return tuple(self.stored.size)

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""
        dtype: torch.dtype = self.stored.properties.dtype
        return dtype

    def __getitem__(self, index: Any, /) -> Tensor:
        """A part: of one row, by a tuple that begins with its number, or of all."""
        row = index[0] if isinstance(index, tuple) else index
        if not isinstance(row, int):
            return self._read(range(self.shape[0]))[index]
        if row not in self._rows:
            self._rows = self._beside(row)
            self._held = None  # before the next is read
            self._held = self._read(self._rows)
        assert self._held is not None, "read with its rows"
        return self._held[(row - self._rows.start, *index[1:])]

    def _beside(self, row: int) -> range:
        """The rows that were written together with ``row``."""
        starts = {chunk.offsets[0] for chunk in self.stored.chunks}
        ends = {chunk.offsets[0] + chunk.sizes[0] for chunk in self.stored.chunks}
        return range(max(s for s in starts if s <= row), min(e for e in ends if e > row))

    def _read(self, rows: range) -> Tensor:
        others = self.shape[1:]
        wanted = ChunkStorageMetadata(
            offsets=torch.Size((rows.start, *[0] * len(others))),
            sizes=torch.Size((len(rows), *others)),
        )
        target = torch.empty(wanted.sizes, dtype=self.dtype)
        items = create_read_items_for_chunk_list(self.name, self.stored, [wanted])
        self.reader.read_data(LoadPlan(items), _Into(target)).wait()
        return target


class _Into(dcp.DefaultLoadPlanner):
    """Puts what is read into its place in one tensor."""

    def __init__(self, target: Tensor) -> None:
        super().__init__()
        self._target = target

    def resolve_tensor(self, read_item: ReadItem) -> Tensor:
        part = self._target
        for dim, (start, length) in enumerate(
            zip(read_item.dest_offsets, read_item.lengths, strict=True)
        ):
            part = part.narrow(dim, start, length)
        return part

    def commit_tensor(self, read_item: ReadItem, tensor: Tensor) -> None:
        """It is in its place already."""


def open_stored(path: Path, body: Mapping[str, Any], prefix: str) -> dict[str, StoredTensor]:
    """The tensors whose name begins with ``prefix``, under the rest of it; none read yet.

    Raises:
        BrokenCheckpoint: when a file is missing, cut short or changed.
    """
    check_files(path, body)
    reader = CheckedReader(path)
    metadata = reader.read_metadata()
    reader.set_up_storage_reader(metadata, is_coordinator=True)
    return {
        name.removeprefix(prefix): StoredTensor(name, stored, reader)
        for name, stored in metadata.state_dict_metadata.items()
        if isinstance(stored, TensorStorageMetadata) and name.startswith(prefix)
    }
