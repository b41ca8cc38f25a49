"""Compiled operations that round the factors of products to bfloat16, against float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.kernels import block, loss, rounding
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE
from model.training import precision
from model.training.captured import Captured
from model.training.precision import computing_here, computing_in
from model.transformer import build_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not block.serves(torch.ones(1)) or not block.has_tiles(), reason="no tile unit here"
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


def attention(dtype):
    config = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=12, rotary_dim=8)
    norm, layer = filled(RMSNorm(40, EPS), dtype), filled(Attention(config, 40, EPS), dtype)
    x = draw(3, 37, 40, seed=50).to(dtype).requires_grad_()
    y = halves.attend(x, norm, layer, Rotary(config))
    return values_and_gradients(y, [x, *norm.parameters(), *layer.parameters()])


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


@pytest.mark.parametrize("run", [attention, feed_forward, output_layer])
def test_factors_are_rounded_and_nothing_else(run, threads, monkeypatch):
    far = worst(run)
    monkeypatch.setattr(F, "linear", lambda x, w, bias=None: RoundedLinear.apply(x, w))
    assert worst(run) < A_FEW_ROUNDED_THE_OTHER_WAY < far < BFLOAT16_ERROR


def test_a_mixture_rounds_its_products_and_chooses_in_float32(threads):
    assert A_FEW_ROUNDED_THE_OTHER_WAY < worst(mixture) < BFLOAT16_ERROR


MODEL = ModelConfig(
    vocab_size=31,
    hidden_size=16,
    num_layers=3,
    num_dense_layers=1,
    dense_width=24,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=8, experts_per_token=2, expert_width=8, num_groups=4, groups_per_token=2
    ),
)


def gradients_of(model, windows, context) -> list[Tensor]:
    model.zero_grad()
    with context("bf16", CPU):
        nats = model(windows[:, :-1], windows[:, 1:]).loss_nats
    nats.backward()
    return [nats.detach(), *(p.grad.clone() for p in model.parameters())]


def test_a_pass_is_played_back_in_the_same_bits():
    model = build_model(MODEL, seed=0)
    captured = Captured(model, "bf16")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        windows = torch.randint(31, (3, 10), generator=generator)
        model.zero_grad()
        found = captured.forward_backward(windows)
        mine = [torch.tensor(found.loss_nats), *(p.grad.clone() for p in model.parameters())]
        for a, b in zip(mine, gradients_of(model, windows, computing_here), strict=True):
            assert torch.equal(a, b)


def test_without_a_tile_unit_bfloat16_is_the_frameworks(monkeypatch):
    model = build_model(MODEL, seed=0)
    windows = torch.randint(31, (3, 10), generator=torch.Generator().manual_seed(0))
    by_framework = gradients_of(model, windows, computing_in)
    by_itself = gradients_of(model, windows, computing_here)
    assert not torch.equal(by_framework[1], by_itself[1])
    torch.testing.assert_close(by_framework[0], by_itself[0], rtol=1e-2, atol=0)
    monkeypatch.setattr(precision.block, "has_tiles", lambda: False)
    for a, b in zip(by_framework, gradients_of(model, windows, computing_here), strict=True):
        assert torch.equal(a, b)
    assert not rounding.is_on()
