"""What a held-out measurement found, and how it is written down; how it is made: evaluate.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.typed import to_plain

if TYPE_CHECKING:  # records are read where there is no torch
    from torch import Tensor

# Shapes: L mixture layers (a multi-token-prediction block last), E experts, T tokens of the windows
# that are looked at closely, K experts per token.

LAYER_SCALARS = (
    "max_vio",
    "min_vio",
    "normalized_entropy",
    "dead_frac",
    "batch_max_vio",
    "batch_min_vio",
    "gate_entropy",
    "top_k_mass",
    "specialisation",
    "coactivation",
    "saturation",
)
"""Fields of :class:`LayerLoad` in a line of metrics."""


@dataclass(frozen=True, kw_only=True)
class DomainLoss:
    """Held-out loss of one domain."""

    loss_nats: float
    """Mean cross-entropy per token, nats."""
    bits_per_byte: float
    tokens: int
    bytes: int
    """Bytes of text those tokens stand for."""


@dataclass(frozen=True, kw_only=True)
class LayerLoad:
    """Use of one layer's routed experts: loads over all held-out tokens, the rest over an eighth.

    ``gate_entropy``, ``top_k_mass``, ``coactivation`` and ``saturation`` are of every eighth
    window, the same tokens at every evaluation.
    """

    layer: int
    """Block number from 0; a multi-token-prediction block comes after the last."""
    max_vio: float
    min_vio: float
    normalized_entropy: float
    dead_frac: float
    load: tuple[float, ...]
    """Share of the choices each expert received; sums to 1."""
    batch_max_vio: float
    """MaxVio of single forward passes of up to 4096 tokens of one domain, their mean."""
    batch_min_vio: float
    gate_entropy: float
    """Mean over tokens of exp(entropy of the K gates)/K: 1 if they are equal, 1/K if one is all."""
    top_k_mass: float
    """Mean share of all scores that the chosen K have: K/E for a flat router, 1 for a sharp one."""
    specialisation: float
    """What the choice of expert tells about a token's domain: 0 nothing (or one domain only), 1
    all."""
    coactivation: float
    """Share of an expert's tokens that its most frequent partner gets too, mean over experts."""
    saturation: float | None
    """Share of a token's experts that it had at this run's evaluation before; None at the first."""


@dataclass(frozen=True, kw_only=True)
class PairedExperts:
    """Co-activation between the experts of one layer that have the strongest partners."""

    experts: tuple[int, ...]
    """Their numbers, ascending."""
    share: tuple[tuple[float, ...], ...]
    """Row i, column j: the share of the tokens of ``experts[i]`` that ``experts[j]`` got too."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation measured. The use of the experts is empty if the loss is no number."""

    loss_nats: float
    """Mean over the domains by the mixture's weights, nats per token."""
    bits_per_byte: float
    by_domain: Mapping[str, DomainLoss]
    by_position: tuple[tuple[int, float], ...]
    """(first position, nats per token) of doubling ranges of positions in the sequence, mean over
    the domains by the mixture's weights: what a longer context is worth."""
    load_by_layer: tuple[LayerLoad, ...]
    load_by_domain: Mapping[str, tuple[tuple[float, ...], ...]]
    """Share of the choices of a domain's tokens, by layer and expert [L, E]; each row sums to 1."""
    pairs: tuple[PairedExperts, ...]
    """By layer."""
    choices_LTK: Tensor | None
    """Experts chosen for the tokens of every eighth window, int16 on the CPU."""

    def line(self) -> dict[str, Any]:
        """The line of metrics: losses, and the use of experts as a list over layers each."""
        line: dict[str, Any] = {
            "kind": "eval",
            "loss_nats": self.loss_nats,
            "bits_per_byte": self.bits_per_byte,
            "by_domain": {name: to_plain(loss) for name, loss in self.by_domain.items()},
        }
        if self.load_by_layer:
            columns = {
                name: [getattr(load, name) for load in self.load_by_layer] for name in LAYER_SCALARS
            }
            line |= {"layers": [load.layer for load in self.load_by_layer], **columns}
        return line

    def final_line(self) -> dict[str, Any]:
        """:meth:`line` of the last evaluation: with each domain's load and the pairs of experts."""
        line = self.line() | {"final": True}
        if self.load_by_layer:
            line["load_by_domain"] = to_plain(self.load_by_domain)
            line["pairs"] = to_plain(self.pairs)
        return line
