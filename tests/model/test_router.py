"""The router's choice and gates: what they must be, and what must not move them."""

import dataclasses

import pytest
import torch

from model.config import MoEConfig
from model.router import Router, choose, logits, sum_of_best_two

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH, TOKENS = 9, 64
DEVICES = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
BASE = MoEConfig(
    num_experts=24, experts_per_token=4, expert_width=4, num_groups=4, groups_per_token=2
)
CONFIGS = {
    "grouped": BASE,
    "no group limit": dataclasses.replace(BASE, num_groups=1, groups_per_token=1),
    "all groups kept": dataclasses.replace(BASE, groups_per_token=4),
    "one group kept": dataclasses.replace(BASE, groups_per_token=1),
    "odd groups": dataclasses.replace(BASE, num_experts=15, num_groups=5, groups_per_token=3),
    "groups of two": dataclasses.replace(BASE, num_groups=12, groups_per_token=2),
    "every expert": dataclasses.replace(BASE, experts_per_token=24, groups_per_token=4),
    "Ling": MoEConfig(
        num_experts=256, experts_per_token=8, expert_width=4, num_groups=8, groups_per_token=4
    ),
}
every_config = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())


def make(config=BASE, dtype=torch.float64, seed=0):
    draw = torch.Generator().manual_seed(seed)
    router = Router(config, WIDTH).to(dtype)
    with torch.no_grad():
        router.weight.copy_(torch.randn(router.weight.shape, generator=draw))
    return router, torch.randn(TOKENS, WIDTH, generator=draw).to(dtype)


def as_sets(expert_TK):
    return [set(row) for row in expert_TK.tolist()]


@every_config
def test_every_token_reaches_exactly_k_experts_in_the_allowed_number_of_groups(config):
    router, x = make(config)
    expert_TK = router(x).expert_TK
    size = config.num_experts // config.num_groups
    for chosen in as_sets(expert_TK):
        assert len(chosen) == config.experts_per_token
        assert chosen <= set(range(config.num_experts))
        assert len({expert // size for expert in chosen}) <= config.groups_per_token


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gate_of_a_single_expert_is_its_score(dtype):
    """Divided by itself it would be 1 and teach the router nothing; float32 is the compiled way."""
    router, x = make(dataclasses.replace(BASE, experts_per_token=1, groups_per_token=1), dtype)
    found = router(x)
    scores = torch.sigmoid(x.double() @ router.weight.detach().double().T)
    expected = 2.5 * scores.gather(1, found.expert_TK)
    torch.testing.assert_close(found.gate_TK.double(), expected, rtol=1e-6, atol=0)
    gradient = torch.autograd.grad(found.gate_TK.sum(), router.weight)[0]
    assert gradient.abs().max() > 0.01


@every_config
def test_choice_and_gates_are_their_restatement(config, oracle):
    router, x = make(config)
    router.selection_bias += 0.2 * torch.randn(
        config.num_experts, generator=torch.Generator().manual_seed(5)
    )
    weight = router.weight.detach().clone().requires_grad_()
    truth = [oracle.route(token, weight, router.selection_bias, config) for token in x]
    routing = router(x)
    assert as_sets(routing.expert_TK) == [set(chosen) for chosen, *_ in truth]
    # Any function of gates and choices will do for comparing gradients: gate² · (expert + 1).
    expected = sum((gates**2 * (torch.tensor(chosen) + 1)).sum() for chosen, gates, *_ in truth)
    value = (routing.gate_TK**2 * (routing.expert_TK + 1)).sum()
    torch.testing.assert_close(value, expected)
    expected.backward()
    value.backward()
    torch.testing.assert_close(router.weight.grad, weight.grad)


def test_a_group_is_judged_by_its_best_two():
    config = dataclasses.replace(
        BASE, num_experts=6, experts_per_token=2, num_groups=3, groups_per_token=1
    )
    #          group 0: 0.9 + 0.1 | group 1: 0.6 + 0.5 | group 2: 0.5 + 0.4
    scores = torch.tensor([[0.9, 0.1, 0.6, 0.5, 0.5, 0.4]])
    assert as_sets(choose(scores, None, config)) == [{2, 3}]


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6, 7, 8, 31, 32])
def test_sum_of_best_two_of_any_number_with_ties(size):
    draw = torch.Generator().manual_seed(size)
    x = torch.randint(-3, 4, (size, 5, 40), generator=draw).float()
    assert torch.equal(sum_of_best_two(x), x.topk(2, dim=0).values.sum(0))


