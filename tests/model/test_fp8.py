"""FP8 products: the rounding against all E4M3 numbers, gradients, and what is watched."""

import pytest
import torch

from model.fp8 import (
    Distortion,
    Quantized,
    emulated,
    fp8_linear,
    on_units,
    quantize_blocks,
    quantize_blocks_plainly,
    quantize_tiles,
    quantize_tiles_plainly,
    why_emulated,
)
from model.kernels import fp8 as compiled

HAS_UNITS = torch.cuda.is_available() and not why_emulated(torch.device("cuda", 0))

# All non-negative E4M3 numbers by their definition: 4 bits of exponent (bias 7), 3 of mantissa.
E4M3 = torch.tensor(
    [m / 8 * 2**-6 for m in range(8)]
    + [(1 + m / 8) * 2 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)],
    dtype=torch.float64,
)


def nearest_e4m3(x):
    """Each number of ``x`` as the nearest E4M3 number; float64, by search."""
    distance = (x.abs()[..., None] - E4M3).abs()
    return E4M3[distance.argmin(-1)] * x.sign()


def rounded(x, rows, columns):
    """Tiles of rows x columns, each scaled so that its largest number is 448; in plain loops."""
    out = torch.empty_like(x, dtype=torch.float64)
    for top in range(0, x.shape[0], rows):
        for left in range(0, x.shape[1], columns):
            tile = x[top : top + rows, left : left + columns].double()
            scale = tile.abs().max() / 448
            out[top : top + rows, left : left + columns] = nearest_e4m3(tile / scale) * scale
    return out


