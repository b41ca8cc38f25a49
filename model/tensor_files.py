"""safetensors files one tensor at a time: a lazy reader and a writer that streams.

The library's own ``save_file`` wants every tensor of a file in memory at once. The format is a
length, a JSON header with each tensor's type, shape and byte range, and the bytes, so the writer
here takes the header first and the bytes as they come. Reading and its checks stay the library's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import safetensors
import torch
from torch import Tensor

from model.errors import ConfigError
from model.files import sync_file

_DTYPE_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}

OnBytes = Callable[[int], None]


class Readable(Protocol):
    """A tensor in memory, or one on disk whose parts are read when asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    @property
    def dtype(self) -> torch.dtype:
        """Its element type."""

    def __getitem__(self, index: Any, /) -> Tensor:
        """Read a part."""


@dataclass(frozen=True)
class TensorOnDisk:
    """One tensor of a safetensors file; indexing reads that part alone."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    handle: Any

    def __getitem__(self, index: Any, /) -> Tensor:
        """Read a part."""
        part: Tensor = self.handle.get_slice(self.name)[index]
        return part


@dataclass(frozen=True)
class TensorHeader:
    """What the header says of one tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


def open_tensors(path: Path, prefix: str = "") -> dict[str, TensorOnDisk]:
    """The tensors of a safetensors file, none of them read yet.

    With ``prefix`` only those whose name begins with it, under the rest of their name.

    Raises:
        ConfigError: for a file that is absent, cut short, or of another type than float32 and
            bfloat16; names the file and the tensor.
    """
    if not path.is_file():
        raise ConfigError(f"{path}: no such file")
    try:
        handle = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as error:
        raise ConfigError(
            f"{path}: not a whole safetensors file ({error}); copy or download it again"
        ) from None
    tensors = {}
    for name in handle.keys():  # noqa: SIM118 - a file handle, not a mapping
        if not name.startswith(prefix):
            continue
        part = handle.get_slice(name)
        if part.get_dtype() not in _DTYPES:
            raise ConfigError(
                f"{path}: {name} is {part.get_dtype()}; only {', '.join(_DTYPES)} can be read"
            )
        dtype = _DTYPES[part.get_dtype()]
        tensors[name.removeprefix(prefix)] = TensorOnDisk(
            path, name, tuple(part.get_shape()), dtype, handle
        )
    return tensors


def write_tensors(
    path: Path,
    headers: Mapping[str, TensorHeader],
    parts: Iterable[Tensor],
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Write a safetensors file while ``parts`` is being made, and fsync it.

    Args:
        path: the new file.
        headers: every tensor in the order of its bytes.
        parts: the elements in that order, cut anywhere; each already of its tensor's type.
        on_bytes: told of the bytes just written, after every part.
    """
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # as the library marks torch's
    end = 0
    for name, header in headers.items():
        start, end = end, end + header.num_bytes
        described[name] = {
            "dtype": _DTYPE_NAMES[header.dtype],
            "shape": list(header.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data starts on a multiple of 8 bytes
    with open(path, "xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            on_bytes(file.write(_bytes(part)))
        written = file.tell() - 8 - len(text)
        assert written == end, f"{path}: {written} bytes for tensors of {end}"
        sync_file(file)


def _bytes(part: Tensor) -> memoryview:
    flat = part.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().data
