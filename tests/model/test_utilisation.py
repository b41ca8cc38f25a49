"""Measures of expert use on cases worked out by hand."""

import pytest
import torch

from model.balance import RoutingRequest, RoutingStats
from model.config import MoEConfig
from model.router import Routing
from model.transformer import build_model
from model.utilisation import (
    UtilisationMeter,
    chosen_together,
    coactivation,
    domain_specialisation,
    gate_entropy,
    layer_counts,
    most_paired,
    router_saturation,
    strongest_partner,
    top_k_mass,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = MoEConfig(num_experts=4, experts_per_token=2, expert_width=4)


def test_gate_entropy():
    gates = torch.tensor([[1.0, 1, 1, 1], [2, 2, 0, 0], [2.5, 0, 0, 0], [4, 2, 1, 1]])
    # Shares 1/2 1/4 1/8 1/8 have 1.75 bits.
    expected = torch.tensor([1.0, 0.5, 0.25, 2**1.75 / 4])
    torch.testing.assert_close(gate_entropy(gates), expected)


def test_top_k_mass():
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2], [0.8, 0.1, 0.1, 0.6]])
    routing = Routing(torch.tensor([[0, 1], [0, 3]]), scores[:, :2], scores, scores)
    torch.testing.assert_close(top_k_mass(routing), torch.tensor([0.5, 1.4 / 1.6]))


def test_coactivation():
    together = chosen_together(torch.tensor([[0, 1], [1, 0], [0, 2], [2, 0]]), 4)
    assert together.tolist() == [[4, 2, 2, 0], [2, 2, 0, 0], [2, 0, 2, 0], [0, 0, 0, 0]]
    assert coactivation(together).tolist() == [
        [1, 0.5, 0.5, 0],
        [1, 1, 0, 0],
        [1, 0, 1, 0],
        [0, 0, 0, 0],
    ]
    # The best partners of 0, 1 and 2, and nothing of 3, which no token chose.
    assert strongest_partner(coactivation(together)) == pytest.approx((0.5 + 1 + 1) / 3)
    assert most_paired(coactivation(together), 2).tolist() == [1, 2]
    alone = chosen_together(torch.tensor([[0], [1]]), 4)
    assert strongest_partner(coactivation(alone)) == 0


def test_those_with_the_strongest_partners_are_shown_in_the_order_of_their_numbers():
    share = torch.tensor([[1.0, 0.3, 0, 0], [0.2, 1, 0, 0], [0, 0.9, 1, 0], [0.6, 0, 0, 1]])
    assert most_paired(share, 3).tolist() == [0, 2, 3]
    assert most_paired(share, 9).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        ([[3, 3, 0, 0], [0, 0, 40, 2]], 1.0),  # each expert serves one domain
        ([[3, 1, 2, 0], [30, 10, 20, 0]], 0.0),  # alike, at ten times the tokens
        # Expert 0 shared evenly, the rest apart: the domain is known for half of the choices.
        ([[4, 4, 0, 0], [4, 0, 4, 0]], 0.5),
        ([[1, 2, 3, 4]], 0.0),
    ],
    ids=["apart", "alike", "half", "one domain"],
)
def test_domain_specialisation(load, expected):
    assert domain_specialisation(torch.tensor(load)) == pytest.approx(expected, abs=1e-12)


def test_router_saturation():
    earlier = torch.tensor([[0, 1], [2, 3], [0, 3]])
    later = torch.tensor([[1, 0], [3, 1], [1, 2]])
    assert router_saturation(earlier, later) == pytest.approx((2 + 1 + 0) / 6)
    with pytest.raises(ValueError, match=r"other tokens: \(3, 2\) and \(2, 2\)"):
        router_saturation(earlier, later[:2])


def counts(expert, gate, score):
    expert_TK = torch.tensor(expert)
    scores = torch.tensor(score)
    load_E = torch.bincount(expert_TK.flatten(), minlength=4)
    routing = Routing(expert_TK, torch.tensor(gate), scores, scores)
    return layer_counts(RoutingStats(load_E=load_E, detail=routing))


def test_the_meter_sums_over_batches_and_keeps_domains_apart():
    meter = UtilisationMeter(CONFIG, num_layers=1)
    flat = [0.5, 0.5, 0.5, 0.5]
    meter.add([counts([[0, 1], [0, 1]], [[1.0, 1], [1, 1]], [flat, flat])], "code")
    meter.add([counts([[0, 1]], [[1.0, 0]], [[0.6, 0.2, 0.1, 0.1]])], "code")
    meter.add([counts([[2, 3]], [[1.0, 1]], [flat])], "prose")
    (layer,) = meter.measure()
    assert {name: load.tolist() for name, load in layer.load_by_domain.items()} == {
        "code": [3, 3, 0, 0],
        "prose": [0, 0, 1, 1],
    }
    assert layer.gate_entropy == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert layer.top_k_mass == pytest.approx((0.5 + 0.5 + 0.8 + 0.5) / 4)
    assert layer.coactivation[:2, :2].tolist() == [[1, 1], [1, 1]]
    assert layer.specialisation == pytest.approx(1)


def test_the_meter_reads_a_model(tiny):
    config = tiny(mtp_depth=1)
    model = build_model(config, seed=0)
    meter = UtilisationMeter(config.moe, num_layers=2)
    tokens = torch.randint(23, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for domain in ("code", "prose"):
            result = model(tokens[:, :-1], tokens[:, 1:], request=RoutingRequest(detail=True))
            meter.add([layer_counts(stats) for stats in result.routing], domain)
    for layer in meter.measure():
        assert layer.specialisation == pytest.approx(0, abs=1e-9)  # the same text twice
        assert 1 / 3 <= layer.gate_entropy <= 1
        assert 3 / 12 <= layer.top_k_mass <= 1
        assert all(load.sum() == 16 * 3 for load in layer.load_by_domain.values())
        # A token of expert i has two more experts.
        used = layer.coactivation.diagonal() > 0
        assert layer.coactivation.sum(-1)[used].tolist() == pytest.approx([3] * int(used.sum()))


def test_counting_says_what_it_needs():
    with pytest.raises(ValueError, match=r"RoutingRequest\(detail=True\)"):
        layer_counts(RoutingStats(load_E=torch.zeros(4, dtype=torch.int64)))


def test_entropy_is_highest_for_equal_gates_and_finite_for_a_single_one():
    gates = torch.rand(50, 8, generator=torch.Generator().manual_seed(0))
    assert gate_entropy(gates).max() < 1
    assert gate_entropy(torch.ones(1, 8)).item() == pytest.approx(1)
    assert gate_entropy(torch.tensor([[1.0, 0.0]])).item() == pytest.approx(0.5)
