"""The Triton expert kernels agree with the plain loop in float64: outputs and every gradient.

On a CUDA device they run compiled, elsewhere under Triton's interpreter, which tests their
indexing and their mathematics but neither a compiler nor bfloat16 (the interpreter of 3.9 has
none).
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from model.experts import routed_experts
from model.kernels import triton_fp8_experts, triton_layer
from model.kernels.reference import reference
from model.kernels.triton_sort import CHUNK, count_visits, sort_visits

DEVICE = "cuda" if ON_GPU else "cpu"
# Norm of the difference over norm of the truth; products round what they read.
RELATIVE_ERROR = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
HALF = torch.bfloat16 if ON_GPU else torch.float16

SHAPES = {
    "tokens, width, experts, top-k, expert width": (64, 32, 8, 2, 16),
    "one token": (1, 33, 5, 2, 7),
    "widths of no multiple": (100, 50, 4, 3, 9),
    "most experts empty": (6, 32, 40, 4, 16),
    "one expert takes all": (60, 16, 1, 1, 8),
    "several tiles an expert": (150, 24, 2, 2, 24),
    "several strips of columns": (20, 140, 2, 2, 70),
}


def inputs(shape: tuple[int, ...], skew: float = 0.0) -> tuple[Tensor, ...]:
    tokens, width, experts, top_k, expert_width = shape
    draw = torch.Generator().manual_seed(0)
    wish = torch.randn(tokens, experts, generator=draw)
    wish[:, 0] += skew
    return (
        torch.randn(tokens, width, generator=draw),
        wish.topk(top_k).indices,
        torch.rand(tokens, top_k, generator=draw),
        torch.randn(experts, 2 * expert_width, width, generator=draw) / width**0.5,
        torch.randn(experts, expert_width, width, generator=draw) / expert_width**0.5,
    )


def output_and_gradients(
    values: tuple[Tensor, ...], dtype: torch.dtype, kernel: str, *, recompute: bool = False
) -> list[Tensor]:
    device = DEVICE if kernel == "triton" else "cpu"
    x, expert, gate, w_in, w_out = values
    gate_dtype = torch.promote_types(dtype, torch.float32)
    kinds = ((x, dtype), (gate, gate_dtype), (w_in, dtype), (w_out, dtype))
    leaves = [leaf.detach().to(device, kind).requires_grad_() for leaf, kind in kinds]
    x, gate, w_in, w_out = leaves
    y = routed_experts(x, expert.to(device), gate, w_in, w_out, kernel=kernel, recompute=recompute)
    draw = torch.Generator().manual_seed(1)
    towards = torch.randn(y.shape, generator=draw).to(device, dtype)
    gradients = torch.autograd.grad(y, leaves, towards, retain_graph=True)
    again = torch.autograd.grad(y, leaves, towards)
    assert all(torch.equal(one, two) for one, two in zip(gradients, again, strict=True))
    return [y.detach().cpu(), *(gradient.cpu() for gradient in gradients)]


def largest_error(found: list[Tensor], truth: list[Tensor]) -> float:
    return max(
        float((mine.double() - true).norm() / true.norm())
        for mine, true in zip(found, truth, strict=True)
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_agrees_with_the_plain_loop(shape: tuple[int, ...]) -> None:
    values = inputs(shape)
    truth = output_and_gradients(values, torch.float64, "reference")
    found = output_and_gradients(values, torch.float32, "triton")
    assert largest_error(found, truth) < RELATIVE_ERROR[torch.float32]


def test_agrees_in_half_precision() -> None:
    values = inputs(SHAPES["several strips of columns"])
    truth = output_and_gradients(values, torch.float64, "reference")
    found = output_and_gradients(values, HALF, "triton")
    assert largest_error(found, truth) < RELATIVE_ERROR[HALF]


def test_a_popular_expert_beside_empty_ones() -> None:
    values = inputs((120, 16, 6, 1, 16), skew=100.0)
    truth = output_and_gradients(values, torch.float64, "reference")
    found = output_and_gradients(values, torch.float32, "triton")
    assert largest_error(found, truth) < RELATIVE_ERROR[torch.float32]


def test_same_bits_on_every_repeat_and_when_computed_again() -> None:
    values = inputs((40, 32, 4, 3, 16))
    first = output_and_gradients(values, torch.float32, "triton")
    for recompute in (False, True):
        again = output_and_gradients(values, torch.float32, "triton", recompute=recompute)
        assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))


def test_recomputing_keeps_no_activations() -> None:
    x, expert, gate, w_in, w_out = (value.to(DEVICE) for value in inputs((64, 32, 8, 2, 16)))
    x.requires_grad_()

    def kept_floats(*, recompute: bool) -> int:
        y = routed_experts(x, expert, gate, w_in, w_out, kernel="triton", recompute=recompute)
        given = {tensor.data_ptr() for tensor in (x, gate, w_in, w_out)}
        kept = (t for t in y.grad_fn.saved_tensors if t is not None and t.is_floating_point())  # type: ignore[union-attr]
        return sum(t.numel() for t in kept if t.data_ptr() not in given)

    assert kept_floats(recompute=False) == 64 * 2 * 2 * 16  # gate and up of every visit
    assert kept_floats(recompute=True) == 0


@pytest.mark.parametrize(("tokens", "experts", "top_k"), [(3, 4, 2), (CHUNK, 7, 3), (700, 300, 1)])
def test_visits_are_sorted_stably_and_cut_into_tiles(tokens: int, experts: int, top_k: int) -> None:
    draw = torch.Generator().manual_seed(2)
    wish = torch.randn(tokens, experts, generator=draw)
    wish[:, 1] -= 100  # an expert without a visit
    expert_TK = wish.topk(top_k).indices
    visits = sort_visits(expert_TK.to(DEVICE), experts, tile_rows=16)

    order = expert_TK.flatten().argsort(stable=True)
    load = expert_TK.flatten().bincount(minlength=experts)
    start = torch.cat([torch.zeros(1, dtype=torch.int64), load.cumsum(0)])
    assert visits.slot_P.tolist() == order.tolist()
    assert visits.row_TK.flatten()[visits.slot_P.long()].tolist() == list(range(len(order)))
    assert visits.start_E.tolist() == start.tolist()
    counted = count_visits(expert_TK.to(DEVICE), experts)
    assert counted.dtype == load.dtype
    assert counted.tolist() == load.tolist()
    expected = [
        (expert, row)
        for expert in range(experts)
        for row in range(int(start[expert]), int(start[expert + 1]), 16)
    ]
    used = int(visits.num_tiles)
    tables = zip(visits.tile_expert[:used].tolist(), visits.tile_row[:used].tolist(), strict=True)
    assert list(tables) == expected
    assert used <= visits.most_tiles


def test_fp8_products_follow_their_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    """With inputs that E4M3 holds exactly only the inner activations are rounded."""
    if not ON_GPU:  # the interpreter has no bfloat16
        for module in (triton_layer, triton_fp8_experts):
            monkeypatch.setattr(module, "FP8_RESULT", torch.float32)
    draw = torch.Generator().manual_seed(4)

    def exact(*shape: int, power: int) -> Tensor:
        # 7 is E4M3's largest number over a power of two, so that the scales are powers of two.
        value = torch.randint(-7, 8, shape, generator=draw)
        value[..., ::128] = 7
        return value * 2.0**power

    tokens, width, experts, top_k, expert_width = 48, 256, 3, 2, 128
    x = exact(tokens, width, power=-3) * 2.0 ** torch.randint(-1, 2, (tokens, 1), generator=draw)
    w_in = exact(experts, 2 * expert_width, width, power=-6)
    w_in[1] /= 4
    w_out, towards = exact(experts, expert_width, width, power=-5), exact(tokens, width, power=0)
    _, expert, gate, *_ = inputs((tokens, width, experts, top_k, expert_width))

    def all_of(function, dtype: torch.dtype, device: str) -> list[Tensor]:  # type: ignore[no-untyped-def]
        leaves = [t.to(device, dtype, copy=True).requires_grad_() for t in (x, gate, w_in, w_out)]
        y = function(leaves[0], expert.to(device), *leaves[1:])
        gradients = torch.autograd.grad(y, leaves, towards.to(device, y.dtype))
        return [y.detach().cpu(), *(gradient.cpu() for gradient in gradients)]

    truth = all_of(reference, torch.float64, "cpu")
    found = all_of(triton_fp8_experts.routed_experts, torch.float32, DEVICE)
    assert largest_error(found, truth) < (0.03 if ON_GPU else 0.06)
