"""Checkpoints to and from the published BailingMoeV2 layout, one tensor in memory at a time.

A published checkpoint is a folder: ``config.json``, safetensors shards, an index that says which
tensor is in which shard. Both directions stream: a published tensor is read, cut out or turned, and
written, so converting needs the memory of its largest tensor whatever the size of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ConfigError
from model.files import read_json, whole_folder, write_file, write_json
from model.hf_config import from_published_config, to_published_config
from model.hf_layout import OurTensor, Piece, layout
from model.tensor_files import (
    OnBytes,
    Readable,
    TensorHeader,
    TensorOnDisk,
    open_tensors,
    write_tensors,
)
from model.transformer import Transformer, build_model

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
CODE_FILES = ("configuration_bailing_moe_v2.py", "modeling_bailing_moe_v2.py")
MAX_SHARD_BYTES = 5 * 10**9
"""Shards of the published checkpoints are about this large."""


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What an export needs besides the weights."""

    dtype: torch.dtype
    """float32 or bfloat16; the selection bias stays float32."""
    max_positions: int
    """Longest sequence the model was trained on, in tokens; with YaRN the config says it."""
    eos_token_id: int | None
    """End of a document; None where the tokenizer has none."""
    mtp_loss_weight: float = 0.1
    max_shard_bytes: int = MAX_SHARD_BYTES
    code_dir: Path | None = None
    """Folder of the publisher's two Python files, which are copied along for transformers' remote
    code; without them the folder has the weights and ``config.json`` alone."""


