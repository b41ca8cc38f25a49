"""The router's choice on a GPU against the plain one: choices, gates and the scores' gradient."""

from __future__ import annotations

import dataclasses

import pytest
import torch

ON_GPU = torch.cuda.is_available()
pytest.importorskip("triton", reason="Triton is not installed")

from model.config import MoEConfig
from model.kernels import triton_router
from model.router import choose, rule_of

DEVICE = "cuda" if ON_GPU else "cpu"
BASE = MoEConfig(
    num_experts=24, experts_per_token=4, expert_width=4, num_groups=4, groups_per_token=2
)
CONFIGS = {
    "groups": BASE,
    "no group limit": dataclasses.replace(BASE, num_groups=1, groups_per_token=1),
    "one group kept": dataclasses.replace(BASE, groups_per_token=1),
    "odd groups": dataclasses.replace(BASE, num_experts=15, num_groups=5, groups_per_token=3),
    "groups of two": dataclasses.replace(BASE, num_groups=12, groups_per_token=2),
    "every expert": dataclasses.replace(BASE, experts_per_token=24, groups_per_token=4),
    "one expert": dataclasses.replace(BASE, experts_per_token=1),
    "gates as they are": dataclasses.replace(BASE, normalize_gates=False, routed_scale=2.5),
    "Ling": MoEConfig(
        num_experts=256,
        experts_per_token=8,
        expert_width=4,
        num_groups=8,
        groups_per_token=4,
        routed_scale=2.5,
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def draw(config: MoEConfig, tokens: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(tokens, config.num_experts, generator=generator)
    return scores.to(DEVICE), (0.2 * torch.randn(config.num_experts, generator=generator)).to(
        DEVICE
    )


def plain(scores, bias, config):
    """Experts in falling order, their gates as the router's plain way has them."""
    biased = scores.detach() if bias is None else scores.detach() + bias
    expert = choose(biased, None, config)
    order = biased.gather(1, expert).argsort(1, descending=True)
    expert = expert.gather(1, order)
    gate = scores.gather(1, expert)
    if config.normalize_gates and config.experts_per_token > 1:
        gate = gate / (gate.sum(-1, keepdim=True) + 1e-20)
    return expert, gate * config.routed_scale


@every_config
@pytest.mark.parametrize("biased", [True, False])
def test_choices_gates_and_gradient_are_those_of_the_plain_way(config, biased):
    scores, bias = draw(config)
    bias = bias if biased else None
    mine = scores.clone().requires_grad_()
    expert, gate = triton_router.choose(mine, bias, rule_of(config))
    true = scores.double().requires_grad_()
    expected, exact = plain(true, bias, config)
    assert torch.equal(expert, expected)
    assert torch.allclose(gate.double(), exact, rtol=1e-6, atol=0)
    aim = torch.rand(gate.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    gate.backward(aim)
    exact.backward(aim.double())
    scale = true.grad.abs().max()
    assert (mine.grad.double() - true.grad).abs().max() <= 1e-6 * scale


@pytest.mark.filterwarnings("ignore:invalid value")  # the interpreter computes in NumPy
def test_a_token_without_numbers_still_has_distinct_experts():
    """What diverges must end with the run's own words, not with a write out of bounds."""
    config = CONFIGS["odd groups"]
    for broken in (torch.nan, torch.inf, -torch.inf):
        scores, bias = draw(config, tokens=5)
        scores[1], scores[3, ::2] = broken, broken
        expert, _ = triton_router.choose(scores, bias, rule_of(config))
        for row in expert.tolist():
            assert len(set(row)) == config.experts_per_token
            assert set(row) <= set(range(config.num_experts))
            assert len({number // 3 for number in row}) <= config.groups_per_token


def test_the_same_bits_on_every_repeat():
    config = CONFIGS["Ling"]
    scores, bias = draw(config, tokens=101)
    first, again = (triton_router.choose(scores, bias, rule_of(config)) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
