"""Load metrics by hand, the bias update by hand, and that it balances what it should."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.balance import RoutingRequest, load_metrics, routing_stats, update_biases
from model.config import MoEConfig
from model.router import Router
from model.training.config import BalanceConfig
from model.transformer import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = MoEConfig(num_experts=4, experts_per_token=2, expert_width=4)


@pytest.mark.parametrize(
    ("load", "max_vio", "min_vio", "normalized_entropy", "dead_frac"),
    [
        ([5, 5, 5, 5], 0.0, 0.0, 1.0, 0.0),
        ([20, 0, 0, 0], 3.0, 1.0, 0.25, 0.75),
        ([10, 10, 0, 0], 1.0, 1.0, 0.5, 0.5),
        # shares 1/2, 1/4, 1/8, 1/8: entropy 1.75 bits
        ([8, 4, 2, 2], 1.0, 0.5, 2**1.75 / 4, 0.0),
    ],
)
def test_load_metrics_by_hand(load, max_vio, min_vio, normalized_entropy, dead_frac):
    metrics = load_metrics(torch.tensor(load))
    expected = (max_vio, min_vio, normalized_entropy, dead_frac)
    assert [m.item() for m in metrics] == pytest.approx(expected, abs=1e-6)


def test_load_metrics_of_several_layers_at_once():
    loads = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0]])
    assert load_metrics(loads).max_vio.tolist() == [0.0, 3.0]


def make_model(tiny, **fields):
    # Two mixture layers: one in the stack and that of the prediction block.
    return build_model(tiny(mtp_depth=1, moe={"num_experts": 4, **GROUPLESS}, **fields), seed=0)


GROUPLESS = {"num_groups": 1, "groups_per_token": 1}


def test_the_update_pushes_by_sign_and_keeps_the_mean(tiny):
    model = make_model(tiny)
    loads = [torch.tensor([9, 1, 1, 1]), torch.tensor([3, 3, 4, 2])]
    update_biases(model, loads, BalanceConfig(update_rate=0.01))
    first, second = (router.selection_bias.tolist() for router in model.routers())
    # Signs -1 +1 +1 +1, mean 1/2; signs 0 0 -1 +1, mean 0.
    assert first == pytest.approx([-0.015, 0.005, 0.005, 0.005])
    assert second == pytest.approx([0.0, 0.0, -0.01, 0.01])


def test_the_zero_mean_update_never_drifts_and_the_plain_one_does(tiny):
    loads = [torch.tensor([9, 1, 1, 1])] * 2
    drift = {}
    for rule in ("zero_mean_sign", "sign", "none"):
        model = make_model(tiny)
        for _ in range(100):
            update_biases(model, loads, BalanceConfig(rule=rule, update_rate=0.001))
        drift[rule] = next(model.routers()).selection_bias
    assert drift["zero_mean_sign"].mean().item() == pytest.approx(0, abs=1e-6)
    assert drift["sign"].tolist() == pytest.approx([-0.1, 0.1, 0.1, 0.1], rel=1e-4)
    assert drift["none"].tolist() == [0.0] * 4
    # The rules differ by a shift of all biases, which no choice can see.
    shift = drift["sign"] - drift["zero_mean_sign"]
    torch.testing.assert_close(shift, shift[:1].expand(4))


def test_a_load_equal_to_the_mean_is_left_alone_even_when_the_mean_is_no_float(tiny):
    # 2^25 + 1 has no float32; computed in floats the expert with the mean load would get a push.
    mean = 2**25 + 1
    loads = [torch.tensor([mean, mean, mean + 1, mean - 1])] * 2
    model = make_model(tiny)
    update_biases(model, loads, BalanceConfig(update_rate=0.5))
    assert next(model.routers()).selection_bias.tolist() == [0.0, 0.0, -0.5, 0.5]


def test_a_model_without_biases_is_left_alone(tiny):
    model = build_model(tiny(moe={"selection_bias": False}), seed=0)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    update_biases(model, [torch.arange(12)], BalanceConfig())
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_updates_even_out_a_skewed_router():
    config = MoEConfig(num_experts=16, experts_per_token=2, expert_width=4)
    router = Router(config, 8)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        router.weight.copy_(0.3 * torch.randn(router.weight.shape, generator=draw))

    class OneRouter(torch.nn.Module):
        def routers(self):
            return iter([router])

    def step(rate):
        # A common direction in the tokens makes some experts everybody's choice.
        x = torch.randn(512, 8, generator=draw) + 1.0
        load_E = routing_stats(router(x), RoutingRequest()).load_E
        update_biases(OneRouter(), [load_E], BalanceConfig(update_rate=rate))
        return load_E

    begun = load_metrics(step(0.0))
    for rate in (0.01, 0.001):
        for _ in range(150):
            step(rate)
    settled = load_metrics(sum(step(0.0) for _ in range(8)))
    assert begun.max_vio > 2
    assert settled.max_vio < 0.15
    assert settled.min_vio < 0.15


def test_auxiliary_loss_is_one_when_even_and_pushes_the_overloaded_down():
    router = Router(CONFIG, 4)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    request = RoutingRequest(losses=True)
    # Each token scores two experts high, and every expert is chosen equally often.
    even = torch.tensor([[2.0, 2, -2, -2], [-2, -2, 2, 2], [2, -2, 2, -2], [-2, 2, -2, 2]])
    stats = routing_stats(router(even), request)
    assert stats.load_E.tolist() == [2, 2, 2, 2]
    assert stats.aux_loss.item() == pytest.approx(1, rel=1e-6)
    skewed = torch.tensor([[2.0, 2, -2, -2]]).repeat(6, 1)
    stats = routing_stats(router(skewed), request)
    # Loads 6 6 0 0: f = 2 2 0 0; each token's share on the first two is σ(2)/(2σ(2) + 2σ(-2)).
    high, low = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2))
    assert stats.aux_loss.item() == pytest.approx(2 * high / (high + low), rel=1e-6)
    (gradient,) = torch.autograd.grad(stats.aux_loss, router.weight)
    logit_change = (skewed @ -gradient.T).mean(0)
    assert (logit_change[:2] < 0).all()
    assert (logit_change[2:] > 0).all()


def test_in_the_auxiliary_loss_every_token_counts_alike():
    """Whatever its scores sum to; a router that is sure of nothing scores all experts low."""
    router = Router(CONFIG, 4)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    logits = [[4.0, 3, 1, 2], [-4, -6, -5, -3]]
    stats = routing_stats(router(torch.tensor(logits)), RoutingRequest(losses=True))
    assert stats.load_E.tolist() == [2, 1, 0, 1]
    shares = []
    for token in logits:
        scores = [1 / (1 + math.exp(-logit)) for logit in token]
        shares.append([score / sum(scores) for score in scores])
    mean = [(one + other) / 2 for one, other in zip(*shares, strict=True)]
    # f is each load times 4 experts over the 4 choices.
    expected = 2 * mean[0] + 1 * mean[1] + 1 * mean[3]
    assert stats.aux_loss.item() == pytest.approx(expected, rel=1e-6)


def test_z_loss_by_hand():
    router = Router(CONFIG, 4)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    tokens = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1]])
    stats = routing_stats(router(tokens), RoutingRequest(losses=True))
    expected = (math.log(4) ** 2 + (1 + math.log(4)) ** 2) / 2
    assert stats.z_loss.item() == pytest.approx(expected, rel=1e-6)


def test_losses_and_detail_come_only_when_asked_for():
    router = Router(CONFIG, 4)
    with torch.no_grad():
        router.weight.copy_(torch.eye(4))
    plain = routing_stats(router(torch.ones(3, 4)), RoutingRequest())
    assert (plain.aux_loss, plain.z_loss, plain.detail) == (None, None, None)


@pytest.mark.slow
def test_loads_are_summed_over_ranks(tmp_path):
    """Two real processes: what each rank alone would get wrong, both get right together."""
    script = Path(__file__).with_name("two_rank_balance.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(tmp_path / "meeting")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    # Rank 0 counts 6 0 3 3 and rank 1 counts 0 6 3 3: together all experts are even.
    assert [out.split() for out, _ in outputs] == [["0.0", "0.0", "0.0", "0.0", "1.0000"]] * 2
