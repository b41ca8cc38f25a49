"""The held-out measurement: loss by domain and use of the experts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from model.balance import RoutingRequest, RoutingStats, load_metrics
from model.config import ModelConfig
from model.router import Routing
from model.training.config import LOOK_EVERY, Precision, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluation import DomainLoss, Evaluation, LayerLoad, PairedExperts
from model.training.positions import mean_by_range
from model.training.precision import computing_here
from model.transformer import Transformer
from model.utilisation import (
    LayerCounts,
    LayerUtilisation,
    UtilisationMeter,
    layer_counts,
    most_paired,
    router_saturation,
    strongest_partner,
)

# Shapes: L mixture layers (a multi-token-prediction block last), E experts, T tokens of the windows
# that are looked at closely, K experts per token; of windows, W and P positions.

EVALUATE_AT_ONCE = 4096
"""Tokens in one forward pass; more gain nothing here and cost memory."""
PAIRS_SHOWN = 32
"""Experts of a layer whose co-activation is written out: those with the strongest partners."""


def brief_steps(config: TrainConfig) -> frozenset[int]:
    """Steps after which a run is evaluated on the way, evenly spaced."""
    parts = config.evaluation.num_intermediate + 1
    return frozenset(round(config.num_steps * part / parts) for part in range(1, parts))


Forward = Callable[[Tensor, slice], tuple[Tensor, Sequence[LayerCounts]]]
"""From windows [W, P + 1] and those of them that are looked at closely to each target's nats [W, P]
and the use of each mixture layer: how one process, or many together, run their model."""


def plain_forward(model: Transformer, precision: Precision, device: torch.device) -> Forward:
    """The forward pass of a whole model in one process, as it stands at each call."""
    request = RoutingRequest(detail=bool(mixture_layers(model.config)))

    def forward(windows: Tensor, looked_at: slice) -> tuple[Tensor, Sequence[LayerCounts]]:
        batch = windows.to(device)
        with computing_here(precision, device):
            result = model(batch[:, :-1], batch[:, 1:], request=request)
        few = [_of_windows(stats, len(batch), looked_at) for stats in result.routing]
        return result.token_nats_BT, [layer_counts(stats) for stats in few]

    return forward


class Evaluator:
    """Measures a model on the same held-out windows every time."""

    def __init__(
        self,
        config: ModelConfig,
        corpus: PreparedCorpus,
        *,
        sequence_length: int,
        tokens_per_domain: int,
    ) -> None:
        self._config = config
        self._corpus = corpus
        self._windows = {
            name: torch.from_numpy(corpus.heldout(name, sequence_length, tokens_per_domain))
            for name in corpus.domains
        }

    def __call__(self, forward: Forward, earlier_LTK: Tensor | None = None) -> Evaluation:
        """Evaluate the model behind ``forward`` as it stands on all windows.

        ``earlier_LTK``: ``choices_LTK`` of an earlier evaluation, brief or not, that the router's
        saturation is measured against.
        """
        return self._evaluate(forward, self._windows, LOOK_EVERY, earlier_LTK)

    def briefly(self, forward: Forward, earlier_LTK: Tensor | None = None) -> Evaluation:
        """The same on one in eight of the windows, spread as evenly."""
        few = {name: windows[::LOOK_EVERY] for name, windows in self._windows.items()}
        return self._evaluate(forward, few, 1, earlier_LTK)

    @torch.no_grad()
    def _evaluate(
        self,
        forward: Forward,
        windows_by_domain: Mapping[str, Tensor],
        look_every: int,
        earlier_LTK: Tensor | None,
    ) -> Evaluation:
        """``look_every``: one in so many windows has the routing of its tokens looked at."""
        layers, moe = mixture_layers(self._config), self._config.moe
        meter = UtilisationMeter(moe, len(layers)) if moe and layers else None
        by_domain: dict[str, DomainLoss] = {}
        nats_by_domain_T: dict[str, Tensor] = {}
        choices: list[Tensor] = []
        for name, windows in windows_by_domain.items():
            nats = 0.0
            nats_T = torch.zeros(windows.shape[1] - 1, dtype=torch.float64)
            at_once = max(1, EVALUATE_AT_ONCE // (windows.shape[1] - 1))
            for first in range(0, len(windows), at_once):
                looked_at = slice(-first % look_every, None, look_every)
                nats_WP, counts = forward(windows[first : first + at_once], looked_at)
                nats += nats_WP.double().sum().item()
                nats_T += nats_WP.double().sum(0).cpu()
                if meter is not None:
                    meter.add(counts, name)
                    choices.append(_choices(counts))
            by_domain[name] = self._domain_loss(windows[:, 1:], nats)
            nats_by_domain_T[name] = self._corpus.weights[name] * nats_T / len(windows)
        loss_nats = self._mixed({n: d.loss_nats for n, d in by_domain.items()})
        used = meter.measure() if meter is not None and math.isfinite(loss_nats) else ()
        choices_LTK = torch.cat(choices, dim=1) if used else None
        return Evaluation(
            loss_nats=loss_nats,
            bits_per_byte=self._mixed_bits_per_byte(by_domain),
            by_domain=by_domain,
            by_position=mean_by_range(torch.stack([*nats_by_domain_T.values()]).sum(0)),
            load_by_layer=tuple(
                _layer_load(layer, layer_use, _saturation(row, earlier_LTK, choices_LTK))
                for row, (layer, layer_use) in enumerate(zip(layers, used, strict=False))
            ),
            load_by_domain={
                name: tuple(_share(layer_use.load_by_domain[name]) for layer_use in used)
                for name in (by_domain if used else ())
            },
            pairs=tuple(_pairs(layer_use.coactivation) for layer_use in used),
            choices_LTK=choices_LTK,
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


def _of_windows(stats: RoutingStats, num_windows: int, windows: slice) -> RoutingStats:
    """The same with the detail of some of the windows only; the load stays that of all."""
    assert stats.detail is not None
    detail = (t.unflatten(0, (num_windows, -1))[windows].flatten(0, 1) for t in stats.detail)
    return replace(stats, detail=Routing(*detail))


def _choices(counts: Sequence[LayerCounts]) -> Tensor:
    """Chosen experts of one forward pass [L, T, K], int16 on the CPU."""
    return torch.stack([of_layer.expert_TK for of_layer in counts]).to(torch.int16).cpu()


def _saturation(row: int, earlier_LTK: Tensor | None, choices_LTK: Tensor | None) -> float | None:
    if earlier_LTK is None or choices_LTK is None:
        return None
    return router_saturation(earlier_LTK[row], choices_LTK[row])


def _layer_load(layer: int, use: LayerUtilisation, saturation: float | None) -> LayerLoad:
    metrics = load_metrics(use.load_E.double())
    return LayerLoad(
        layer=layer,
        max_vio=metrics.max_vio.item(),
        min_vio=metrics.min_vio.item(),
        normalized_entropy=metrics.normalized_entropy.item(),
        dead_frac=metrics.dead_frac.item(),
        load=_share(use.load_E),
        batch_max_vio=use.batch_max_vio,
        batch_min_vio=use.batch_min_vio,
        gate_entropy=use.gate_entropy,
        top_k_mass=use.top_k_mass,
        specialisation=use.specialisation,
        coactivation=strongest_partner(use.coactivation),
        saturation=saturation,
    )


def _share(load_E: Tensor) -> tuple[float, ...]:
    return tuple((load_E.double() / load_E.sum()).tolist())


def _pairs(coactivation_EE: Tensor) -> PairedExperts:
    """Shares rounded to 4 digits: they are for a figure."""
    shown = most_paired(coactivation_EE, PAIRS_SHOWN)
    share = coactivation_EE[shown][:, shown].double()
    return PairedExperts(
        experts=tuple(shown.tolist()),
        share=tuple(tuple(round(value, 4) for value in row) for row in share.tolist()),
    )
