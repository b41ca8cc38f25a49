"""The Triton kernels that round: one-byte moments and FP8, against the plain ways.

On a CUDA device they run compiled, elsewhere under Triton's interpreter, which has no bfloat16 and
loses a carry now and then when it rounds to FP8.
"""

from __future__ import annotations

import pytest
import torch

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from model.fp8 import TILE, Quantized, quantize_blocks_plainly, quantize_tiles_plainly
from model.kernels import on_gpu, triton_adamw8bit, triton_fp8
from model.training.adamw8bit import AdamW8bit

DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]


def spread(*shape, seed=0):
    """Numbers over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = (2 * torch.randn(shape, generator=generator)).exp()
    return torch.randn(shape, generator=generator) * size


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4096 + 77,), (64, 300)])
def test_cuda_update_is_the_plain_one(shape, dtype, monkeypatch):
    monkeypatch.setattr(on_gpu, "module_for", lambda *_: triton_adamw8bit)
    results = []
    for is_fused in (False, True):
        parameter = torch.nn.Parameter(spread(*shape).to(DEVICE, dtype))
        groups = [{"params": [parameter], "weight_decay": 0.1}]
        settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8, "is_fused": is_fused}
        optimizer = AdamW8bit(groups, **settings)
        for step in range(3):
            grad = spread(*shape, seed=step + 1) * 1e-6
            parameter.grad = grad.to(DEVICE, dtype)
            optimizer.step()
        results.append({"weight": parameter.detach().float(), **optimizer.state[parameter]})
    plain, fused = results
    for name in ("exp_avg", "exp_avg_sq"):
        apart = (plain[name].int() - fused[name].int()).abs()
        assert apart.max() <= 1, name
        assert (apart > 0).float().mean() < 1e-3, name
        scales = fused[f"{name}_scale"], plain[f"{name}_scale"]
        torch.testing.assert_close(*scales, rtol=1e-5, atol=0)
    # A last bit that differs may send a code, or a bfloat16 weight, the other way.
    same = torch.isclose(fused["weight"], plain["weight"], rtol=1e-5, atol=1e-7)
    assert same.float().mean() > 0.998
    torch.testing.assert_close(fused["weight"], plain["weight"], rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), [(256, 512), (77, 300), (1, 128)])
def test_cuda_rounds_to_fp8_as_the_plain_way(rows, columns, dtype):
    x = spread(rows, columns).to(DEVICE, dtype)
    for operand in (x, x.t()):
        for kernel, plainly in (
            (triton_fp8.tiles, quantize_tiles_plainly),
            (triton_fp8.blocks, quantize_blocks_plainly),
        ):
            found, expected = Quantized(*kernel(operand, TILE)), plainly(operand)
            assert torch.equal(found.scale, expected.scale)
            differ = (found.values.float() != expected.values.float()).sum()
            assert differ <= (0 if ON_GPU else 0.2 * differ.new_tensor(found.values.numel()))
