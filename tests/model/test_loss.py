"""The blocked output layer and cross-entropy against the plain one: values, gradients, memory."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import loss
from model.kernels import loss as compiled
from model.loss import token_nats

pytestmark = pytest.mark.usefixtures("one_thread")

POSITIONS, WIDTH, VOCABULARY = 37, 8, 50


@pytest.fixture
def framework(monkeypatch):
    """Nothing compiled."""
    monkeypatch.setattr(compiled, "serves", lambda *tensors: False)


@pytest.fixture
def small_blocks(monkeypatch, framework):
    """Blocks of five positions: 37 make seven and a rest of two."""
    monkeypatch.setattr(loss, "BLOCK_SCORES", 5 * VOCABULARY)


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(POSITIONS, WIDTH, generator=draw).to(dtype).requires_grad_(),
        torch.randn(VOCABULARY, WIDTH, generator=draw).to(dtype).requires_grad_(),
        torch.randint(VOCABULARY, (POSITIONS,), generator=draw),
        torch.rand(POSITIONS, generator=draw).to(torch.promote_types(dtype, torch.float32)),
    )


def run(function, dtype: torch.dtype) -> list[Tensor]:
    hidden, weight, target, towards = inputs(dtype)
    nats = function(hidden, weight, target)
    return [nats.detach(), *torch.autograd.grad((nats * towards).sum(), (hidden, weight))]


def plain(hidden: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(hidden @ weight.T, target, reduction="none")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-14), (torch.float32, 1e-6), (torch.bfloat16, 2e-2)],
)
def test_blocks_agree_with_the_plain_way_in_float64(small_blocks, dtype, tolerance):
    truth = run(plain, torch.float64)
    for mine, exact in zip(run(token_nats, dtype), truth, strict=True):
        assert (mine.double() - exact).norm() / exact.norm() < tolerance


def test_what_fits_one_block_is_the_plain_way_to_the_bit(framework):
    for mine, exact in zip(run(token_nats, torch.float32), run(plain, torch.float32), strict=True):
        assert torch.equal(mine, exact)


def test_gradients_by_differences(small_blocks):
    hidden, weight, target, _ = inputs(torch.float64)
    assert torch.autograd.gradcheck(lambda h, w: token_nats(h, w, target), (hidden, weight))


def test_scores_are_never_kept_and_never_whole(small_blocks):
    """Nothing of N·V numbers goes from forward to backward, or is made on the way."""
    hidden, weight, target, _ = inputs(torch.float32)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, Tensor):
                sizes.append(result.numel())
            return result

    with Watch():
        token_nats(hidden, weight, target).sum().backward()
    assert max(sizes) == max(5 * VOCABULARY, VOCABULARY * WIDTH)
    assert max(sizes) < POSITIONS * VOCABULARY


def test_autocast_multiplies_in_its_type_and_hands_gradients_back_in_theirs(small_blocks):
    hidden, weight, target, _ = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        nats = token_nats(hidden, weight, target)
    assert nats.dtype == torch.float32
    rounded = token_nats(hidden.bfloat16(), weight.bfloat16(), target)
    assert torch.equal(nats, rounded)
    nats.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_largest_score_may_be_large(small_blocks):
    hidden, weight, target, _ = inputs(torch.float32)
    nats = token_nats(hidden.detach() * 1e4, weight.detach(), target)
    assert nats.isfinite().all()
