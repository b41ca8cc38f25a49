"""One process's share of a model in training, under the names and rules of the whole."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from model.config import ModelConfig
from model.tensor_files import Readable
from model.training.checkpoint import Checkpoint
from model.training.config import BalanceConfig, TrainConfig
from model.training.distributed import checkpoint
from model.training.distributed.config import ParallelConfig
from model.training.distributed.engine import Engine
from model.training.distributed.stage import NEXT_EMBEDDING
from model.training.evaluate import Forward
from model.training.fp8 import Fp8Layers
from model.training.learner import Gradients
from model.training.optim import set_learning_rate, state_names
from model.training.runtime import describe_numerics
from model.training.stages import Stage
from model.training.state import RunState
from model.typed import to_plain


class ShareOfModel:
    """A :class:`~model.training.learner.Learner`; every method is called by all ranks together."""

    def __init__(
        self,
        config: ModelConfig,
        train: TrainConfig,
        parallel: ParallelConfig,
        state: RunState,
        device: torch.device,
    ) -> None:
        self.config, self.state = config, state
        self.engine = Engine(config, train, parallel, device)
        self.is_first = dist.get_rank() == 0
        self.forward: Forward = self.engine.evaluate
        self._rotary = config.attention

    def enter(self, stage: Stage) -> None:
        """Use the rotary embedding of ``stage``, if the model has another one."""
        if self._rotary != stage.attention:
            self._rotary = stage.attention
            self.engine.set_rotary(stage.attention)

    def forward_backward(self, windows: Tensor) -> Gradients:
        """Leave the gradients of the global batch [windows, T + 1] on the weights."""
        self.engine.optimizer.zero_grad()
        return self.engine.forward_backward(windows)

    def clip(self, clip_norm: float) -> float:
        """Scale all gradients so that their joint norm is at most ``clip_norm``; it before that."""
        return self.engine.clip(clip_norm)

    def update(self, lr: float) -> None:
        """Move the weights along their gradients."""
        set_learning_rate(self.engine.optimizer, lr)
        self.engine.optimizer.step()

    def balance(self, loads: Sequence[Tensor], rule: BalanceConfig) -> None:
        """Move the biases of this rank's routers by the loads of the step."""
        self.engine.update_biases(loads, rule)

    def in_fp8(self, fallen: Iterable[str]) -> Fp8Layers | None:
        """None: the sizes are refused where FP8 is asked for."""
        return None

    def agree(self, value: int) -> int:
        """Rank 0's ``value``, on every rank."""
        return self.engine.agree(value)

    def weights(self) -> dict[str, Tensor]:
        """This rank's pieces of the weights, and the selection biases."""
        return dict(self._named_weights())

    def tensors(self) -> dict[str, Tensor]:
        """Pieces of weights and optimizer; the same sums of loads and random state everywhere."""
        tensors = self.weights() | self.state.use.to_tensors()
        tensors["run.rng"] = torch.get_rng_state()
        for stage in self.engine.stages.values():
            for name, parameter in stage.named_parameters():
                state = self.engine.optimizer.state[parameter]
                for key in state_names(self.engine.optimizer, parameter):
                    if key not in state:
                        like = torch.zeros((), device=self.engine.device)
                        state[key] = like if key == "step" else torch.zeros_like(parameter.detach())
                    tensors[f"optimizer.{key}.{_whole_name(name)}"] = state[key]
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> bool:
        """Put pieces, or whole tensors, back into weights and optimizer; whether only weights."""
        is_merged = "run.rng" not in tensors
        for name, piece in (self.weights() if is_merged else self.tensors()).items():
            if not name.startswith("run."):
                _fill(piece, tensors[name])
        if not is_merged:
            torch.set_rng_state(tensors["run.rng"])
        return is_merged

    @torch.no_grad()
    def begin_with(self, weights: Mapping[str, Readable]) -> None:
        """Take this rank's pieces of the whole model's weights, one tensor at a time."""
        for name, piece in self.weights().items():
            _fill(piece, weights[name.removeprefix("model.")][:])

    def find(self, folder: Path, is_usable: Callable[[Checkpoint], str]) -> Checkpoint | None:
        """The newest whole checkpoint, as rank 0 finds it, its pieces already in place."""
        return checkpoint.load_newest(self.tensors(), folder, is_usable)

    def read(self, path: Path) -> Checkpoint:
        """One checkpoint, this rank's pieces of it; those in training stay as they are."""
        return checkpoint.read_pieces(self.tensors(), path)

    def write(self, folder: Path, contents: Checkpoint, *, keep: int | None) -> None:
        """Write a checkpoint and remove all but the newest ``keep``; None: keep all, for good."""
        checkpoint.save(folder, contents, keep=keep)

    def remove(self, folders: Iterable[Path]) -> None:
        """Delete checkpoints."""
        if self.is_first:
            for folder in folders:
                shutil.rmtree(folder)
        dist.barrier()

    def numerics(self) -> dict[str, Any]:
        """What decides the bits besides the spec: the order of sums hangs on the sizes."""
        found = describe_numerics(self.engine.device)
        return {**found, "parallel": to_plain(self.engine.parallel)}

    def _named_weights(self) -> Iterable[tuple[str, Tensor]]:
        for stage in self.engine.stages.values():
            for name, buffer in stage.named_buffers():
                yield f"model.{name}", buffer
            for name, parameter in stage.named_parameters():
                yield f"model.{_whole_name(name)}", parameter.detach()


def _whole_name(name: str) -> str:
    """The embedding's copy is the embedding: equal pieces under one name are stored once."""
    return name.replace(NEXT_EMBEDDING, "embedding")


def _fill(piece: Tensor, source: Tensor) -> None:
    if not isinstance(piece, DTensor):
        piece.copy_(source)
    elif isinstance(source, DTensor):
        piece.to_local().copy_(source.to_local())
    else:
        mine = distribute_tensor(
            source.to(piece.device), piece.device_mesh, piece.placements, src_data_rank=None
        )
        piece.to_local().copy_(mine.to_local())
