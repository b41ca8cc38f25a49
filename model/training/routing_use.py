"""How evenly the experts were used since the last line of metrics, counted at every step.

What is summed are integers, so that sums come out the same wherever a run was interrupted, and a
step costs four small operations, whatever the number of layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

# Shapes: L mixture layers, E experts; in choices, T held-out tokens and K experts per token.


class Evenness(NamedTuple):
    """How even the load of a layer is: two fields of :class:`model.balance.LoadMetrics`."""

    normalized_entropy: float
    dead_frac: float


def evenness(load_E: Sequence[int]) -> Evenness:
    """Of a load that is not all zero, as ``model.balance.load_metrics`` has it.

    In plain Python: a line of metrics asks for a few dozen numbers between two steps, and the
    framework's operations, cold there, made the lines 3 to 4 % of a short run.
    """
    total, num_experts = sum(load_E), len(load_E)
    entropy = math.log(total) - math.fsum(c * math.log(c) for c in load_E if c) / total
    return Evenness(math.exp(entropy) / num_experts, load_E.count(0) / num_experts)


class RoutingUse:
    """Sums over the steps since the last line, and the choices of the last evaluation."""

    def __init__(self, num_layers: int, num_experts: int, device: torch.device) -> None:
        """``num_layers``: mixture layers, a multi-token-prediction block included."""
        self.load_LE = torch.zeros(num_layers, num_experts, dtype=torch.int64, device=device)
        """Choices of each expert."""
        self.extremes_2L = torch.zeros(2, num_layers, dtype=torch.int64, device=device)
        """Choices of each batch's least and most chosen expert, summed over the batches."""
        self.choices_LTK: Tensor | None = None
        """Experts of held-out tokens at the last evaluation, for the router's saturation."""

    def count(self, loads: Sequence[Tensor]) -> None:
        """One step: the load [E] of each mixture layer; none for a dense model."""
        if loads:
            load_LE = torch.stack(list(loads))
            self.load_LE += load_LE
            self.extremes_2L += torch.stack(load_LE.aminmax(dim=-1))

    def metrics(self) -> dict[str, list[float]]:
        """By layer: ``max_vio`` and ``min_vio`` of single batches, their mean over the steps since
        the last line; ``normalized_entropy`` and ``dead_frac`` of all those steps together.
        """
        loads, (smallest, largest) = self.load_LE.tolist(), self.extremes_2L.tolist()
        # Of a batch's mean load, as many times as there were batches.
        means = [sum(load_E) / len(load_E) for load_E in loads]
        together = [evenness(load_E) for load_E in loads]
        return {
            "max_vio": [most / mean - 1 for most, mean in zip(largest, means, strict=True)],
            "min_vio": [1 - least / mean for least, mean in zip(smallest, means, strict=True)],
            "normalized_entropy": [found.normalized_entropy for found in together],
            "dead_frac": [found.dead_frac for found in together],
        }

    def begin_line(self) -> None:
        """A line was written; begin the sums anew."""
        self.load_LE.zero_()
        self.extremes_2L.zero_()

    def to_tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        tensors = {"run.load": self.load_LE, "run.load_extremes": self.extremes_2L}
        return tensors if self.choices_LTK is None else {**tensors, "run.choices": self.choices_LTK}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of :meth:`to_tensors`, among a checkpoint's tensors."""
        self.load_LE.copy_(tensors["run.load"])
        self.extremes_2L.copy_(tensors["run.load_extremes"])
        self.choices_LTK = tensors.get("run.choices")
