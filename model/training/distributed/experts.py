"""Routed experts spread over ranks: tokens travel to their experts and the answers back."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from model.experts import RoutedExperts, routed_experts
from model.router import Routing

# Shapes: T tokens of this rank, D model width, E experts in all, K experts per token, W expert
# width, R ranks, S visits sent (T·K), V visits received.


class _Exchange(torch.autograd.Function):
    """All-to-all of rows; the gradient travels the way back."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        out = x.new_empty(sum(received), *x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), received, sent, group=group)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        out = grad.new_empty(sum(ctx.sent), *grad.shape[1:])
        dist.all_to_all_single(out, grad.contiguous(), ctx.sent, ctx.received, group=ctx.group)
        return out, None, None, None


class _WeightedSum(torch.autograd.Function):
    """Each token's sum of its visits' answers, each times its gate, in the gates' type.

    The framework's own backward of ``index_add`` keeps all weighted answers, for their shape.
    """

    @staticmethod
    def forward(ctx: Any, y_SD: Tensor, gate_S: Tensor, token_S: Tensor, num_tokens: int) -> Tensor:
        ctx.save_for_backward(y_SD, gate_S, token_S)
        out_TD = y_SD.new_zeros(num_tokens, y_SD.shape[1], dtype=gate_S.dtype)
        return out_TD.index_add_(0, token_S, y_SD * gate_S[:, None])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_SD, gate_S, token_S = ctx.saved_tensors
        grad_SD = grads[0].index_select(0, token_S)
        d_y = (grad_SD * gate_S[:, None]).to(y_SD.dtype)
        return d_y, (grad_SD * y_SD).sum(-1), None, None


class ParallelExperts(RoutedExperts):
    """In place of :class:`~model.experts.RoutedExperts`: each rank of ``mesh`` holds E/R of them.

    No token is dropped: a rank takes as many visits as are sent to it.
    """

    def __init__(self, experts: RoutedExperts, mesh: DeviceMesh) -> None:
        nn.Module.__init__(self)  # its weights are made from those of `experts`
        self.kernel = experts.kernel
        self.group = mesh.get_group()
        for name, parameter in experts.named_parameters():
            local = parameter.chunk(mesh.size())[mesh.get_local_rank()].detach().clone()
            whole = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
            self.register_parameter(name, nn.Parameter(whole))

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """The routed experts' answer [T, D], in the type of ``x_TD``."""
        dtype, device = x_TD.dtype, x_TD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        w_gate_up, w_down = (_local(w).to(dtype) for w in self.parameters())
        if self.group.size() == 1:
            y_TD = routed_experts(
                x_TD.to(dtype),
                routing.expert_TK,
                routing.gate_TK,
                w_gate_up,
                w_down,
                kernel=self.kernel,
            )
            return y_TD.to(x_TD.dtype)

        expert_S = routing.expert_TK.flatten()
        order_S = expert_S.argsort(stable=True)
        token_S = order_S.div(routing.expert_TK.shape[1], rounding_mode="floor")
        sent, received, expert_V = self._plan(expert_S[order_S], w_down.shape[0])
        x_VD = _Exchange.apply(x_TD.to(dtype)[token_S], sent, received, self.group)
        # Gate 1 here: the weighted sum is taken where the token lives.
        gate_V1 = torch.ones_like(expert_V, dtype=routing.gate_TK.dtype)[:, None]
        y_VD = routed_experts(
            x_VD, expert_V[:, None], gate_V1, w_gate_up, w_down, kernel=self.kernel
        )
        y_SD = _Exchange.apply(y_VD, received, sent, self.group)
        y_TD = _WeightedSum.apply(y_SD, routing.gate_TK.flatten()[order_S], token_S, len(x_TD))
        return y_TD.to(x_TD.dtype)

    def _plan(self, expert_S: Tensor, held: int) -> tuple[list[int], list[int], Tensor]:
        """Rows sent to and received from each rank, and the local expert of each received row."""
        load_E = torch.bincount(expert_S, minlength=held * self.group.size())
        theirs_E = torch.empty_like(load_E)  # [rank it comes from, my expert]
        dist.all_to_all_single(theirs_E, load_E, group=self.group)
        sent = load_E.view(-1, held).sum(-1).tolist()
        received = theirs_E.view(-1, held).sum(-1).tolist()
        local_E = torch.arange(held, device=load_E.device).repeat(self.group.size())
        return sent, received, local_E.repeat_interleave(theirs_E)


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight
