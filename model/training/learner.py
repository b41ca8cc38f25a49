"""What trains: a whole model in one process, or one process's part of a model that many share.

The loop (:mod:`model.training.trainer`) asks for these things and no others, so that a run is the
same whatever it is spread over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from model.config import ModelConfig
from model.tensor_files import Readable
from model.training.checkpoint import Checkpoint
from model.training.config import BalanceConfig
from model.training.evaluate import Forward
from model.training.fp8 import Fp8Layers
from model.training.stages import Stage
from model.training.state import RunState


@dataclass(frozen=True)
class Gradients:
    """What one batch gave besides the gradients on the weights; the same in every process."""

    loss_nats: float
    mtp_nats: float
    """Of the multi-token-prediction block; 0 without one."""
    loads: Sequence[Tensor]
    """Choices of each mixture layer's experts [E]."""
    norm: float | None = None
    """Of all gradients together, where it came with them."""


def hand_out(weights: Iterable[Tensor], grads: Iterable[Tensor | None]) -> None:
    """Leave each of ``grads`` on its weight."""
    for weight, grad in zip(weights, grads, strict=True):
        if weight.grad is not grad:  # which is seen faster than set
            weight.grad = grad


class Learner(Protocol):
    """Weights, optimizer and state of one run."""

    config: ModelConfig
    state: RunState
    is_first: bool
    """Whether this process is the one that writes and is asked to stop."""
    forward: Forward
    """For evaluations, as the weights stand."""

    def enter(self, stage: Stage) -> None:
        """Use the rotary embedding of ``stage``."""

    def forward_backward(self, windows: Tensor) -> Gradients:
        """Leave the gradients of a batch [windows, T + 1] on the weights."""

    def clip(self, clip_norm: float) -> float:
        """Scale all gradients so that their joint norm is at most ``clip_norm``; it before that."""

    def update(self, lr: float) -> None:
        """Move the weights along their gradients."""

    def balance(self, loads: Sequence[Tensor], rule: BalanceConfig) -> None:
        """Move the routers' biases by the loads of the step."""

    def in_fp8(self, fallen: Iterable[str]) -> Fp8Layers | None:
        """Have layers compute in FP8, except those that have ``fallen`` back; None if not asked."""

    def agree(self, value: int) -> int:
        """The first process's ``value``, in every one: for what depends on a clock or a request."""

    def weights(self) -> dict[str, Tensor]:
        """The weights with the selection biases alone: all that an average of checkpoints needs."""

    def tensors(self) -> dict[str, Tensor]:
        """The weights, the optimizer, sums of loads, random state."""

    def restore(self, tensors: Mapping[str, Tensor]) -> bool:
        """Put weights, optimizer and random state back (the rest is the state's).

        Returns:
            Whether there were weights alone: training can't go on from them.
        """

    def begin_with(self, weights: Mapping[str, Readable]) -> None:
        """Take weights under the model's own names, one at a time; the optimizer stays as new."""

    def find(self, folder: Path, is_usable: Callable[[Checkpoint], str]) -> Checkpoint | None:
        """The newest whole checkpoint that ``is_usable`` has nothing to say against."""

    def read(self, path: Path) -> Checkpoint:
        """One checkpoint, of its tensors as much as this process has of the model.

        Raises:
            BrokenCheckpoint: when a file is missing, cut short or changed.
        """

    def write(self, folder: Path, checkpoint: Checkpoint, *, keep: int | None) -> None:
        """Write a checkpoint and remove all but the newest ``keep``; None: keep all, for good."""

    def remove(self, folders: Iterable[Path]) -> None:
        """Delete checkpoints."""

    def numerics(self) -> dict[str, Any]:
        """What decides the bits besides the spec."""


def model_weights(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a checkpoint's tensors, under the model's own names."""
    return below("model.", tensors)


def below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix``, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
