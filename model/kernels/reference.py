"""The routed experts as a plain loop, the reference for all other kernels. Any float type."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.layers import at_least_float32

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width.


def reference(
    x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> Tensor:
    """Each expert in turn reads its tokens and adds its weighted output; accumulated in float32."""
    y_TD = torch.zeros_like(at_least_float32(x_TD))
    for expert in range(w_gate_up.shape[0]):
        token, slot = (expert_TK == expert).nonzero(as_tuple=True)
        gate, up = (x_TD[token] @ w_gate_up[expert].T).chunk(2, dim=-1)
        answer = (F.silu(gate) * up) @ w_down[expert]
        y_TD = y_TD.index_add(0, token, answer * gate_TK[token, slot, None])
    return y_TD.to(x_TD.dtype)
