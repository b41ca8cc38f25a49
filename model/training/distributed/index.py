"""The index of a checkpoint of many processes: a pickle, which may name its own parts alone.

A pickle calls what it names, so one from elsewhere could run anything. PyTorch's reader trusts it;
here it is read, once, by a reader that knows the few names such an index is made of.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import Metadata

from model.training.checkpoint import BrokenCheckpoint

INDEX = ".metadata"
NAMES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"},
    "pathlib": {"Path", "PosixPath"},
    "pathlib._local": {"PosixPath"},
}
"""By module; PyTorch's types of elements besides."""


class CheckedReader(dcp.FileSystemReader):
    """PyTorch's reader, which reads an index of those names only, and files of the folder only."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index, in place of PyTorch's own reading of it.

        That would note an id of this reading too, which nothing that loads a checkpoint looks at.

        Raises:
            BrokenCheckpoint: it names something else, or a file elsewhere.
        """
        path = Path(self.path) / INDEX
        with path.open("rb") as file:
            found = _OwnNames(file).load()
        if not isinstance(found, Metadata):
            raise BrokenCheckpoint(f"{INDEX} holds no index of tensors")
        for stored in (found.storage_data or {}).values():
            if Path(stored.relative_path).name != stored.relative_path:
                raise BrokenCheckpoint(f"{INDEX} leads to {stored.relative_path}, outside of it")
        return found


class _OwnNames(pickle.Unpickler):
    def find_class(self, module: str, name: str, /) -> Any:
        is_type = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        if is_type or name in NAMES.get(module, ()):
            return super().find_class(module, name)
        raise BrokenCheckpoint(f"{INDEX} names {module}.{name}, which no checkpoint is made of")
