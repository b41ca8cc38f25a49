"""How the experts are used over held-out text: the measures that cost too much for every step.

The functions measure; :class:`UtilisationMeter` sums what they need over the batches of an
evaluation, whose forward passes ask for ``RoutingRequest(detail=True)``. Co-activation, domain
specialisation and router saturation follow OLMoE (arXiv:2409.02060, section 5).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.balance import RoutingStats, load_metrics
from model.config import MoEConfig
from model.router import Routing

# Shapes: T tokens, E experts, K experts per token, N domains, P batches.


@dataclass(frozen=True)
class LayerUtilisation:
    """One mixture layer over a whole evaluation.

    Loads are of all tokens; the other measures of those whose routing was handed over in detail.
    """

    load_by_domain: Mapping[str, Tensor]
    """Choices that fell on each expert [E], int64."""
    batch_max_vio: float
    """MaxVio of a single batch (:class:`~model.balance.LoadMetrics`), mean over batches."""
    batch_min_vio: float
    """Its minimum twin."""
    gate_entropy: float
    """:func:`gate_entropy`, mean over tokens."""
    top_k_mass: float
    """:func:`top_k_mass`, mean over tokens."""
    coactivation: Tensor
    """:func:`coactivation` [E, E]."""
    specialisation: float
    """:func:`domain_specialisation`; 0 with a single domain."""

    @property
    def load_E(self) -> Tensor:
        """Choices over all domains [E], int64."""
        return torch.stack([*self.load_by_domain.values()]).sum(0)


@dataclass(frozen=True)
class LayerCounts:
    """What one mixture layer did in one forward pass, as far as an evaluation sums it."""

    load_E: Tensor
    """Choices of all tokens, int64."""
    expert_TK: Tensor
    """Choices of the tokens that are looked at one by one."""
    gate_entropy: float
    """:func:`gate_entropy` of these tokens, their sum."""
    top_k_mass: float
    """:func:`top_k_mass` likewise."""


def layer_counts(stats: RoutingStats) -> LayerCounts:
    """Sum one layer's routing, which must have been asked for in detail."""
    if stats.detail is None:
        raise ValueError("utilisation needs RoutingRequest(detail=True)")
    return LayerCounts(
        load_E=stats.load_E.cpu(),
        expert_TK=stats.detail.expert_TK,
        gate_entropy=gate_entropy(stats.detail.gate_TK).double().sum().item(),
        top_k_mass=top_k_mass(stats.detail).double().sum().item(),
    )


class UtilisationMeter:
    """Sums over batches, layer by layer and domain by domain."""

    def __init__(self, config: MoEConfig, num_layers: int) -> None:
        """``num_layers``: mixture layers, a multi-token-prediction block included."""
        self._layers = [_LayerSums(config.num_experts) for _ in range(num_layers)]

    def add(self, counts: Sequence[LayerCounts], domain: str) -> None:
        """Count one forward pass over tokens of ``domain``."""
        for sums, of_layer in zip(self._layers, counts, strict=True):
            sums.add(of_layer, domain)

    def measure(self) -> tuple[LayerUtilisation, ...]:
        """What has been counted so far; at least one batch."""
        return tuple(sums.measure() for sums in self._layers)


class _LayerSums:
    def __init__(self, num_experts: int) -> None:
        self.load_by_domain: dict[str, Tensor] = {}
        self.batch_loads: list[Tensor] = []
        self.together_EE = torch.zeros(num_experts, num_experts, dtype=torch.int64)
        self.gate_entropy = self.top_k_mass = 0.0
        self.num_tokens = 0

    def add(self, counts: LayerCounts, domain: str) -> None:
        load_E = counts.load_E
        seen = self.load_by_domain.get(domain)
        self.load_by_domain[domain] = load_E if seen is None else seen + load_E
        self.batch_loads.append(load_E)
        self.together_EE += chosen_together(counts.expert_TK, load_E.numel()).cpu()
        self.gate_entropy += counts.gate_entropy
        self.top_k_mass += counts.top_k_mass
        self.num_tokens += counts.expert_TK.shape[0]

    def measure(self) -> LayerUtilisation:
        batches = load_metrics(torch.stack(self.batch_loads).double())
        return LayerUtilisation(
            load_by_domain=dict(self.load_by_domain),
            batch_max_vio=batches.max_vio.mean().item(),
            batch_min_vio=batches.min_vio.mean().item(),
            gate_entropy=self.gate_entropy / self.num_tokens,
            top_k_mass=self.top_k_mass / self.num_tokens,
            coactivation=coactivation(self.together_EE),
            specialisation=domain_specialisation(torch.stack([*self.load_by_domain.values()])),
        )