def test_the_bias_decides_the_choice_and_never_the_weight():
    router, x = make()
    before = router(x)
    router.selection_bias[7] = 10.0
    after = router(x)
    assert all(7 in chosen for chosen in as_sets(after.expert_TK))
    assert not all(7 in chosen for chosen in as_sets(before.expert_TK))
    assert torch.equal(after.scores_TE, before.scores_TE)
    chosen_scores = before.scores_TE.gather(1, after.expert_TK)
    expected = 2.5 * chosen_scores / chosen_scores.sum(-1, keepdim=True)
    torch.testing.assert_close(after.gate_TK, expected)


def test_a_uniform_shift_of_the_bias_changes_nothing():
    router, x = make()
    router.selection_bias.copy_(torch.linspace(-0.5, 0.5, 24))
    before = router(x)
    router.selection_bias += 0.25
    after = router(x)
    assert as_sets(after.expert_TK) == as_sets(before.expert_TK)


def test_no_gradient_reaches_the_router_through_the_choice():
    router, x = make()
    routing = router(x)
    assert not routing.expert_TK.is_floating_point()
    (gradient,) = torch.autograd.grad(routing.gate_TK.sum(), router.weight)
    # Normalised gates always sum to routed_scale.
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


@pytest.mark.parametrize("top_k", [1, 3])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("score", ["sigmoid", "softmax"])
def test_gates_of_every_variant(score, normalize, top_k):
    config = dataclasses.replace(
        BASE, score=score, normalize_gates=normalize, experts_per_token=top_k, routed_scale=1.7
    )
    router, x = make(config)
    routing = router(x)
    logits = x @ router.weight.T
    scores = logits.sigmoid() if score == "sigmoid" else logits.softmax(-1)
    expected = scores.gather(1, routing.expert_TK)
    if normalize and top_k > 1:  # a single gate divided by itself would carry no gradient
        expected = expected / expected.sum(-1, keepdim=True)
    torch.testing.assert_close(routing.gate_TK, 1.7 * expected)


def test_without_a_selection_bias_there_is_no_buffer():
    router, x = make(dataclasses.replace(BASE, selection_bias=False))
    assert router.selection_bias is None
    assert list(router.state_dict()) == ["weight"]
    assert router(x).expert_TK.shape == (TOKENS, 4)


def test_the_bias_stays_float32_whatever_the_model_becomes():
    router, _ = make(dtype=torch.float32)
    router.selection_bias += 1 + 1e-3
    exact = router.selection_bias.clone()
    for change in (torch.bfloat16, torch.float16, torch.float64):
        router.to(change)
        assert router.weight.dtype == change
        assert torch.equal(router.selection_bias, exact)
        assert router.selection_bias.dtype == torch.float32
    empty = Router(BASE, WIDTH).to("meta").to(torch.bfloat16)
    assert empty.selection_bias.is_meta
    assert empty.to_empty(device="cpu").selection_bias.dtype == torch.float32


@pytest.mark.parametrize("autocast", [False, True])
def test_routing_is_float32_for_half_precision_tokens(autocast):
    router, x = make(dtype=torch.float32)
    exact = router(x)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        same = router(x)
        half = router(x.bfloat16())
    assert torch.equal(same.logits_TE, exact.logits_TE)
    expected = x.bfloat16().float() @ router.weight.T
    assert half.gate_TK.dtype == half.logits_TE.dtype == torch.float32
    torch.testing.assert_close(half.logits_TE, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_logits_of_bfloat16_are_as_good_as_float32_and_keep_no_copy(device):
    _, x = make()
    x, weight = x.to(device, torch.bfloat16), torch.randn(24, WIDTH).to(device, torch.bfloat16)
    grad = torch.randn(TOKENS, 24, device=device)
    kept = []
    leaves = [t.clone().requires_grad_() for t in (x, weight)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = logits(*leaves)
    found.backward(grad)
    assert [t.dtype for t in kept] == [torch.bfloat16] * 2
    assert found.dtype == torch.float32
    exact = x.double() @ weight.double().T
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    # Gradients are rounded once, to bfloat16, at the end.
    for leaf, true in zip(
        leaves, (grad.double() @ weight.double(), grad.double().T @ x.double()), strict=True
    ):
        assert leaf.grad.dtype == torch.bfloat16
        torch.testing.assert_close(leaf.grad.double(), true, rtol=2**-8, atol=2e-4)
