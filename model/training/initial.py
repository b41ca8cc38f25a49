"""Weights that a run begins with in place of its seed's: trained before, here or elsewhere.

    runs/<run>/begins/model.json             as `windtunnel convert` writes them
    runs/<run>/begins/weights.safetensors

The spec names them by their content, so that a run is the same wherever they came from. They are
all there is of the run before: its optimizer's moments and its place in the text are lost, so the
first steps have an AdamW that has seen nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.errors import ConfigError
from model.files import whole_folder
from model.hf import check_tensors, open_checkpoint
from model.hf_layout import layout
from model.tensor_files import TensorHeader
from model.training.config import InitialWeights
from model.training.learner import Learner
from model.weights import CONFIG_NAME, WEIGHTS_NAME, open_weights, write_weights


@dataclass(frozen=True, kw_only=True)
class GivenWeights:
    """Weights in a folder, checked by name and shape, none of them read yet."""

    folder: Path
    model: ModelConfig
    headers: dict[str, TensorHeader]
    parts: Callable[[], Iterator[Tensor]]
    """The elements of the tensors in the order of ``headers``, cut anywhere."""
    is_published: bool

    def digest(self) -> str:
        """SHA-256 of names, types, shapes and elements; the same of both kinds of folder."""
        found = hashlib.sha256()
        for name, header in self.headers.items():
            found.update(f"{name} {header.dtype} {list(header.shape)}\n".encode())
        for part in self.parts():
            found.update(part.contiguous().view(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()


def given_weights(folder: Path) -> GivenWeights:
    """A published checkpoint, or a folder of weights as `windtunnel convert` makes one of it.

    Raises:
        ConfigError: it is neither, or not whole.
    """
    if (folder / "config.json").exists():
        checkpoint = open_checkpoint(folder)
        return GivenWeights(
            folder=folder,
            model=checkpoint.config,
            headers=checkpoint.headers,
            parts=checkpoint.parts,
            is_published=True,
        )
    if not (folder / CONFIG_NAME).exists():
        found = (
            f"no published checkpoint (config.json) and no folder of weights ({CONFIG_NAME})"
            if folder.is_dir()
            else "no such folder of weights"
        )
        raise ConfigError(
            f"{folder.absolute()}: {found}; `windtunnel convert source=RUN_ID target=FOLDER` makes "
            "one of a run"
        )
    model, tensors = open_weights(folder)
    names = {tensor.name: tensor.shape for tensor in layout(model)}
    check_tensors(names, tensors, str(folder / WEIGHTS_NAME))
    return GivenWeights(
        folder=folder,
        model=model,
        headers={name: TensorHeader(tensors[name].shape, tensors[name].dtype) for name in names},
        parts=lambda: (tensors[name][:] for name in names),
        is_published=False,
    )


def place_weights(given: GivenWeights, begins: Path) -> None:
    """Keep ``given`` in the folder of the run that begins with them; there already: left alone."""
    if (begins / WEIGHTS_NAME).exists():
        return
    if given.is_published:
        write_weights(begins, given.model, given.headers, given.parts())
        return
    with whole_folder(begins) as folder:
        for name in (CONFIG_NAME, WEIGHTS_NAME):
            _link(given.folder / name, folder / name)


def begin_with(learner: Learner, weights: InitialWeights, begins: Path | None) -> None:
    """Give ``learner`` the weights its run begins with; every process that has a share calls this.

    Raises:
        ConfigError: they are gone, or not those the run was planned with.
    """
    if begins is None or not (begins / WEIGHTS_NAME).exists():
        raise ConfigError(
            "the weights this run begins with are not in its folder; give the command that began "
            "it again, with the same weights=FOLDER"
        )
    if learner.is_first and given_weights(begins).digest() != weights.sha256:
        raise ConfigError(
            f"{begins / WEIGHTS_NAME}: not the weights this run was planned with (other hash); "
            "remove the folder and give the command with weights=FOLDER again"
        )
    _, tensors = open_weights(begins)
    learner.begin_with(tensors)
    learner.state.begin_at(weights.step)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)  # another file system, or one without links
