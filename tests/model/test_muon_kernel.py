"""The compiled step of Muon against the iteration as it acts on singular values, in float64."""

import math

import pytest
import torch
from torch import Tensor

from model.kernels import muon
from model.kernels.muon import Slot, Stack

pytestmark = pytest.mark.skipif(muon.operations.library is None, reason="no compiled step here")

NUMBERS = {"momentum": 0.95, "decay": 0.02, "rate": 0.01}
SHAPES = [(1, 1), (1, 9), (9, 1), (3, 7), (16, 16), (14, 112), (112, 14), (20, 300), (65, 67)]


def expected(slot: Slot) -> tuple[Tensor, Tensor]:
    """Weights and momentum after the step, by singular values: each step maps one to a polynomial
    of it and leaves the singular vectors."""
    start, num, rows, cols = slot.stack
    part = slice(start, start + num * rows * cols)
    w, g, m = (t.flatten()[part].view(num, rows, cols).double() for t in slot[1:])
    m = 0.95 * m + 0.05 * g
    u, s, vt = torch.linalg.svd(0.05 * g + 0.95 * m, full_matrices=False)
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    along = u @ (s[..., None] * vt)
    w = w * (1 - 0.02) - 0.01 * 0.2 * math.sqrt(max(rows, cols)) * along
    return w.float(), m.float()


def slots_of(shape, num=3, before=5, after=4) -> Slot:
    """A stack inside a longer parameter, whose other numbers no step may touch."""
    draw = torch.Generator().manual_seed(math.prod(shape))
    length = before + num * math.prod(shape) + after
    w, g, m = (torch.randn(length, generator=draw) for _ in range(3))
    return Slot(Stack(before, num, *shape), w, g, m * 0.1)


def copied(slot: Slot) -> Slot:
    return Slot(slot.stack, *(t.clone() for t in slot[1:]))


@pytest.mark.usefixtures("threads")
def test_a_step_is_the_polynomial_of_the_singular_values():
    slots = [slots_of(shape) for shape in SHAPES]
    before = [copied(slot) for slot in slots]
    assert muon.serves(slots)
    muon.update(slots, **NUMBERS)
    for slot, was in zip(slots, before, strict=True):
        w, m = expected(was)
        start, num, rows, cols = slot.stack
        end = start + num * rows * cols
        torch.testing.assert_close(slot.momentum[start:end], m.flatten(), rtol=1e-6, atol=1e-7)
        moved = slot.weights[start:end] - 0.98 * was.weights[start:end]
        exact = w.flatten() - 0.98 * was.weights[start:end]
        assert (moved - exact).norm() < 1e-4 * exact.norm(), slot.stack
        assert torch.equal(slot.grad, was.grad)
        for mine, other in zip(slot[1:], was[1:], strict=True):
            assert torch.equal(mine[:start], other[:start])
            assert torch.equal(mine[end:], other[end:])


def test_the_bits_hang_on_neither_threads_nor_neighbours(small_is_shared):
    slots = [slots_of(shape) for shape in SHAPES]
    alone = [copied(slot) for slot in slots]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        muon.update(slots, **NUMBERS)
        torch.set_num_threads(1)
        for slot in reversed(alone):
            muon.update([slot], **NUMBERS)
    finally:
        torch.set_num_threads(before)
    for mine, other in zip(slots, alone, strict=True):
        assert all(map(torch.equal, mine[1:], other[1:]))


def test_an_expert_that_saw_nothing_only_decays():
    slot = slots_of((6, 10), num=2, before=0, after=0)
    slot.grad.zero_()
    slot.momentum.zero_()
    was = slot.weights.clone()
    muon.update([slot], **NUMBERS)
    torch.testing.assert_close(slot.weights, 0.98 * was, rtol=1e-6, atol=0)


def test_no_scale_of_a_gradient_matters():
    """From 1e-20, whose squares are still numbers in float32 beside the floor of the norm, up."""
    steps = []
    for scale in (1.0, 1e-3, 1e6):
        slot = slots_of((8, 24), before=0, after=0)
        slot.momentum.zero_()
        slot.grad.mul_(scale)
        muon.update([slot], momentum=0.95, decay=0.0, rate=1.0)
        steps.append(slot.weights)
    for step in steps[1:]:
        torch.testing.assert_close(step, steps[0], rtol=1e-4, atol=1e-4)


def test_what_it_cannot_serve():
    slot = slots_of((4, 4))
    assert muon.serves([slot])
    assert not muon.serves([slot._replace(grad=slot.grad.double())])
    assert not muon.serves([slot._replace(weights=torch.zeros(2, 60)[:, ::2])])
