"""A whole model in one process: what trains every run that is not spread over several."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.balance import update_biases
from model.config import ModelConfig, require
from model.layers import Rotary
from model.own.parts import refuse_own
from model.tensor_files import Readable
from model.training.adamw import AdamW
from model.training.batch import forward_backward, weighs_routing
from model.training.captured import Captured
from model.training.checkpoint import (
    Checkpoint,
    keep_checkpoint,
    load_newest,
    read_checkpoint,
    save_checkpoint,
)
from model.training.config import BalanceConfig, TrainConfig
from model.training.evaluate import Forward, plain_forward
from model.training.fp8 import Fp8Layers
from model.training.graphed import Graphed
from model.training.learner import Gradients, below, model_weights
from model.training.optim import (
    build_optimizer,
    clip_gradients,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)
from model.training.precision import rounds_by_itself, weights_dtype
from model.training.products import products_told
from model.training.runtime import describe_numerics
from model.training.stages import Stage
from model.training.state import RunState
from model.transformer import build_model


class WholeModel:
    """A :class:`~model.training.learner.Learner`."""

    is_first = True

    def __init__(
        self,
        config: ModelConfig,
        train: TrainConfig,
        state: RunState,
        device: torch.device,
        micro_batches: int = 1,
    ) -> None:
        """``micro_batches``: parts a batch is gone through in, where memory does not hold it whole;
        the gradients are the same but for the order of their sums.
        """
        require(
            micro_batches == 1 or train.balance.aux_loss_weight == 0,
            f"micro_batches is {micro_batches}, but balance.aux_loss_weight is over a whole batch",
        )
        if train.precision == "fp8":
            refuse_own(config.own, "precision fp8")
        self.config, self.state = config, state
        self._micro_batches = micro_batches
        self._train, self._device = train, device
        dtype = weights_dtype(train.precision)
        self.model = build_model(config, seed=train.seed, device=device, dtype=dtype)
        self.optimizer = build_optimizer(self.model, train.optimizer)
        self._captured: Captured | Graphed | None = None
        is_compiled = train.precision == "fp32" or rounds_by_itself(train.precision, device)
        is_plain = is_compiled and not weighs_routing(train.balance)
        if is_plain and micro_batches == 1 and device.type == "cpu":
            self._captured = Captured(self.model, train.precision)
        elif micro_batches == 1 and Graphed.serves(self.model, train, device):
            self._captured = Graphed(self.model, train)
        self._norm: float | None = None
        # Kept: to look for them takes longer than to clip them.
        self._parameters = list(self.model.parameters())
        self.forward: Forward = plain_forward(self.model, train.precision, device)

    def enter(self, stage: Stage) -> None:
        """Use the rotary embedding of ``stage``, if the model has another one."""
        if self.model.rotary.config != stage.attention:
            self.model.rotary = Rotary(stage.attention)

    def forward_backward(self, windows: Tensor) -> Gradients:
        """Leave the gradients of a batch [windows, T + 1] on the weights."""
        self._norm = None
        if self._captured is not None:
            found = self._captured.forward_backward(windows)  # in the place of earlier gradients
            if found is not None:
                self._norm = found.norm
                return found
        self.optimizer.zero_grad()
        loss_nats = mtp_nats = 0.0
        loads: list[Tensor] = []
        for part in windows.to(self._device).tensor_split(self._micro_batches):
            share = len(part) / len(windows)
            found = forward_backward(self.model, part, self._train, share)
            loss_nats += share * found.loss_nats
            mtp_nats += share * found.mtp_nats
            rows = zip(loads, found.loads, strict=True)
            loads = [before + more for before, more in rows] if loads else [*found.loads]
        return Gradients(loss_nats, mtp_nats, loads)

    def clip(self, clip_norm: float) -> float:
        """Scale all gradients so that their joint norm is at most ``clip_norm``; it before that.

        Where the optimizer can, it does so on their way into the update.
        """
        norm = self.optimizer.clip(clip_norm) if isinstance(self.optimizer, AdamW) else None
        if norm is not None:
            return norm
        return clip_gradients(self._parameters, clip_norm, self._norm)

    def update(self, lr: float) -> None:
        """Move the weights along their gradients."""
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()

    def balance(self, loads: Sequence[Tensor], rule: BalanceConfig) -> None:
        """Move the routers' biases by the loads of the step."""
        update_biases(self.model, loads, rule)

    def in_fp8(self, fallen: Iterable[str]) -> Fp8Layers | None:
        """Have layers compute in FP8, except those that have ``fallen`` back; None if not asked."""
        return Fp8Layers(self.model, fallen) if self._train.precision == "fp8" else None

    def agree(self, value: int) -> int:
        """There is nobody else."""
        return value

    def weights(self) -> dict[str, Tensor]:
        """The weights with the selection biases alone, on the CPU."""
        return _on_cpu({f"model.{name}": value for name, value in self.model.state_dict().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The weights, the optimizer, sums of loads, random state: all on the CPU."""
        optimizer = optimizer_tensors(self.model, self.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= self.state.use.to_tensors()
        tensors["run.rng"] = torch.get_rng_state()
        return self.weights() | _on_cpu(tensors)

    def restore(self, tensors: Mapping[str, Tensor]) -> bool:
        """Put weights, optimizer and random state back; whether there were weights alone."""
        self.model.load_state_dict(model_weights(tensors))
        if "run.rng" not in tensors:
            return True
        load_optimizer_tensors(self.model, self.optimizer, below("optimizer.", tensors))
        torch.set_rng_state(tensors["run.rng"])
        return False

    @torch.no_grad()
    def begin_with(self, weights: Mapping[str, Readable]) -> None:
        """Take weights under the model's own names, one at a time; the optimizer stays as new."""
        for name, own in self.model.state_dict().items():
            own.copy_(weights[name][:])

    def find(self, folder: Path, is_usable: Callable[[Checkpoint], str]) -> Checkpoint | None:
        """The newest whole checkpoint that ``is_usable`` has nothing to say against."""
        return load_newest(folder, is_usable)

    def read(self, path: Path) -> Checkpoint:
        """One checkpoint."""
        return read_checkpoint(path)

    def write(self, folder: Path, checkpoint: Checkpoint, *, keep: int | None) -> None:
        """Write a checkpoint and remove all but the newest ``keep``; None: keep all, for good."""
        if keep is None:
            keep_checkpoint(folder, checkpoint)
        else:
            save_checkpoint(folder, checkpoint, keep=keep)

    def remove(self, folders: Iterable[Path]) -> None:
        """Delete checkpoints."""
        for folder in folders:
            shutil.rmtree(folder)

    def numerics(self) -> dict[str, Any]:
        """What decides the bits besides the spec."""
        numerics = describe_numerics(self._device)
        numerics |= products_told(self.config, self._train.precision, self._device)
        if self._micro_batches > 1:
            numerics["micro_batches"] = self._micro_batches
        return numerics


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
