"""The routed experts: their weights, and the single entry to the kernels that compute them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import MoEConfig
from model.kernels import cpu
from model.kernels.select import KERNELS, select, triton
from model.router import Routing

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width.


def routed_experts(
    x_TD: Tensor,
    expert_TK: Tensor,
    gate_TK: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    dtype: torch.dtype | None = None,
    kernel: str | None = None,
    recompute: bool = False,
) -> Tensor:
    """Sum over a token's experts of gate · down(silu(gate_proj(x)) · up_proj(x)).

    Args:
        x_TD: tokens.
        expert_TK: chosen experts, int64; the K of a token are distinct.
        gate_TK: weights of their answers, float32 (float64 with float64 tokens).
        w_gate_up: [E, 2·W, D], gate rows first, then up.
        w_down: [E, W, D]: the transposed down projection, so that D is innermost in both.
        dtype: in which the products are computed; None is the tokens' own.
        kernel: a name from ``model.kernels.select.KERNELS``; None chooses.
        recompute: keep only the inputs for the backward pass and compute the rest again.

    Returns:
        [T, D] in the type of ``x_TD``; the sum over K is taken in float32.
    """
    dtype = dtype or x_TD.dtype
    choice = select(dtype, x_TD.shape[1], w_down.shape[1], device=x_TD.device.type, kernel=kernel)
    if choice.name == "cpu":
        # It rounds to the products' type by itself, each weight once and close to its use.
        tensors = (x_TD.float(), expert_TK, gate_TK, w_gate_up.float(), w_down.float())
        return cpu.routed_experts(*tensors, dtype=dtype, recompute=recompute).to(x_TD.dtype)
    tensors = (x_TD.to(dtype), expert_TK, gate_TK, w_gate_up.to(dtype), w_down.to(dtype))
    if choice.name == "triton":
        return triton(*tensors, recompute=recompute).to(x_TD.dtype)
    compute = KERNELS[choice.name]
    y_TD: Tensor = (
        checkpoint(compute, *tensors, use_reentrant=False) if recompute else compute(*tensors)
    )
    return y_TD.to(x_TD.dtype)


class RoutedExperts(nn.Module):
    """All routed experts of a layer in two parameters."""

    def __init__(self, config: MoEConfig, width: int, kernel: str | None = None) -> None:
        super().__init__()
        e, w = config.num_experts, config.expert_width
        self.w_gate_up = nn.Parameter(torch.empty(e, 2 * w, width))
        self.w_down = nn.Parameter(torch.empty(e, w, width))
        self.kernel = kernel

    @property
    def is_compiled(self) -> bool:
        """Whether the compiled kernel serves float32 tokens on a CPU."""
        _, expert_width, width = self.w_down.shape
        return select(torch.float32, width, expert_width, kernel=self.kernel).name == "cpu"

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The routed experts' answer [T, D], computed in autocast's type where that is on."""
        device = x_TD.device.type
        autocast = torch.is_autocast_enabled(device)
        return routed_experts(
            x_TD,
            routing.expert_TK,
            routing.gate_TK,
            self.w_gate_up,
            self.w_down,
            dtype=torch.get_autocast_dtype(device) if autocast else None,
            kernel=self.kernel,
        )
