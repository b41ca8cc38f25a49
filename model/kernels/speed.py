"""How long each kernel takes for one expert layer of the laptop's ladder, on this machine."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from model.experts import routed_experts
from model.kernels import cpu, on_gpu
from model.kernels.compiled import NoCompiledKernel, load_library

TOKENS, WIDTH, EXPERTS, TOP_K, EXPERT_WIDTH = 512, 64, 32, 4, 16


def kernels_here(device: str, dtype: torch.dtype) -> list[str]:
    """Names of the kernels that can compute that layer, the simplest first."""
    names = ["reference", "grouped"]
    if device == "cuda":
        return names + ["triton"] * (on_gpu.module("experts") is not None)
    try:
        load_library()
    except NoCompiledKernel:
        return names
    return names + ["cpu"] * cpu.can_multiply(dtype)


def layer_seconds(kernel: str, device: str, dtype: torch.dtype, measure_s: float) -> float:
    """Forward and backward: the shortest of as many tries as fit into ``measure_s``, at least 2."""
    draw = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw).to(device)

    x_TD = randn(TOKENS, WIDTH).requires_grad_()
    gate_TK = randn(TOKENS, TOP_K).requires_grad_()
    w_gate_up = randn(EXPERTS, 2 * EXPERT_WIDTH, WIDTH).requires_grad_()
    w_down = randn(EXPERTS, EXPERT_WIDTH, WIDTH).requires_grad_()
    expert_TK = randn(TOKENS, EXPERTS).topk(TOP_K).indices
    towards_TD = randn(TOKENS, WIDTH)

    def once() -> float:
        began = time.perf_counter()
        y_TD = routed_experts(
            x_TD, expert_TK, gate_TK, w_gate_up, w_down, dtype=dtype, kernel=kernel
        )
        torch.autograd.grad(y_TD, (x_TD, gate_TK, w_gate_up, w_down), towards_TD)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()  # compiles
    ends = time.perf_counter() + measure_s
    best = min(once(), once())
    while time.perf_counter() < ends:
        best = min(best, once())
    return best
