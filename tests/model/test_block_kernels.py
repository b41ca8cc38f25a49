"""The compiled halves of a block against the plain ones in float64: values, all gradients, bits."""

import pytest
import torch
from torch import Tensor

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest
from model.config import AttentionConfig, MoEConfig
from model.kernels import block
from model.layers import RMSNorm, Rotary, SwiGLU
from model.moe import MoE

EPS = 1e-6
FLOAT32_ERROR = 4e-6

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not block.serves(torch.ones(1)), reason="no compiled halves here"),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    for i, parameter in enumerate(module.parameters()):
        value = draw(*parameter.shape, seed=i) * (0.3 if parameter.ndim > 1 else 1.0)
        parameter.data = value + (1.0 if parameter.ndim == 1 else 0.0)
    return module.to(dtype)


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    return [
        y.detach(),
        *torch.autograd.grad((y * draw(*y.shape, seed=7).to(y.dtype)).sum(), leaves),
    ]


def assert_agree(run) -> None:
    for mine, exact in zip(run(torch.float32), run(torch.float64), strict=True):
        apart = (mine.double() - exact).norm() / exact.norm().clamp(
            min=0.5
        )  # some are 0: of one key's score
        assert apart < FLOAT32_ERROR


@pytest.mark.parametrize(
    ("qk_norm", "gate"),
    [(True, "none"), (False, "none"), (True, "headwise"), (True, "elementwise")],
)
@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim", "rotary", "length"),
    [
        (4, 2, 6, 4, 9),  # heads narrower than a vector, fewer positions than a block
        (3, 3, 20, 20, 33),  # a width of two vectors with a rest, a block and a position
        (2, 1, 16, 8, 128),  # whole vectors, whole blocks
        (1, 1, 8, 2, 1),
        (4, 1, 64, 32, 70),
        (1, 1, 128, 64, 100),
    ],
)
def test_attention(qk_norm, gate, heads, kv_heads, head_dim, rotary, length, threads, products):
    config = AttentionConfig(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rotary_dim=rotary,
        qk_norm=qk_norm,
        output_gate=gate,
    )

    def run(dtype):
        norm, layer = filled(RMSNorm(10, EPS), dtype), filled(Attention(config, 10, EPS), dtype)
        x = draw(3, length, 10, seed=50).to(dtype).requires_grad_()
        y = halves.attend(x, norm, layer, Rotary(config))
        return gradients(y, [x, *norm.parameters(), *layer.parameters()])

    assert_agree(run)


@pytest.mark.parametrize(("width", "inner"), [(7, 3), (16, 40), (100, 170), (131, 1024)])
def test_feed_forward(width, inner, threads, products):
    def run(dtype):
        norm, layer = filled(RMSNorm(width, EPS), dtype), filled(SwiGLU(width, inner), dtype)
        x = draw(2, 150, width, seed=50).to(dtype).requires_grad_()
        y = halves.feed_forward(x, norm, layer)
        return gradients(y, [x, *norm.parameters(), *layer.parameters()])

    assert_agree(run)


@pytest.mark.parametrize("products", ["own"], indirect=True)
def test_columns_of_large_weights_are_copied_to_the_same_bits(products, small_is_shared):
    """Three threads have 100 rows each, too few for a copy."""
    norm = filled(RMSNorm(131, EPS), torch.float32)
    layer = filled(SwiGLU(131, 1024), torch.float32)
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        x = draw(300, 131, seed=50).requires_grad_()
        found += torch.autograd.grad(halves.feed_forward(x, norm, layer).sum(), [x])
    assert torch.equal(*found)


@pytest.mark.parametrize("shared", [0, 1])
@pytest.mark.parametrize("losses", [True, False])
def test_mixture(shared, losses, threads, products):
    config = MoEConfig(
        num_experts=12,
        experts_per_token=3,
        expert_width=6,
        num_shared_experts=shared,
        num_groups=4,
        groups_per_token=2,
    )

    def run(dtype):
        norm, layer = filled(RMSNorm(16, EPS), dtype), filled(MoE(config, 16), dtype)
        x = draw(2, 20, 16, seed=50).to(dtype).requires_grad_()
        y, stats = halves.mix(x, norm, layer, RoutingRequest(losses=losses))
        leaves = [x, *norm.parameters(), *layer.parameters()]
        if losses:
            y = y + stats.aux_loss + 0.1 * stats.z_loss
        return [stats.load_E.double(), *gradients(y, leaves)]

    assert_agree(run)


def test_a_position_sees_none_after_it():
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4)
    norm, layer = (
        filled(RMSNorm(10, EPS), torch.float32),
        filled(Attention(config, 10, EPS), torch.float32),
    )
    x = draw(1, 50, 10)
    changed = x.clone()
    changed[:, 33:] += 5
    first, second = (halves.attend(each, norm, layer, Rotary(config)) for each in (x, changed))
    assert torch.equal(first[:, :33], second[:, :33])
    assert not torch.equal(first[:, 33:], second[:, 33:])


def test_scores_far_apart_leave_one_key_and_no_nan():
    config = AttentionConfig(num_heads=1, num_kv_heads=1, head_dim=4, rotary_dim=2, qk_norm=False)
    norm, layer = RMSNorm(4, EPS), filled(Attention(config, 4, EPS), torch.float32)
    norm.weight.data.fill_(1)
    layer.qkv.weight.data *= 300
    x = draw(1, 40, 4).requires_grad_()
    y = halves.attend(x, norm, layer, Rotary(config))
    y.sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("gate", ["none", "headwise", "elementwise"])
def test_the_same_bits_on_every_repeat(threads, gate):
    config = AttentionConfig(
        num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=8, output_gate=gate
    )
    norm, layer = (
        filled(RMSNorm(32, EPS), torch.float32),
        filled(Attention(config, 32, EPS), torch.float32),
    )
    x = draw(5, 64, 32).requires_grad_()
    leaves = [x, *norm.parameters(), *layer.parameters()]

    def once():
        return gradients(halves.attend(x, norm, layer, Rotary(config)), leaves)

    first = once()
    for _ in range(3):
        assert all(torch.equal(a, b) for a, b in zip(first, once(), strict=True))


def test_what_is_asked_for_in_another_type_is_left_to_the_framework():
    x = torch.ones(2)
    assert block.serves(x, None)
    assert not block.serves(x, torch.ones(3, 2).T)
    assert not block.serves(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not block.serves(x)
