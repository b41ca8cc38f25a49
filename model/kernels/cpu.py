"""The fused CPU kernel behind autograd: one call forward, one backward, fp32 or bfloat16 products.

The mathematics, the tiling and the threading are described at the top of ``cpu.cpp`` and of the
headers it names; ``benchmarks/experts.py`` measures it against the alternatives.
"""

# Shapes: T tokens, D model width, E experts, K experts per token, H expert width.

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.kernels.compiled import load_library
from model.kernels.recording import call

Unit = Literal["vectors", "tiles"]
"""How products are made: of rows as they lie, in vector registers; or of packed squares, on the
tile unit (AMX) where there is one."""

FP32_TILES_FROM_WIDTH = 32
"""Expert width below which fp32 products were never faster on tiles (LOG.md, 2026-11-26)."""
FP32_TILES_FROM_PRODUCTS = 450_000
"""Visits · width · expert width from which they were: packing an expert's weights must pay off."""


def routed_experts(
    x_TD: Tensor,
    expert_TK: Tensor,
    gate_TK: Tensor,
    w_gate_up_E2HD: Tensor,
    w_down_EHD: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    recompute: bool = False,
    unit: Unit | None = None,
) -> Tensor:
    """Weighted sum of each token's experts, [T, D]; gradients for all but ``expert_TK``.

    Args:
        x_TD: tokens, fp32.
        expert_TK: chosen experts, int64, each row without repeats.
        gate_TK: their weights, fp32.
        w_gate_up_E2HD: [E, 2H, D], gate rows first.
        w_down_EHD: [E, H, D].
        dtype: fp32, or bfloat16: the factors of every product are rounded to it; accumulation,
            the output and the gradients stay fp32. Needs ``has_bfloat16()``.
        recompute: save nothing for the backward pass, which then recomputes the pre-activations.
        unit: how products are made; None takes :func:`unit_for`. In tiles an fp32 factor is
            split exactly into three bfloat16, so the result is as exact as fp32 (``tiles.h``).

    Raises:
        NoCompiledKernel: this machine cannot build the kernel.
    """
    products = products_for(dtype, expert_TK, w_down_EHD, unit)
    y_TD: Tensor = _RoutedExperts.apply(
        x_TD, expert_TK, gate_TK, w_gate_up_E2HD, w_down_EHD, products, recompute
    )
    return y_TD


def unit_for(dtype: torch.dtype, width: int, expert_width: int, visits: float) -> Unit:
    """The faster way to make these products, where :func:`can_multiply`.

    Args:
        dtype: of the products.
        width: of the model.
        expert_width: inner width of an expert.
        visits: tokens of an expert, on average.
    """
    is_rounded = dtype == torch.bfloat16
    if not has_tiles():
        # Where both run in vector registers, tiles were up to a fifth slower and ahead nowhere by
        # more than the noise (Zen 4; LOG.md, 2026-11-27).
        return "tiles" if is_rounded and expert_width % 2 else "vectors"
    is_much = visits * width * expert_width >= FP32_TILES_FROM_PRODUCTS
    is_fast = expert_width >= FP32_TILES_FROM_WIDTH and is_much
    return "tiles" if is_rounded or is_fast else "vectors"


def can_multiply(dtype: torch.dtype) -> bool:
    """Whether this CPU makes products of ``dtype``."""
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16())


def units(dtype: torch.dtype) -> list[Unit]:
    """All ways worth trying for these products, with any even expert width."""
    if dtype == torch.float32:
        return ["vectors", "tiles"] if has_tiles() else ["vectors"]
    return ["vectors", "tiles"] if has_bfloat16() else []


