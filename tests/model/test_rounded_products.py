"""Compiled operations that round the factors of products to bfloat16, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest
from model.config import AttentionConfig, MoEConfig
from model.kernels import block, loss, rounding
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not block.serves(torch.ones(1)) or not block.can_round(), reason="no bfloat16 products here"
    ),
]

EPS = 1e-6
CPU = torch.device("cpu")
BFLOAT16_ERROR = 1e-2
A_FEW_ROUNDED_THE_OTHER_WAY = 6e-4  # what a factor is rounded from is float32 here, float64 there


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rounded(x: Tensor) -> Tensor:
    return x.float().bfloat16().double()


class RoundedLinear(torch.autograd.Function):
    """What the operations are to compute: rounded factors, exact sums, both ways."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return rounded(x) @ rounded(w).T

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        dw = rounded(dy).flatten(0, -2).T @ rounded(x).flatten(0, -2)
        return rounded(dy) @ rounded(w), dw


def filled(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    for i, parameter in enumerate(module.parameters()):
        value = draw(*parameter.shape, seed=i) * (0.3 if parameter.ndim > 1 else 1.0)
        parameter.data = value + (1.0 if parameter.ndim == 1 else 0.0)
    return module.to(dtype)


def values_and_gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    towards = (y * draw(*y.shape, seed=7).to(y.dtype)).sum()
    return [y.detach(), *torch.autograd.grad(towards, leaves)]


def worst(run) -> float:
    with rounding.to_bfloat16():
        mine = run(torch.float32)
    pairs = zip(mine, run(torch.float64), strict=True)
    return max(float((a.double() - b).norm() / b.norm().clamp(min=0.5)) for a, b in pairs)


def attention(dtype, gate="none"):
    config = AttentionConfig(
        num_heads=4, num_kv_heads=2, head_dim=12, rotary_dim=8, output_gate=gate
    )
    norm, layer = filled(RMSNorm(40, EPS), dtype), filled(Attention(config, 40, EPS), dtype)
    x = draw(3, 37, 40, seed=50).to(dtype).requires_grad_()
    y = halves.attend(x, norm, layer, Rotary(config))
    return values_and_gradients(y, [x, *norm.parameters(), *layer.parameters()])


def gated_attention(dtype):
    return attention(dtype, "elementwise")


def feed_forward(dtype):
    norm, layer = filled(RMSNorm(33, EPS), dtype), filled(SwiGLU(33, 70), dtype)
    x = draw(2, 150, 33, seed=50).to(dtype).requires_grad_()
    y = halves.feed_forward(x, norm, layer)
    return values_and_gradients(y, [x, *norm.parameters(), *layer.parameters()])


def output_layer(dtype):
    hidden, weight = (draw(*shape).to(dtype).requires_grad_() for shape in ((90, 16), (257, 16)))
    target = torch.arange(90)
    if dtype == torch.float32:
        nats = loss.token_nats(hidden, weight, target)
    else:
        nats = F.cross_entropy(F.linear(hidden, weight), target, reduction="none")
    return values_and_gradients(nats, [hidden, weight])


def mixture(dtype):
    config = MoEConfig(
        num_experts=12, experts_per_token=3, expert_width=6, num_groups=4, groups_per_token=2
    )
    norm, layer = filled(RMSNorm(16, EPS), dtype), filled(MoE(config, 16), dtype)
    x = draw(2, 20, 16, seed=50).to(dtype).requires_grad_()
    y, stats = halves.mix(x, norm, layer, RoutingRequest())
    leaves = [x, *norm.parameters(), *layer.parameters()]
    return [stats.load_E.double(), *values_and_gradients(y, leaves)]


@pytest.mark.parametrize("run", [attention, gated_attention, feed_forward, output_layer])
def test_factors_are_rounded_and_nothing_else(run, threads, monkeypatch):
    far = worst(run)
    monkeypatch.setattr(F, "linear", lambda x, w, bias=None: RoundedLinear.apply(x, w))
    assert worst(run) < A_FEW_ROUNDED_THE_OTHER_WAY < far < BFLOAT16_ERROR


def test_a_mixture_rounds_its_products_and_chooses_in_float32(threads):
    assert A_FEW_ROUNDED_THE_OTHER_WAY < worst(mixture) < BFLOAT16_ERROR
