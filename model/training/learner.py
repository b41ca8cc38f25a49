"""What the steps of a run change: weights, optimizer and state, as tensors of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.training.optim import load_optimizer_tensors, optimizer_tensors
from model.training.state import RunState
from model.transformer import Transformer


@dataclass(frozen=True)
class Learner:
    """One model in training."""

    model: Transformer
    optimizer: torch.optim.Optimizer
    state: RunState

    def weights(self) -> dict[str, Tensor]:
        """The weights with the selection biases alone: all that an average of checkpoints needs."""
        return _on_cpu({f"model.{name}": value for name, value in self.model.state_dict().items()})

    def tensors(self) -> dict[str, Tensor]:
        """The weights, the optimizer, sums of loads, random state: all on the CPU."""
        optimizer = optimizer_tensors(self.model, self.optimizer)
        tensors = {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors |= self.state.use.to_tensors()
        tensors["run.rng"] = torch.get_rng_state()
        return self.weights() | _on_cpu(tensors)

    def restore(self, tensors: dict[str, Tensor]) -> bool:
        """Put weights, optimizer and random state back (the rest is the state's).

        Returns:
            Whether there were weights alone: training can't go on from them.
        """
        self.model.load_state_dict(model_weights(tensors))
        if "run.rng" not in tensors:
            return True
        load_optimizer_tensors(self.model, self.optimizer, _below("optimizer.", tensors))
        torch.set_rng_state(tensors["run.rng"])
        return False


def model_weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The model's part of a checkpoint's tensors, under the model's own names."""
    return _below("model.", tensors)


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