def export_checkpoint(
    config: ModelConfig,
    tensors: Mapping[str, Readable],
    folder: Path,
    options: ExportOptions,
    *,
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Write ``tensors`` (a state dict, in memory or on disk) as a published checkpoint.

    ``folder`` must not exist; it appears whole at the end or not at all. ``on_bytes`` is told of
    the bytes just written.

    Raises:
        ConfigError: for a missing, surplus or misshapen tensor, or a model that the published
            modelling code cannot compute.
    """
    published = to_published_config(
        config,
        torch_dtype=str(options.dtype).removeprefix("torch."),
        max_positions=options.max_positions,
        eos_token_id=options.eos_token_id,
        mtp_loss_weight=options.mtp_loss_weight,
    )
    ours = layout(config)
    check_tensors({tensor.name: tensor.shape for tensor in ours}, tensors, "the state dict")
    code = [_read_code(options.code_dir, name) for name in CODE_FILES if options.code_dir]
    shards = _plan_shards(ours, options)
    with whole_folder(folder) as unfinished:
        weight_map: dict[str, str] = {}
        for number, shard in enumerate(shards, start=1):
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            headers = {piece.published: _header(tensor, piece, options) for tensor, piece in shard}
            parts = (
                _cut(tensors[tensor.name], piece).to(headers[piece.published].dtype)
                for tensor, piece in shard
            )
            write_tensors(unfinished / name, headers, parts, on_bytes)
            weight_map |= dict.fromkeys(headers, name)
        total = sum(_header(t, piece, options).num_bytes for shard in shards for t, piece in shard)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(unfinished / INDEX_NAME, index)
        write_json(unfinished / "config.json", published)
        for name, text in zip(CODE_FILES, code, strict=False):
            write_file(unfinished / name, text)


@dataclass(frozen=True)
class PublishedCheckpoint:
    """A published checkpoint whose names and shapes have been checked, and none of it read yet."""

    config: ModelConfig
    headers: dict[str, TensorHeader]
    """Our tensors, in the order of :meth:`parts`."""
    _tensors: dict[str, TensorOnDisk]
    _layout: tuple[OurTensor, ...]

    def parts(self) -> Iterator[Tensor]:
        """The elements of our tensors in memory order, one published tensor at a time."""
        for ours in self._layout:
            for part, _ in self._pieces(ours):
                yield part

    def load(self) -> Transformer:
        """The model, each tensor in the type it has on disk."""
        state = {}
        for ours in self._layout:
            header = self.headers[ours.name]
            whole = torch.empty(header.shape, dtype=header.dtype)
            for part, piece in self._pieces(ours):
                whole[piece.index] = part
            state[ours.name] = whole
        model = build_model(self.config, seed=0, device="meta")
        model.load_state_dict(state, assign=True)
        return model

    def _pieces(self, ours: OurTensor) -> Iterator[tuple[Tensor, Piece]]:
        for piece in ours.pieces:
            part = self._tensors[piece.published][:].to(self.headers[ours.name].dtype)
            yield part.mT if piece.transposed else part, piece


def open_checkpoint(folder: Path) -> PublishedCheckpoint:
    """Check a published checkpoint's config, names, shapes and types before anything is read.

    Raises:
        ConfigError: for a missing or contradicting field of ``config.json``, a shard that is absent
            or cut short, and a missing, surplus or misshapen tensor, by name.
    """
    where = folder / "config.json"
    config = from_published_config(read_json(where), str(where))
    tensors = _open_shards(folder)
    ours = layout(config)
    expected = {piece.published: piece.shape for tensor in ours for piece in tensor.pieces}
    check_tensors(expected, tensors, str(folder))
    headers = {
        tensor.name: TensorHeader(tensor.shape, _common_dtype(tensor, tensors)) for tensor in ours
    }
    return PublishedCheckpoint(config, headers, tensors, ours)


def check_tensors(
    expected: Mapping[str, tuple[int, ...]], found: Mapping[str, Readable], where: str
) -> None:
    """ConfigError naming the first tensor that is missing, surplus or of another shape."""
    missing = [name for name in expected if name not in found]
    if missing:
        raise ConfigError(f"{where}: tensor {missing[0]} is missing{_and_more(missing)}")
    surplus = [name for name in found if name not in expected]
    if surplus:
        raise ConfigError(
            f"{where}: tensor {surplus[0]} is not part of this model{_and_more(surplus)}; "
            "is its config the right one?"
        )
    for name, shape in expected.items():
        if tuple(found[name].shape) != shape:
            raise ConfigError(
                f"{where}: tensor {name} has shape {list(found[name].shape)}, "
                f"the config makes it {list(shape)}"
            )


def _and_more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _plan_shards(
    ours: Sequence[OurTensor], options: ExportOptions
) -> list[list[tuple[OurTensor, Piece]]]:
    """Published tensors in order, a new shard wherever the next would make one too large."""
    shards: list[list[tuple[OurTensor, Piece]]] = []
    room = 0
    for tensor in ours:
        for piece in tensor.pieces:
            size = _header(tensor, piece, options).num_bytes
            if size > room:
                shards.append([])
                room = max(options.max_shard_bytes, size)
            shards[-1].append((tensor, piece))
            room -= size
    return shards


def _header(tensor: OurTensor, piece: Piece, options: ExportOptions) -> TensorHeader:
    return TensorHeader(piece.shape, torch.float32 if tensor.always_float32 else options.dtype)


def _cut(tensor: Readable, piece: Piece) -> Tensor:
    part = tensor[piece.index]
    return part.mT if piece.transposed else part


def _common_dtype(ours: OurTensor, tensors: Mapping[str, TensorOnDisk]) -> torch.dtype:
    if ours.always_float32:
        return torch.float32
    first = tensors[ours.pieces[0].published]
    for piece in ours.pieces:
        other = tensors[piece.published]
        if other.dtype != first.dtype:
            raise ConfigError(
                f"{other.path}: tensor {other.name} is {other.dtype}, {first.name} is "
                f"{first.dtype}; they make up one tensor here and must be of one type"
            )
    return first.dtype


def _open_shards(folder: Path) -> dict[str, TensorOnDisk]:
    """All tensors of the folder; each must lie in the shard that the index names."""
    if not (folder / INDEX_NAME).exists():
        return open_tensors(folder / SINGLE_NAME)
    weight_map = read_json(folder / INDEX_NAME).get("weight_map")
    where = f"{folder / INDEX_NAME}: weight_map"
    if not isinstance(weight_map, dict):
        raise ConfigError(f"{where}: missing; it says which shard holds which tensor")
    shards: dict[str, dict[str, TensorOnDisk]] = {}
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"{where}.{tensor}: {name!r} is not a file name in this folder")
        if name not in shards:
            shards[name] = open_tensors(folder / name)
        if tensor not in shards[name]:
            raise ConfigError(
                f"{folder / name}: tensor {tensor} is missing; the index says it is here"
            )
    for name, tensors in shards.items():
        for tensor in tensors:
            if weight_map.get(tensor) != name:
                raise ConfigError(f"{folder / name}: tensor {tensor} is not in the index")
    return {tensor: shards[name][tensor] for tensor, name in weight_map.items()}


def _read_code(code_dir: Path, name: str) -> bytes:
    path = code_dir / name
    if not path.is_file():
        raise ConfigError(f"{path}: no such file; code_dir is where {', '.join(CODE_FILES)} lie")
    return path.read_bytes()
