"""The step's small operations in Triton against the plain ways, outputs and all gradients.

On a CUDA device they run compiled, elsewhere under Triton's interpreter, which has no bfloat16.
"""

from __future__ import annotations

import pytest
import torch

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from model.attention import Attention
from model.config import AttentionConfig
from model.kernels import on_gpu, step, triton_step
from model.layers import Rotary, rms_norm, swiglu

DEVICE = "cuda" if ON_GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16] if ON_GPU else [torch.float32]
EPS = 1e-6


@pytest.fixture
def ways(monkeypatch):
    """Run something by the plain way, then by the kernels, with gradients of the same random sum.

    Hands back (plain in float64, plain, kernels), each a list of the outputs and gradients.
    """
    monkeypatch.setattr(step, "serves", lambda *_: False)

    def run(compute, *inputs, seed=9):
        found = []
        for dtype, module in ((torch.float64, None), (None, None), (None, triton_step)):
            monkeypatch.setattr(on_gpu, "module_for", lambda *_, module=module: module)
            leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in inputs]
            outputs = compute(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            generator = torch.Generator().manual_seed(seed)
            grads = [
                torch.randn(y.shape, generator=generator).to(y.device, y.dtype) for y in outputs
            ]
            torch.autograd.backward(outputs, grads)
            found.append([*(y.detach() for y in outputs), *(leaf.grad for leaf in leaves)])
        return found

    return run


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def assert_agree(exact, plain, fused):
    """Of the plain way's type, and as near to the truth: in float32 to the last bits."""
    for true, expected, found in zip(exact, plain, fused, strict=True):
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        scale = true.norm()
        error = (found.double() - true).norm() / scale
        if found.dtype == torch.float32:
            assert error < 2e-6
        # Of a handful of numbers the plain way may be lucky: one unit in bfloat16's last place.
        lucky = 1e-6 if found.dtype == torch.float32 else 2.0**-8
        assert error < max(1.2 * (expected.double() - true).norm() / scale, lucky)
        torch.testing.assert_close(
            found.double(),
            true,
            rtol=1e-4 if found.dtype == torch.float32 else 3e-2,
            atol=(1e-5 if found.dtype == torch.float32 else 2e-2) * true.abs().max().item(),
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(33, 64), (7, 2048), (5, 300), (1, 20)])
def test_cuda_norm_is_the_plain_one(rows, width, dtype, ways):
    x, weight = draw(3, rows, width, dtype=dtype), draw(width, seed=1, dtype=dtype)
    assert_agree(*ways(lambda x, weight: rms_norm(x, weight, EPS), x, weight))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(33, 16), (9, 512), (3, 1500)])
def test_cuda_swiglu_is_the_plain_one(rows, width, dtype, ways):
    assert_agree(*ways(swiglu, draw(2, rows, 2 * width, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("queries", "keys", "width", "rotary_dim"), [(4, 2, 16, 8), (3, 1, 24, 24), (2, 2, 128, 64)]
)
def test_cuda_heads_are_the_plain_ones(queries, keys, width, rotary_dim, dtype, ways):
    config = AttentionConfig(
        num_heads=queries, num_kv_heads=keys, head_dim=width, rotary_dim=rotary_dim
    )
    attention, rotary = Attention(config, 8, EPS), Rotary(config)

    def heads(qkv_BTF, q_weight_H, k_weight_H):
        weights = {"q_norm.weight": q_weight_H, "k_norm.weight": k_weight_H}
        attention.forward = lambda qkv_BTF: attention._prologue(qkv_BTF, rotary)
        return torch.func.functional_call(attention, weights, (qkv_BTF,))

    qkv_BTF = draw(2, 21, (queries + 2 * keys) * width, dtype=dtype)
    weights = draw(width, seed=1, dtype=dtype), draw(width, seed=2, dtype=dtype)
    assert_agree(*ways(heads, qkv_BTF, *weights))


def test_gradients_in_the_layout_of_attention_are_read_by_their_strides(ways):
    """As attention hands them back: positions outside heads, or one number for all."""
    config = AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=16, rotary_dim=8)
    sizes, tables = triton_step.Heads(2, 1, 16, 8), Rotary(config)
    tables_TNH = tables.tables(5, torch.device(DEVICE), torch.float32)
    qkv_BTF, weight_H = draw(3, 5, 64), draw(16, seed=1)

    def gradient(*grads):
        leaf = qkv_BTF.clone().requires_grad_()
        outputs = triton_step.heads(leaf, weight_H, weight_H, tables_TNH, EPS, sizes)
        torch.autograd.backward(outputs, grads)
        return leaf.grad

    shapes = ((3, 2, 5, 16), (3, 1, 5, 16), (3, 1, 5, 16))
    grads = [draw(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    outside = [g.transpose(1, 2).contiguous().transpose(1, 2) for g in grads]
    innermost = [g.mT.contiguous().mT for g in grads]
    assert torch.equal(gradient(*grads), gradient(*outside))
    assert torch.equal(gradient(*grads), gradient(*innermost))
    ones = [torch.ones(shape, device=DEVICE) for shape in shapes]
    same = [torch.ones((), device=DEVICE).expand(shape) for shape in shapes]
    assert torch.equal(gradient(*ones), gradient(*same))


def test_a_norm_whose_gradient_many_programs_add_up_is_the_same_every_time(monkeypatch):
    monkeypatch.setattr(triton_step, "NORM_PROGRAMS", 3)
    x, weight, grad = draw(200, 64), draw(64, seed=1).requires_grad_(), draw(200, 64, seed=2)
    found = []
    for _ in range(2):
        weight.grad = None
        triton_step.rms_norm(x, weight, EPS).backward(grad)
        found.append(weight.grad)
    assert torch.equal(*found)
