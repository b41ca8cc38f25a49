"""A model's weights on disk: a folder of our own, and those inside a run's checkpoint.

FOLDER/model.json            the ModelConfig
FOLDER/weights.safetensors   the state dict
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from model.config import ModelConfig
from model.errors import ConfigError
from model.files import read_json, whole_folder, write_json
from model.tensor_files import (
    OnBytes,
    Readable,
    TensorHeader,
    TensorOnDisk,
    open_tensors,
    write_tensors,
)
from model.training.checkpoint import SHARDED_FORMAT, BrokenCheckpoint, read_body
from model.typed import build, to_plain

CONFIG_NAME = "model.json"
WEIGHTS_NAME = "weights.safetensors"


def write_weights(
    folder: Path,
    config: ModelConfig,
    headers: Mapping[str, TensorHeader],
    parts: Iterable[Tensor],
    *,
    on_bytes: OnBytes = lambda _: None,
) -> None:
    """Write a state dict while its ``parts`` are being made; the folder appears whole or not."""
    with whole_folder(folder) as unfinished:
        write_json(unfinished / CONFIG_NAME, to_plain(config))
        write_tensors(unfinished / WEIGHTS_NAME, headers, parts, on_bytes)


def open_weights(folder: Path) -> tuple[ModelConfig, dict[str, TensorOnDisk]]:
    """The config and the tensors, none of them read yet."""
    where = folder / CONFIG_NAME
    config = build(ModelConfig, read_json(where), where=str(where))
    return config, open_tensors(folder / WEIGHTS_NAME)


def open_checkpoint_weights(checkpoint: Path) -> Mapping[str, Readable]:
    """The weights inside a run's checkpoint (:mod:`model.training.checkpoint`), none read yet.

    Files are held against their hashes first, in pieces: unlike a resuming run this keeps none of
    the optimizer's tensors, which are twice as large.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        body = read_body(checkpoint)
        if body["format"] == SHARDED_FORMAT:
            from model.training.distributed.stored import open_stored  # here: it takes a second

            return open_stored(checkpoint, body, prefix="model.")
    except (BrokenCheckpoint, FileNotFoundError) as error:
        raise ConfigError(f"{checkpoint}: {error}; choose another checkpoint") from None
    path = checkpoint / "tensors.safetensors"
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != body["tensors_sha256"]:
        raise ConfigError(
            f"{path}: does not match its hash in state.json; choose another checkpoint"
        )
    return open_tensors(path, prefix="model.")
