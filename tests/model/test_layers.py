"""Norm, rotary embedding and SwiGLU: values, written-out gradients, the published cast order."""

import math

import pytest
import torch
import torch.nn.functional as F

from model.config import AttentionConfig, YarnConfig
from model.layers import Rotary, rms_norm, rotary_frequencies, rotate, swiglu

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 1e-6


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def rotary(head_dim=8, rotary_dim=4, **fields):
    return Rotary(
        AttentionConfig(
            num_heads=2, num_kv_heads=1, head_dim=head_dim, rotary_dim=rotary_dim, **fields
        )
    )


@pytest.mark.parametrize("weight_shape", [(5,), (3, 5)], ids=["shared weight", "weight a head"])
def test_norm_divides_by_the_root_mean_square_then_weighs(weight_shape):
    x, weight = draw(2, 4, 3, 5), draw(*weight_shape, seed=1)
    expected = x / ((x * x).mean(-1, keepdim=True) + EPS).sqrt() * weight
    torch.testing.assert_close(rms_norm(x, weight, EPS), expected)
    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, EPS), inputs)


def test_norm_in_bfloat16_rounds_before_the_weight():
    x, weight = draw(64, 32, dtype=torch.bfloat16), draw(32, seed=1, dtype=torch.bfloat16)
    x32 = x.float()
    normed = (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS)).bfloat16()
    assert torch.equal(rms_norm(x, weight, EPS), normed * weight)
    late = (x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + EPS) * weight).bfloat16()
    assert not torch.equal(rms_norm(x, weight, EPS), late)


def test_norm_survives_numbers_whose_squares_overflow_half_precision():
    x = torch.full((1, 4), 3e4, dtype=torch.float16)
    torch.testing.assert_close(rms_norm(x, torch.ones(4, dtype=torch.float16), EPS), x / x)


def test_rotation_turns_each_pair_by_position_times_frequency(oracle):
    tables = rotary()
    x = draw(1, 6, 3, 8)
    turned = rotate(x, tables.tables(6, x.device, x.dtype), 4)
    for position in range(6):
        for head in range(3):
            expected = oracle.rotated(x[0, position, head], position, tables.config)
            torch.testing.assert_close(turned[0, position, head], expected)
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, 0], x[:, 0])


def test_gradient_of_the_rotation():
    tables = rotary(rotary_dim=6).tables(4, torch.device("cpu"), torch.float64)
    x = draw(2, 4, 3, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotate(x, tables, 6), (x,))


def test_scores_depend_on_the_distance_of_positions_alone():
    q, k = draw(8), draw(8, seed=1)
    tables = rotary(rotary_dim=8).tables(40, torch.device("cpu"), torch.float64)
    every = [rotate(head.expand(1, 40, 3, 8), tables, 8)[0, :, 0] for head in (q, k)]
    scores = every[0] @ every[1].T
    for distance in (0, 3, 11):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[0].expand_as(diagonal))


def test_tables_are_made_once_and_serve_shorter_rows():
    tables = rotary()
    device = torch.device("cpu")
    long = tables.tables(16, device, torch.float32)
    short = tables.tables(9, device, torch.float32)
    assert short[0].data_ptr() == long[0].data_ptr()
    fresh = rotary().tables(9, device, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(short, fresh, strict=True))
    assert tables.tables(40, device, torch.float32)[0].shape[0] == 40


def test_angles_of_a_half_precision_model_are_rounded_once():
    # 300 radians in bfloat16 would be 300 ± 1: noise.
    device = torch.device("cpu")
    half = rotary().tables(301, device, torch.bfloat16)
    exact = rotary().tables(301, device, torch.float32)
    assert all(torch.equal(a, b.bfloat16()) for a, b in zip(half, exact, strict=True))


def test_yarn_keeps_fast_pairs_divides_slow_ones_and_ramps_between():
    # Ling-1T beyond 32K: factor 4, base 6e5, half of 128 dimensions rotated.
    config = AttentionConfig(
        num_heads=1,
        num_kv_heads=1,
        head_dim=128,
        rotary_dim=64,
        rope_base=600_000.0,
        yarn=YarnConfig(factor=4.0, original_positions=32_768),
    )
    frequency, factor = rotary_frequencies(config, torch.float64)
    plain = 600_000.0 ** (-torch.arange(0, 64, 2, dtype=torch.float64) / 64)
    turns = 32_768 * plain / (2 * math.pi)
    ratio = frequency / plain
    assert factor == pytest.approx(0.1 * math.log(4) + 1)
    # Pair 12 makes 35.6 turns over 32K tokens and pair 13 makes 23.5; 20 makes 1.28, 21 makes 0.84.
    assert turns[12] > 32 > turns[13]
    assert turns[20] > 1 > turns[21]
    torch.testing.assert_close(ratio[:13], torch.ones(13, dtype=torch.float64))
    torch.testing.assert_close(ratio[21:], torch.full((11,), 0.25, dtype=torch.float64))
    # Between, the frequency falls from whole to a quarter in nine even steps.
    steps = torch.diff(ratio[12:22])
    torch.testing.assert_close(steps, torch.full((9,), -0.75 / 9, dtype=torch.float64))


def test_yarn_of_factor_one_changes_nothing():
    fields = {"num_heads": 1, "num_kv_heads": 1, "head_dim": 16, "rotary_dim": 16}
    plain, _ = rotary_frequencies(AttentionConfig(**fields), torch.float64)
    yarn = YarnConfig(factor=1.0, original_positions=512)
    same, factor = rotary_frequencies(AttentionConfig(**fields, yarn=yarn), torch.float64)
    torch.testing.assert_close(same, plain)
    assert factor == 1


def test_swiglu_and_its_gradient():
    gate_up = draw(3, 2, 10)
    gate, up = gate_up[..., :5], gate_up[..., 5:]
    torch.testing.assert_close(swiglu(gate_up), F.silu(gate) * up)
    assert torch.autograd.gradcheck(swiglu, (gate_up.requires_grad_(),))