def spread(*shape, seed=0):
    """Numbers over many orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()


@pytest.mark.parametrize("columns", [1, 100, 128, 200])
def test_tiles_are_rounded_as_the_definition_says(columns):
    x = spread(5, columns)
    found = quantize_tiles(x)
    # Ties and the scale's own rounding: a hair's breadth from the middle either side will do.
    expected = rounded(x, 1, 128)
    assert found.scale.shape == (5, -(-columns // 128))
    close = torch.isclose(found.dequantized().double(), expected, rtol=1e-5, atol=0)
    assert close.float().mean() > 0.995
    torch.testing.assert_close(found.dequantized().double(), x.double(), rtol=2**-4, atol=2e-3)


def test_blocks_are_rounded_as_the_definition_says():
    w = spread(150, 200)
    found = quantize_blocks(w)
    assert found.scale.shape == (2, 2)
    close = torch.isclose(found.dequantized().double(), rounded(w, 128, 128), rtol=1e-5, atol=0)
    assert close.float().mean() > 0.995


def same_bytes(found, expected):
    values = (q.values.view(torch.uint8) for q in (found, expected))
    scales = (q.scale.nan_to_num(-1.0) for q in (found, expected))
    return torch.equal(*values) and torch.equal(*scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (5, 300), (130, 7), (200, 128)])
@pytest.mark.parametrize("content", ["spread", "zeros", "no numbers"])
def test_compiled_rounding_has_the_bits_of_the_plain_one(shape, dtype, content):
    x = spread(*shape)
    if content == "zeros":
        x[torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7] = 0
    if content == "no numbers":
        x[0, 0], x[-1, -1] = float("nan"), -float("inf")
    for matrix in (x.to(dtype), x.to(dtype).T):
        assert compiled.serves(matrix)
        for rounding, plain in (
            (quantize_tiles, quantize_tiles_plainly),
            (quantize_blocks, quantize_blocks_plainly),
        ):
            found, expected = rounding(matrix), plain(matrix)
            assert same_bytes(found, expected)
            back = found.dequantized(), expected.dequantized_plainly()
            torch.testing.assert_close(*back, rtol=0, atol=0, equal_nan=True)


def test_compiled_rounding_of_every_exponent_has_the_bits_of_the_plain_one():
    bits = torch.arange(-(2**31), 2**31, 9973, dtype=torch.int64).to(torch.int32)
    numbers = bits.view(torch.float32)
    numbers = numbers[numbers.abs() <= 448]
    # 448 beside each keeps the scale at 1, so that ties stay ties.
    beside = torch.stack([torch.full_like(numbers, 448.0), numbers], 1)
    assert same_bytes(quantize_tiles(beside), quantize_tiles_plainly(beside))


def test_zeros_and_the_largest_number_survive():
    x = torch.zeros(2, 130)
    x[1, 129] = -3.0
    assert torch.equal(quantize_tiles(x).dequantized(), x)
    assert torch.equal(quantize_blocks(x).dequantized(), x)


def test_each_product_sums_the_rounded_operands():
    x, w, dy = (
        spread(9, 130).requires_grad_(),
        spread(140, 130, seed=1).requires_grad_(),
        spread(9, 140, seed=2),
    )
    y = fp8_linear(x, w)
    y.backward(dy.to(y.dtype))
    dy = dy.bfloat16().float()

    def tiles(t):
        return quantize_tiles(t).dequantized().double()

    def blocks(t):
        return quantize_blocks(t).dequantized().double()

    xd, wd = x.detach(), w.detach()
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), tiles(xd) @ blocks(wd).T, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(x.grad.double(), tiles(dy) @ blocks(wd.T).T, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(w.grad.double(), tiles(dy.T) @ tiles(xd.T).T, rtol=1e-5, atol=1e-5)
    # Near the true ones, and not the true ones.
    exact = xd.double() @ wd.double().T
    error = (y.detach().double() - exact).norm() / exact.norm()
    assert 0.005 < error < 0.05


SHAPES = [(256, 512, 1024), (64, 384, 128), (9, 140, 130), (1, 128, 300)]
"""Tokens, outputs, inputs: whole tiles and blocks, a single tile, and what is left at edges."""


@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SHAPES)
def test_scales_lie_as_the_framework_asks(tokens, outputs, inputs):
    """Its own rules for shapes and strides, which need no GPU."""
    x = quantize_tiles(spread(tokens, inputs))
    for w in (quantize_blocks(spread(outputs, inputs)), quantize_tiles(spread(outputs, inputs))):
        shapes = [Quantized(*(tensor.to("meta") for tensor in operand)) for operand in (x, w)]
        y = on_units(*shapes, torch.float32)
        assert y.shape == (tokens, outputs)
        assert y.dtype == torch.float32


def test_a_device_without_units_says_so(caplog):
    why_emulated.cache_clear()
    with caplog.at_level("INFO"):
        fp8_linear(torch.randn(4, 128), torch.randn(16, 128))
        fp8_linear(torch.randn(4, 128), torch.randn(16, 128))
    assert caplog.messages == ["FP8 products are emulated on cpu: cpu has no FP8 units"]


def test_autocast_does_not_take_the_sums_in_bfloat16():
    x, w = torch.randn(4, 128), torch.randn(16, 128)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = fp8_linear(x, w)
    assert torch.equal(inside, fp8_linear(x, w))


def test_the_safeguards_measure_what_they_say():
    watched = Distortion()
    x = torch.full((1, 128), 1e-9)
    x[0, 0] = 1.0
    fp8_linear(x.requires_grad_(), torch.eye(128), watched).sum().backward()
    assert watched.underflow == pytest.approx(127 / 128)
    assert watched.cosine == pytest.approx(1, abs=1e-6)
    clean = Distortion()
    fp8_linear(spread(64, 256), spread(32, 256, seed=1), clean)
    assert clean.underflow < 0.01
    assert 0.99 < clean.cosine < 0.99999


on_hopper = pytest.mark.skipif(not HAS_UNITS, reason="no Hopper GPU here: FP8 is emulated")


@on_hopper
@pytest.mark.parametrize(("tokens", "outputs", "inputs"), SHAPES)
def test_cuda_products_are_those_of_the_emulation(tokens, outputs, inputs):
    """Sums of the same rounded numbers, in another order and with the units' own intermediate."""
    x = quantize_tiles(spread(tokens, inputs).cuda())
    for w in (
        quantize_blocks(spread(outputs, inputs).cuda()),
        quantize_tiles(spread(outputs, inputs).cuda()),
    ):
        for dtype, tolerance in ((torch.float32, 1e-3), (torch.bfloat16, 4e-3)):
            expected = emulated(x, w, torch.float32).double()
            found = on_units(x, w, dtype).double()
            error = (found - expected).norm() / expected.norm()
            assert error < tolerance, f"{dtype}: {error:.1e}"


@on_hopper
def test_cuda_layer_has_the_gradients_of_the_emulation():
    x, w, dy = spread(300, 256), spread(512, 256, seed=1), spread(300, 512, seed=2).bfloat16()
    results = []
    for device in ("cpu", "cuda"):
        inputs = [t.detach().to(device).requires_grad_() for t in (x, w)]
        y = fp8_linear(*inputs)
        y.backward(dy.to(device))
        results.append([y.detach().cpu(), *(t.grad.cpu() for t in inputs)])
    for name, expected, found in zip(("y", "dx", "dw"), *results, strict=True):
        error = (found.double() - expected.double()).norm() / expected.double().norm()
        # A number at the middle of two E4M3 numbers may go either way where a quotient of the
        # other device differs in its last bit.
        assert error < 5e-3, f"{name}: {error:.1e}"
