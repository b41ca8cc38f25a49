"""The compiled small operations against the plain ones in float64: values, all gradients, bits."""

import dataclasses

import pytest
import torch
from torch import Tensor

from model.config import MoEConfig
from model.kernels import step
from model.layers import rms_norm, swiglu
from model.router import Router, choose

FLOAT32_ERROR = 2e-6
EPS = 1e-6

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not step.serves(torch.ones(1)), reason="no compiled operations here"),
]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def apart(mine: Tensor, exact: Tensor) -> float:
    return float((mine.double() - exact).norm() / exact.norm().clamp(min=1e-12))


def gradients(outputs: list[Tensor], leaves: list[Tensor]) -> list[Tensor]:
    total = sum((y * draw(*y.shape, seed=7 + i).to(y.dtype)).sum() for i, y in enumerate(outputs))
    return [*(y.detach() for y in outputs), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("width", [3, 16, 48, 100])
def test_norm(width, threads):
    def run(dtype):
        leaves = [draw(5, 7, width).to(dtype), draw(width, seed=1).to(dtype)]
        leaves = [leaf.requires_grad_() for leaf in leaves]
        return gradients([rms_norm(*leaves, EPS)], leaves)

    for mine, exact in zip(run(torch.float32), run(torch.float64), strict=True):
        assert apart(mine, exact) < FLOAT32_ERROR


@pytest.mark.parametrize("width", [1, 16, 23])
def test_swiglu(width, threads):
    def run(dtype):
        leaf = (3 * draw(5, 7, 2 * width)).to(dtype).requires_grad_()
        return gradients([swiglu(leaf)], [leaf])

    for mine, exact in zip(run(torch.float32), run(torch.float64), strict=True):
        assert apart(mine, exact) < FLOAT32_ERROR
    assert abs(swiglu(torch.tensor([-1e30, 1.0])).item()) < 1e-6  # exp is clamped at ±87


def test_norm_of_zeros_is_zero_with_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    y = rms_norm(x, torch.ones(8), EPS)
    y.sum().backward()
    assert (y == 0).all()
    assert x.grad.isfinite().all()


ROUTERS = {
    "groups": MoEConfig(
        num_experts=24, experts_per_token=4, expert_width=4, num_groups=6, groups_per_token=2
    ),
    "no groups": MoEConfig(num_experts=10, experts_per_token=3, expert_width=4),
    "many": MoEConfig(
        num_experts=129, experts_per_token=8, expert_width=4, num_groups=3, groups_per_token=2
    ),
    "one expert": MoEConfig(num_experts=5, experts_per_token=1, expert_width=4),
}


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("config", ROUTERS.values(), ids=ROUTERS.keys())
def test_router(config, biased):
    config = dataclasses.replace(config, selection_bias=biased, routed_scale=2.5)

    def run(dtype):
        router = Router(config, 12)
        router.weight.data = draw(*router.weight.shape, seed=1)
        router = router.to(dtype)
        if biased:
            router.selection_bias = 0.1 * draw(config.num_experts, seed=2).to(dtype)
        x = draw(40, 12).to(dtype).requires_grad_()
        routing = router(x)
        order = routing.expert_TK.argsort(-1)
        gate = routing.gate_TK.gather(1, order)
        found = gradients([gate, routing.scores_TE], [x, router.weight])
        return routing.expert_TK.gather(1, order), found

    chosen, found = run(torch.float32)
    expected_chosen, expected = run(torch.float64)
    assert torch.equal(chosen, expected_chosen)
    for mine, exact in zip(found, expected, strict=True):
        assert apart(mine, exact) < FLOAT32_ERROR


def test_router_gradient_through_the_gates_alone():
    config = ROUTERS["groups"]

    def run(dtype):
        logits = draw(30, 24).to(dtype).requires_grad_()
        if dtype == torch.float32:
            rule = step.Rule(4, 6, 2, True, 1.5)
            expert, gate, _ = step.route(logits, None, rule)
        else:
            scores = logits.sigmoid()
            expert = choose(scores.detach(), None, config)
            gate = scores.gather(1, expert)
            gate = 1.5 * gate / (gate.sum(-1, keepdim=True) + 1e-20)
        order = expert.argsort(-1)
        (gate.gather(1, order) * draw(30, 4, seed=3).to(dtype)).sum().backward()
        return logits.grad

    assert apart(run(torch.float32), run(torch.float64)) < FLOAT32_ERROR


def test_equal_scores_and_nans_still_give_distinct_experts():
    rule = step.Rule(6, 6, 2, True, 1.0)  # more than a group has
    for value in (0.0, torch.nan, torch.inf):
        expert, _, _ = step.route(torch.full((3, 24), value), None, rule)
        assert all(len(set(row)) == 6 for row in expert.tolist())
        assert ((expert >= 0) & (expert < 24)).all()


def test_the_same_bits_on_every_repeat(threads):
    x, weight, grad = draw(100, 32).requires_grad_(), draw(32).requires_grad_(), draw(100, 32)
    first = torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), grad)
    for _ in range(5):
        again = torch.autograd.grad(rms_norm(x, weight, EPS), (x, weight), grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_what_is_not_plain_float32_is_left_to_the_framework():
    assert not step.serves(torch.ones(1, dtype=torch.float64))
    assert not step.serves(torch.ones(1, device="meta"))
    assert step.serves(torch.nn.Parameter(torch.ones(1)))
