"""Other people's GPU kernels for the expert layer, each in its own layout, where they are
installed.

`liger` (liger-kernel), `scattermoe` (github.com/shawntan/scattermoe) and `sonicmoe` (sonic-moe).
None is a dependency of the project: what cannot be imported is left out, and the reason is
returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Expert = tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]
"""The function of (x, expert, gate, w_in, w_out), and what turns our weights into its own."""


def liger() -> Expert:
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    def compute(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        return LigerFusedMoEFunction.apply(x, w_in, w_out, expert.int(), gate)

    return compute, lambda w_in, w_out: (w_in, w_out.mT.contiguous())


def scattermoe() -> Expert:
    from scattermoe.parallel_experts import flatten_sort_count, parallel_linear

    def compute(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        top_k = expert.shape[1]
        tables = flatten_sort_count(expert, num_experts=len(w_out))
        h = parallel_linear(x, w_in.permute(0, 2, 1), top_k, *tables, grouped_out=True)
        gate_half, up_half = h.chunk(2, dim=-1)
        a = F.silu(gate_half) * up_half
        w_out = w_out.permute(0, 2, 1)
        return parallel_linear(a, w_out, 1, *tables, gates=gate.to(x.dtype), grouped_in=True)

    return compute, lambda w_in, w_out: (w_in, w_out.mT.contiguous())


def sonicmoe() -> Expert:
    from sonicmoe.enums import ActivationType
    from sonicmoe.functional import moe_general_routing_inputs

    def compute(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
        tokens, top_k = expert.shape
        token = torch.arange(tokens, device=x.device, dtype=torch.int32).repeat_interleave(top_k)
        y, _ = moe_general_routing_inputs(
            x,
            gate.flatten(),
            token,
            expert.flatten().int(),
            w_in.permute(1, 2, 0),
            None,
            w_out.permute(1, 2, 0),
            None,
            len(w_out),
            torch.cuda.current_stream().cuda_stream,
            ActivationType.SWIGLU,
        )
        return y

    def own(w_in: Tensor, w_out: Tensor) -> tuple[Tensor, Tensor]:
        gate_half, up_half = w_in.chunk(2, dim=1)  # its gate and up rows alternate
        return torch.stack([gate_half, up_half], 2).flatten(1, 2), w_out.mT.contiguous()

    return compute, own


def found() -> tuple[dict[str, Expert], dict[str, str]]:
    """(what is installed, why the others are not there)."""
    here: dict[str, Expert] = {}
    missing: dict[str, str] = {}
    makers: dict[str, Callable[[], Any]] = {
        "liger": liger,
        "scattermoe": scattermoe,
        "sonicmoe": sonicmoe,
    }
    for name, make in makers.items():
        try:
            here[name] = make()
        except Exception as reason:  # a foreign package may fail in any way while it is imported
            missing[name] = f"{type(reason).__name__}: {reason}".splitlines()[0][:100]
    return here, missing
