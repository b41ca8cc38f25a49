"""When a kernel is compiled and when its program is started again, by a kernel that only notes it.

What a program is given then are addresses, so a program compiled for other types, alignments or
numbers would read memory wrongly.
"""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from model.kernels import triton_launch
from model.kernels.triton_launch import launch


class Noting:
    """A kernel of two tensors, a number and a constant."""

    arg_names = ["x", "y", "count", "WIDTH"]  # noqa: RUF012
    __name__ = "noting"

    def __init__(self) -> None:
        self.compiled: list[object] = []
        self.started: list[object] = []

    def __getitem__(self, grid):
        def compile_and_start(*args, **settings):
            self.compiled.append((grid, args, settings))
            return Program(self)

        return compile_and_start


class Program:
    def __init__(self, kernel: Noting) -> None:
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *given: self.kernel.started.append((grid, given))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(triton_launch, "_compiled", {})
    return Noting()


def test_a_program_is_started_again_with_the_addresses_of_other_tensors(kernel):
    for _ in range(3):
        x, y = torch.empty(8), torch.empty(4, dtype=torch.int32)
        launch(kernel, (7,), x, y, 5, WIDTH=16, warps=8, stages=2)
    ((grid, args, settings),) = kernel.compiled
    assert grid == (7,)
    assert args[2] == 5
    assert settings == {"WIDTH": 16, "num_warps": 8, "num_stages": 2}
    assert len(kernel.started) == 2
    assert kernel.started[-1] == ((7, 1, 1), (x.data_ptr(), y.data_ptr(), 5, 16))


def test_whatever_a_program_depends_on_compiles_another(kernel):
    x, y = torch.empty(8), torch.empty(8, dtype=torch.int32)

    def once(*args, grid=(7,), width=16, warps=4, stages=3):
        launch(kernel, grid, *args, WIDTH=width, warps=warps, stages=stages)

    once(x, y, 5)
    once(x.to(torch.bfloat16), y, 5)
    once(x[1:], y, 5)  # another alignment
    once(x, y, 1)  # Triton makes a constant of 1
    once(x, y, 5, grid=(7, 2))
    once(x, y, 5, width=32)
    once(x, y, 5, warps=8)
    once(x, y, 5, stages=2)
    assert len(kernel.compiled) == 8
    assert not kernel.started
    other = Noting()
    launch(other, (7,), x, y, 5, WIDTH=16)
    assert len(other.compiled) == 1
    once(x, y, 5)
    assert len(kernel.compiled) == 8
    assert len(kernel.started) == 1


def test_constants_stand_in_the_kernels_order(kernel):
    with pytest.raises(TypeError, match="noting takes"):
        launch(kernel, (1,), torch.empty(1), torch.empty(1), 5, HEIGHT=16)