def has_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16, in vectors (AVX512-BF16) or on a tile unit."""
    return bool(_kernel().wt_has_squares())


def has_tiles() -> bool:
    """Whether this CPU has a tile unit (AMX-BF16) and the system lets this process use it."""
    return bool(_kernel().wt_has_tiles())


class Products(NamedTuple):
    """How the products of a layer are computed."""

    bf16: bool
    tiles: bool


def products_for(
    dtype: torch.dtype, expert_TK: Tensor, w_down_EHD: Tensor, unit: Unit | None = None
) -> Products:
    """Those of ``dtype``, on ``unit`` or else the faster one."""
    num_experts, expert_width, width = w_down_EHD.shape
    unit = unit or unit_for(dtype, width, expert_width, expert_TK.numel() / num_experts)
    return Products(dtype == torch.bfloat16, unit == "tiles")


def forward(
    inputs: Sequence[Tensor], products: Products, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """The output for (x_TD, expert_TK, gate_TK, w_gate_up, w_down), all contiguous; and, with
    ``keep``, what :func:`backward` need not recompute. No gradient is recorded.
    """
    shape = _checked_shape(*inputs)
    expert_width = shape[3]
    bf16, tiles = products
    if (tiles or bf16) and not has_bfloat16():
        raise ValueError("bfloat16 and unit='tiles' need a CPU with AVX512-BF16")
    if bf16 and not tiles and expert_width % 2:
        raise ValueError(
            f"bfloat16 in unit='vectors' needs an even expert width, got {expert_width}"
        )
    x_TD, expert_TK, *_ = inputs
    kernel, saved = _kernel(), None
    if keep:
        pairs, num_experts = expert_TK.numel(), shape[2]
        size = kernel.wt_saved_floats(pairs, num_experts, expert_width, bf16, tiles)
        saved = x_TD.new_empty(size)
    y_TD = torch.empty_like(x_TD)
    _call(kernel.wt_experts_forward, shape, (*inputs, y_TD, saved), products)
    return y_TD, saved


def backward(
    inputs: Sequence[Tensor], saved: Tensor | None, dy_TD: Tensor, products: Products
) -> list[Tensor]:
    """Gradients of x_TD, gate_TK, w_gate_up and w_down."""
    x_TD, _, gate_TK, w_in, w_out = inputs
    grads = [torch.empty_like(t) for t in (x_TD, gate_TK, w_in, w_out)]
    tensors = (*inputs, saved, dy_TD.contiguous(), *grads)
    num_tokens, width = x_TD.shape
    shape = (num_tokens, width, *w_out.shape[:2], gate_TK.shape[1])  # checked in the forward pass
    _call(_kernel().wt_experts_backward, shape, tensors, products)
    return grads


class _RoutedExperts(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        expert_TK: Tensor,
        gate_TK: Tensor,
        w_in: Tensor,
        w_out: Tensor,
        products: Products,
        recompute: bool,
    ) -> Tensor:
        inputs = [t.contiguous() for t in (x_TD, expert_TK, gate_TK, w_in, w_out)]
        keep = any(ctx.needs_input_grad) and not recompute
        y_TD, saved = forward(inputs, products, keep=keep)
        ctx.save_for_backward(*inputs, saved)
        ctx.products = products
        return y_TD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, saved = ctx.saved_tensors
        dx_TD, dgate_TK, dw_in, dw_out = backward(inputs, saved, dy_TD, ctx.products)
        return dx_TD, None, dgate_TK, dw_in, dw_out, None, None


def _checked_shape(
    x_TD: Tensor, expert_TK: Tensor, gate_TK: Tensor, w_in: Tensor, w_out: Tensor
) -> tuple[int, int, int, int, int]:
    """(T, D, E, H, K), after checking every shape and type that the kernel relies on."""
    num_tokens, width = x_TD.shape
    num_experts, expert_width, _ = w_out.shape
    top_k = expert_TK.shape[1]
    expected = {
        "expert_TK": (expert_TK, (num_tokens, top_k), torch.int64),
        "gate_TK": (gate_TK, (num_tokens, top_k), torch.float32),
        "w_gate_up": (w_in, (num_experts, 2 * expert_width, width), torch.float32),
        "w_down": (w_out, (num_experts, expert_width, width), torch.float32),
        "x_TD": (x_TD, (num_tokens, width), torch.float32),
    }
    for name, (tensor, shape, dtype) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype != dtype or tensor.device.type != "cpu":
            raise ValueError(
                f"{name}: expected {dtype} {shape} on the CPU, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
    return num_tokens, width, num_experts, expert_width, top_k


def _call(
    function: Callable[..., int],
    shape: tuple[int, ...],
    tensors: Sequence[Tensor | None],
    products: Products,
) -> None:
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    plain = [*shape, *pointers, *products, torch.get_num_threads()]
    if call(function, plain, tuple(tensors)) != 0:
        raise IndexError(f"expert_TK holds an index outside 0 to {shape[2] - 1}")


@cache
def _kernel() -> ctypes.CDLL:
    library = load_library()
    sizes, pointer, flag = [ctypes.c_int64] * 5, ctypes.c_void_p, ctypes.c_int32
    library.wt_saved_floats.argtypes = [*[ctypes.c_int64] * 3, flag, flag]
    library.wt_saved_floats.restype = ctypes.c_int64
    library.wt_experts_forward.argtypes = [*sizes, *[pointer] * 7, *[flag] * 3]
    library.wt_experts_forward.restype = ctypes.c_int32
    library.wt_experts_backward.argtypes = [*sizes, *[pointer] * 11, *[flag] * 3]
    library.wt_experts_backward.restype = ctypes.c_int32
    return library
