"""The compiled output layer and cross-entropy against the plain way in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.kernels import loss

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not loss.serves(torch.ones(1)), reason="no compiled loss here"),
]

FLOAT32_ERROR = 5e-6  # a sum over 8,192 words, one after another
SHAPES = {
    "less than a vector": (3, 5, 7),
    "one block": (90, 16, 257),
    "some blocks and a rest": (150, 8, 8192),
    "panels that are not of equal width": (300, 9, 9001),
    "one word": (5, 8, 1),
    "large enough for tiles": (300, 70, 130),
}


def inputs(shape) -> tuple[Tensor, Tensor, Tensor]:
    positions, width, vocabulary = shape
    draw = torch.Generator().manual_seed(0)
    return (
        torch.randn(positions, width, generator=draw).requires_grad_(),
        torch.randn(vocabulary, width, generator=draw).requires_grad_(),
        torch.randint(vocabulary, (positions,), generator=draw),
    )


def towards(kind: str, positions: int) -> Tensor:
    if kind == "mean":
        return torch.full((positions,), 1 / positions)
    weights = torch.randn(positions, generator=torch.Generator().manual_seed(1))
    return torch.where(torch.arange(positions) % 3 == 0, 0.0, weights)


@pytest.mark.parametrize("kind", ["mean", "uneven"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_nats_and_gradients(shape, kind, threads, products):
    hidden, weight, target = inputs(shape)
    factor = towards(kind, len(hidden))
    nats = loss.token_nats(hidden, weight, target)
    found = [nats, *torch.autograd.grad((nats * factor).sum(), (hidden, weight))]
    with torch.no_grad():
        assert torch.equal(loss.token_nats(hidden, weight, target), nats)
    exact_hidden, exact_weight = hidden.double(), weight.double()
    exact = F.cross_entropy(exact_hidden @ exact_weight.T, target, reduction="none")
    leaves = (hidden, weight)
    truth = [exact, *torch.autograd.grad((exact * factor.double()).sum(), leaves)]
    for mine, right in zip(found, truth, strict=True):
        assert (mine.double() - right).norm() <= FLOAT32_ERROR * right.norm().clamp(min=1)


@pytest.mark.parametrize("products", ["own"], indirect=True)
def test_in_panels_the_bits_do_not_depend_on_the_threads(products, small_is_shared):
    hidden, weight, target = inputs(SHAPES["panels that are not of equal width"])
    assert loss.takes_panels(len(weight))
    assert not loss.takes_panels(4096)
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        nats = loss.token_nats(hidden, weight, target)
        found.append([nats, *torch.autograd.grad(nats.mean(), (hidden, weight))])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_a_backward_pass_may_be_done_twice():
    hidden, weight, target = inputs(SHAPES["one block"])
    total = loss.token_nats(hidden, weight, target).mean()
    first = torch.autograd.grad(total, (hidden, weight), retain_graph=True)
    again = torch.autograd.grad(2 * total, (hidden, weight))
    assert all(torch.equal(2 * a, b) for a, b in zip(first, again, strict=True))


def test_without_gradients_the_nats_are_the_same_bits():
    hidden, weight, target = inputs(SHAPES["some blocks and a rest"])
    nats = loss.token_nats(hidden, weight, target)
    with torch.no_grad():
        assert torch.equal(loss.token_nats(hidden, weight, target), nats)


@pytest.mark.parametrize("wrong", [-1, 257])
def test_a_target_outside_the_vocabulary_is_refused(wrong):
    hidden, weight, target = inputs(SHAPES["one block"])
    target[4] = wrong
    with pytest.raises(IndexError, match="vocabulary of 257"):
        loss.token_nats(hidden, weight, target)


def test_large_scores_are_finite_and_no_number_stays_none():
    hidden, weight, target = inputs(SHAPES["one block"])
    nats = loss.token_nats(hidden * 1e4, weight, target)
    assert nats.isfinite().all()
    broken = hidden.detach().clone()
    broken[7, 3] = torch.nan
    nats = loss.token_nats(broken, weight, target)
    assert nats.isnan().tolist() == [i == 7 for i in range(len(nats))]
