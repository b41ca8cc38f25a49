"""The mixture-of-experts feed-forward layer: router, routed experts, shared expert."""

from __future__ import annotations

from torch import Tensor, nn

from model.balance import RoutingRequest, RoutingStats, routing_stats
from model.config import MoEConfig
from model.experts import RoutedExperts
from model.layers import SwiGLU
from model.router import Router

# Shapes: B sequences, T positions, D model width.


class MoE(nn.Module):
    """y = Σ gate·expert(x) + shared(x); the shared expert has neither gate nor scale."""

    def __init__(
        self,
        config: MoEConfig,
        width: int,
        *,
        router: Router | None = None,
        experts: nn.Module | None = None,
    ) -> None:
        """``router`` and ``experts`` are the built-in ones unless given."""
        super().__init__()
        self.config = config
        self.router = Router(config, width) if router is None else router
        self.experts: nn.Module = RoutedExperts(config, width) if experts is None else experts
        shared_width = config.num_shared_experts * config.expert_width
        self.shared = SwiGLU(width, shared_width) if shared_width else None

    def forward(self, x_BTD: Tensor, request: RoutingRequest) -> tuple[Tensor, RoutingStats]:
        """Route every position on its own; none is dropped."""
        x_TD = x_BTD.flatten(0, 1)
        routing = self.router(x_TD)
        y_TD = self.experts(x_TD, routing)
        if self.shared is not None:
            y_TD = y_TD + self.shared(x_TD)
        return y_TD.view_as(x_BTD), routing_stats(routing, request)