def gate_entropy(gate_TK: Tensor) -> Tensor:
    """How evenly each token weighs its K experts [T]: exp(entropy of its gates)/K.

    1 means equal weights, 1/K that one expert has all of it.
    """
    share = gate_TK / gate_TK.sum(-1, keepdim=True)
    return torch.special.entr(share).sum(-1).exp() / gate_TK.shape[1]


def top_k_mass(routing: Routing) -> Tensor:
    """Share of all E scores that the chosen K have [T]: K/E when flat, 1 for a sharp router."""
    chosen = routing.scores_TE.gather(1, routing.expert_TK).sum(-1)
    return chosen / routing.scores_TE.sum(-1)


def chosen_together(expert_TK: Tensor, num_experts: int) -> Tensor:
    """[E, E] int64: tokens that were sent to both experts; on the diagonal, to that expert."""
    pair_TKK = expert_TK[:, :, None] * num_experts + expert_TK[:, None, :]
    count = torch.bincount(pair_TKK.flatten(), minlength=num_experts**2)
    return count.view(num_experts, num_experts)


def coactivation(together_EE: Tensor) -> Tensor:
    """Row i: the share of expert i's tokens that also went to expert j; 0 for an unused expert."""
    return together_EE / together_EE.diagonal().clamp(min=1)[:, None]


def strongest_partner(coactivation_EE: Tensor) -> float:
    """How much experts go in pairs, from 0 to 1.

    The share of an expert's tokens that its most frequent partner gets too, mean over the experts
    in use. About (K - 1)/(E - 1) where partners are drawn by chance, more with few groups kept; 1
    where every expert has one it never goes without; 0 if a token visits a single expert.
    """
    used_E = coactivation_EE.diagonal() > 0
    others_EE = coactivation_EE.clone().fill_diagonal_(0)
    return others_EE.amax(-1)[used_E].mean().item()


def most_paired(coactivation_EE: Tensor, count: int) -> Tensor:
    """The ``count`` experts with the strongest partners, in the order of their numbers."""
    strength_E = coactivation_EE.clone().fill_diagonal_(0).amax(-1)
    return strength_E.topk(min(count, len(strength_E))).indices.sort().values


def domain_specialisation(load_NE: Tensor) -> float:
    """How much a choice of expert tells about the domain of its token, between 0 and 1.

    Mutual information of expert and domain over the entropy of the domain, all domains weighted
    alike whatever their tokens: 0, every domain uses the experts alike; 1, each expert serves one
    domain. With a single domain there is nothing to tell: 0.
    """
    num_domains = load_NE.shape[0]
    if num_domains == 1:
        return 0.0
    joint_NE = load_NE.double() / load_NE.sum(-1, keepdim=True) / num_domains
    expert_E = joint_NE.sum(0)
    expert_entropy = torch.special.entr(expert_E).sum()
    joint_entropy = torch.special.entr(joint_NE).sum()
    domain_entropy = torch.tensor(num_domains, dtype=torch.float64).log()
    return ((expert_entropy + domain_entropy - joint_entropy) / domain_entropy).item()


def router_saturation(earlier_TK: Tensor, later_TK: Tensor) -> float:
    """Share of a token's experts that it had already at an earlier checkpoint, mean over tokens.

    Both are choices of the same layer for the same tokens in the same order. 1 means that the
    router has settled; chance is K/E.
    """
    if earlier_TK.shape != later_TK.shape:
        raise ValueError(
            f"choices for other tokens: {tuple(earlier_TK.shape)} and {tuple(later_TK.shape)}"
        )
    kept = (earlier_TK[:, :, None] == later_TK[:, None, :]).any(1)
    return kept.double().mean().item()
