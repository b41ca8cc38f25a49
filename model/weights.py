"""A model's weights as a folder of our own: ``model.json`` and ``weights.safetensors``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from model.config import ModelConfig
from model.files import read_json, whole_folder, write_json
from model.tensor_files import TensorHeader, TensorOnDisk, open_tensors, write_tensors
from model.typed import build, to_plain

CONFIG_NAME = "model.json"
WEIGHTS_NAME = "weights.safetensors"


def write_weights(
    folder: Path,
    config: ModelConfig,
    headers: Mapping[str, TensorHeader],
    parts: Iterable[Tensor],
) -> None:
    """Write a state dict while its ``parts`` are being made; the folder appears whole or not."""
    with whole_folder(folder) as unfinished:
        write_json(unfinished / CONFIG_NAME, to_plain(config))
        write_tensors(unfinished / WEIGHTS_NAME, headers, parts, {"format": "pt"})


def open_weights(folder: Path) -> tuple[ModelConfig, dict[str, TensorOnDisk]]:
    """The config and the tensors, none of them read yet."""
    where = folder / CONFIG_NAME
    config = build(ModelConfig, read_json(where), where=str(where))
    return config, open_tensors(folder / WEIGHTS_NAME)
