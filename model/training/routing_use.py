"""How evenly the experts were used since the last line of metrics, counted at every step.

What is summed are integers, so that sums come out the same wherever a run was interrupted, and a
step costs four small operations, whatever the number of layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.balance import load_metrics

# Shapes: L mixture layers, E experts; in choices, T held-out tokens and K experts per token.


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

    def metrics(self, num_steps: int) -> dict[str, list[float]]:
        """By layer: ``max_vio`` and ``min_vio`` of single batches, their mean over ``num_steps``
        steps; ``normalized_entropy`` and ``dead_frac`` of the load of all those steps together.
        """
        load_LE = self.load_LE.double()
        mean_L = load_LE.mean(-1) / num_steps
        smallest_L, largest_L = self.extremes_2L / num_steps / mean_L
        together = load_metrics(load_LE)
        return {
            "max_vio": (largest_L - 1).tolist(),
            "min_vio": (1 - smallest_L).tolist(),
            "normalized_entropy": together.normalized_entropy.tolist(),
            "dead_frac": together.dead_frac.tolist(),
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
