"""The routed experts with ``torch.nn.functional.grouped_mm``: tokens sorted by expert."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.


def grouped(
    x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_gate_up: Tensor, w_down: Tensor
) -> Tensor:
    """All experts in two grouped products over the visits sorted by expert."""
    num_experts, num_slots = w_gate_up.shape[0], expert_TK.shape[1]
    order_P = expert_TK.flatten().argsort()
    token_P = order_P // num_slots
    load_E = torch.bincount(expert_TK.flatten(), minlength=num_experts)
    ends_E = load_E.cumsum(0).to(torch.int32)
    x_PD = x_TD[token_P]
    gate, up = F.grouped_mm(x_PD, w_gate_up.mT, offs=ends_E).chunk(2, dim=-1)
    y_PD = F.grouped_mm(F.silu(gate) * up, w_down, offs=ends_E)
    weighted_PD = y_PD * gate_TK.flatten()[order_P, None]
    return (
        torch.zeros_like(weighted_PD[: x_TD.shape[0]])
        .index_add(0, token_P, weighted_PD)
        .to(x_TD.dtype)
    )
