"""The halves of a block, each on the residual stream: x + half(norm(x)).

Written plainly, and as compiled operations (``model.kernels.block``) where those serve: at the
widths of a ladder's small rungs a half is twenty to forty operations of a few microseconds each,
most of it dispatch. A part of the user's own is always gone through plainly; a subclass of a
built-in one too, since the compiled operations would not ask what it changed.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import Attention
from model.balance import RoutingRequest, RoutingStats, routing_stats
from model.experts import RoutedExperts
from model.kernels import block
from model.kernels.mixture import MixtureWeights, mixture
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE
from model.router import Router, Routing

# Shapes: B sequences, T positions (or tokens), D model width.


def attend(x_BTD: Tensor, norm: nn.Module, attention: nn.Module, rotary: Rotary) -> Tensor:
    """x + attention(norm(x))."""
    if type(norm) is not RMSNorm or type(attention) is not Attention:
        return x_BTD + attention(norm(x_BTD), rotary)
    c = attention.config
    q_norm, k_norm, gate = attention.q_norm, attention.k_norm, attention.output_gate
    weights = block.AttentionWeights(
        norm.weight,
        attention.qkv.weight,
        None if q_norm is None else q_norm.weight,
        None if k_norm is None else k_norm.weight,
        attention.out.weight,
        None if gate is None else gate.weight,
    )
    if not block.serves(x_BTD, *weights):
        return x_BTD + attention(norm(x_BTD), rotary)
    heads = block.Heads(c.num_heads, c.num_kv_heads, c.head_dim, c.rotary_dim)
    tables = rotary.tables(x_BTD.shape[1], x_BTD.device, x_BTD.dtype)
    return block.attention(x_BTD, weights, norm.eps, tables, heads)


def feed_forward(x_BTD: Tensor, norm: nn.Module, inner: nn.Module) -> Tensor:
    """x + swiglu(norm(x))."""
    if type(norm) is not RMSNorm or type(inner) is not SwiGLU:
        return x_BTD + inner(norm(x_BTD))
    weights = (norm.weight, inner.gate_up.weight, inner.down.weight)
    if not block.serves(x_BTD, *weights):
        return x_BTD + inner(norm(x_BTD))
    return block.feed_forward(x_BTD, *weights, norm.eps)


def mix(
    x_BTD: Tensor, norm: nn.Module, moe: MoE, request: RoutingRequest
) -> tuple[Tensor, RoutingStats]:
    """x + mixture(norm(x)), and what the router did."""
    router = moe.router
    if type(norm) is RMSNorm and type(router) is Router and moe.config.score == "sigmoid":
        weights = _mixture_weights(norm, moe)
        if weights is not None and block.serves(x_BTD, *weights):
            x_TD = x_BTD.flatten(0, 1)
            y_TD, *routing, load_E = mixture(
                x_TD, weights, router.selection_bias, router.rule, norm.eps
            )
            return y_TD.view_as(x_BTD), routing_stats(Routing(*routing), request, load_E)
    y_BTD, stats = moe(norm(x_BTD), request)
    return x_BTD + y_BTD, stats


def _mixture_weights(norm: RMSNorm, moe: MoE) -> MixtureWeights | None:
    """Those of a mixture whose experts the compiled kernel computes in float32."""
    experts, shared = moe.experts, moe.shared
    if type(experts) is not RoutedExperts or not experts.is_compiled:
        return None
    return MixtureWeights(
        norm.weight,
        moe.router.weight,
        experts.w_gate_up,
        experts.w_down,
        None if shared is None else shared.gate_up.weight,
        None if shared is None else shared.down.weight,
    )
