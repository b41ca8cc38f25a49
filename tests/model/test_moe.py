"""The mixture layer: dropless, blind to the order of experts, the shared expert beside it."""

import dataclasses

import pytest
import torch

from model.balance import RoutingRequest
from model.config import MoEConfig
from model.moe import MoE

WIDTH = 8
CONFIG = MoEConfig(
    num_experts=12, experts_per_token=3, expert_width=8, num_groups=4, groups_per_token=2
)
DETAIL = RoutingRequest(detail=True)

pytestmark = pytest.mark.usefixtures("one_thread")


def make(config=CONFIG, seed=0):
    layer = MoE(config, WIDTH).double()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5)
        layer.router.selection_bias.copy_(0.1 * torch.randn(config.num_experts, generator=draw))
    return layer, torch.randn(2, 20, WIDTH, generator=draw).double()


def gradients(layer, y):
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).double()
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((y * towards).sum(), parameters), strict=True))


def test_layer_and_gradients_are_their_restatement(oracle, tiny):
    layer, x = make()
    config = tiny(hidden_size=WIDTH, moe=dataclasses.asdict(CONFIG))
    weights = {
        f"m.{name}": tensor.detach().clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in layer.state_dict().items()
    }
    log = {}
    truth = torch.stack(
        [
            torch.stack([oracle.feed_forward(t, weights, "m", config, 1, log) for t in row])
            for row in x
        ]
    )
    y, stats = layer(x, DETAIL)
    torch.testing.assert_close(y, truth)
    assert stats.load_E.sum() == 2 * 20 * 3
    gradients_of_y = gradients(layer, y)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).double()
    (truth * towards).sum().backward()
    for name, gradient in gradients_of_y.items():
        torch.testing.assert_close(gradient, weights[f"m.{name}"].grad)


def test_no_token_is_dropped_whatever_the_load():
    layer, x = make()
    layer.router.selection_bias[:3] = 100.0  # everybody wants the same three
    y, stats = layer(x, DETAIL)
    assert stats.load_E.tolist() == [40, 40, 40] + [0] * 9
    alone = torch.cat([layer(token[None, None], DETAIL)[0] for token in x.flatten(0, 1)])
    torch.testing.assert_close(y.flatten(0, 1), alone.flatten(0, 1))


def test_permuting_the_experts_permutes_nothing_observable():
    # Groups change places, and experts within a group: what the group limit allows.
    order = torch.tensor([[8, 6, 7], [2, 1, 0], [9, 11, 10], [3, 4, 5]]).flatten()
    layer, x = make()
    moved, _ = make()
    state = layer.state_dict()
    for name in ("router.weight", "router.selection_bias", "experts.w_gate_up", "experts.w_down"):
        state[name] = state[name][order]
    moved.load_state_dict(state)
    (y, stats), (y_moved, stats_moved) = layer(x, DETAIL), moved(x, DETAIL)
    torch.testing.assert_close(y_moved, y)
    assert torch.equal(stats_moved.load_E, stats.load_E[order])
    before, after = gradients(layer, y), gradients(moved, y_moved)
    for name in ("shared.gate_up.weight", "shared.down.weight"):
        torch.testing.assert_close(after[name], before[name])
    for name in ("router.weight", "experts.w_gate_up", "experts.w_down"):
        torch.testing.assert_close(after[name], before[name][order])


def test_the_shared_expert_adds_its_plain_answer():
    layer, x = make()
    y, _ = layer(x, DETAIL)
    shared = layer.shared(x)
    layer.shared = None
    without, _ = layer(x, DETAIL)
    torch.testing.assert_close(y - without, shared)


def test_only_chosen_experts_learn_from_a_token():
    layer, x = make()
    y, stats = layer(x[:1, :1], DETAIL)
    chosen = set(stats.detail.expert_TK.flatten().tolist())
    touched = gradients(layer, y)["experts.w_down"].abs().sum((1, 2)) > 0
    assert set(touched.nonzero().flatten().tolist()) == chosen
