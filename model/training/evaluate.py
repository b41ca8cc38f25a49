"""The held-out measurement: loss by domain and load of the experts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from model.balance import load_metrics
from model.config import ModelConfig
from model.training.data import PreparedCorpus
from model.training.precision import Precision, computing_in
from model.transformer import Transformer

# Shapes: L mixture layers (a multi-token-prediction block last), E experts.

EVALUATE_AT_ONCE = 4096
"""Tokens in one forward pass; more gain nothing here and cost memory."""


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
    """Load of one layer's routed experts over all held-out tokens."""

    layer: int
    """Block number from 0; a multi-token-prediction block comes after the last."""
    max_vio: float
    min_vio: float
    normalized_entropy: float
    dead_frac: float
    load: tuple[float, ...]
    """Share of the choices each expert received; sums to 1."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation measured."""

    loss_nats: float
    """Mean over the domains by the mixture's weights, nats per token."""
    bits_per_byte: float
    by_domain: Mapping[str, DomainLoss]
    load_by_layer: tuple[LayerLoad, ...]


class Evaluator:
    """Measures a model on the same held-out windows every time."""

    def __init__(
        self,
        corpus: PreparedCorpus,
        *,
        sequence_length: int,
        tokens_per_domain: int,
        precision: Precision,
        device: torch.device,
    ) -> None:
        self._corpus = corpus
        self._precision: Precision = precision
        self._device = device
        self._windows = {
            name: torch.from_numpy(corpus.heldout(name, sequence_length, tokens_per_domain))
            for name in corpus.domains
        }

    @torch.no_grad()
    def __call__(self, model: Transformer) -> Evaluation:
        """Evaluate ``model`` as it stands."""
        by_domain: dict[str, DomainLoss] = {}
        total_load: Tensor | None = None
        for name, windows in self._windows.items():
            nats = 0.0
            for some in windows.split(max(1, EVALUATE_AT_ONCE // (windows.shape[1] - 1))):
                batch = some.to(self._device)
                with computing_in(self._precision, self._device):
                    result = model(batch[:, :-1], batch[:, 1:])
                nats += result.token_nats_BT.double().sum().item()
                if result.routing:
                    load_LE = torch.stack([stats.load_E for stats in result.routing])
                    total_load = load_LE if total_load is None else total_load + load_LE
            by_domain[name] = self._domain_loss(windows[:, 1:], nats)
        return Evaluation(
            loss_nats=self._mixed({n: d.loss_nats for n, d in by_domain.items()}),
            bits_per_byte=self._mixed_bits_per_byte(by_domain),
            by_domain=by_domain,
            load_by_layer=() if total_load is None else layer_loads(model.config, total_load),
        )

    def _domain_loss(self, targets: Tensor, nats: float) -> DomainLoss:
        num_bytes = self._corpus.count_bytes(targets.numpy())
        return DomainLoss(
            loss_nats=nats / targets.numel(),
            bits_per_byte=nats / math.log(2) / num_bytes,
            tokens=targets.numel(),
            bytes=num_bytes,
        )

    def _mixed(self, value_by_domain: Mapping[str, float]) -> float:
        weights = self._corpus.weights
        return math.fsum(weights[name] * value for name, value in value_by_domain.items())

    def _mixed_bits_per_byte(self, by_domain: Mapping[str, DomainLoss]) -> float:
        """Bits over bytes of a text mixed by the weights, which are shares of tokens."""
        bits = self._mixed({n: d.loss_nats / math.log(2) for n, d in by_domain.items()})
        return bits / self._mixed({n: d.bytes / d.tokens for n, d in by_domain.items()})


def mixture_layers(config: ModelConfig) -> tuple[int, ...]:
    """Numbers of the blocks that have experts, in the order in which a forward reports them."""
    last = config.num_layers + config.mtp_depth
    return tuple(layer for layer in range(last) if config.is_moe_layer(layer))


def layer_loads(config: ModelConfig, load_LE: Tensor) -> tuple[LayerLoad, ...]:
    """Counts of choices [L, E] as shares and metrics, layer by layer."""
    load_LE = load_LE.double().cpu()
    metrics = load_metrics(load_LE)
    share_LE = load_LE / load_LE.sum(-1, keepdim=True)
    return tuple(
        LayerLoad(
            layer=layer,
            max_vio=metrics.max_vio[row].item(),
            min_vio=metrics.min_vio[row].item(),
            normalized_entropy=metrics.normalized_entropy[row].item(),
            dead_frac=metrics.dead_frac[row].item(),
            load=tuple(share_LE[row].tolist()),
        )
        for row, layer in enumerate(mixture_layers(config))
    )
