"""Attention against its restatement head by head, and the shapes it must treat alike."""

import pytest
import torch

from model.attention import Attention
from model.config import AttentionConfig
from model.layers import Rotary

WIDTH, LENGTH = 10, 6
EPS = 1e-6

pytestmark = pytest.mark.usefixtures("one_thread")


def make(**fields):
    config = AttentionConfig(
        **{"num_heads": 4, "num_kv_heads": 2, "head_dim": 6, "rotary_dim": 4} | fields
    )
    module = Attention(config, WIDTH, EPS).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.5 + 0.3)
    return module, Rotary(config)


def rows(seed=1, batch=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(batch, LENGTH, WIDTH, generator=draw).double()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"num_kv_heads": 4},
        {"num_kv_heads": 1},
        {"qk_norm": False},
        {"rotary_dim": 0},
        {"output_gate": "headwise"},
        {"output_gate": "elementwise"},
    ],
    ids=[
        "grouped",
        "a key head each",
        "one key head",
        "no QK-norm",
        "no rotation",
        "a gate a head",
        "a gate an element",
    ],
)
def test_attention_is_its_restatement(fields, oracle, tiny):
    module, rotary = make(**fields)
    config = tiny(attention=fields, norm_eps=EPS)
    weights = {f"a.{name}": p.detach() for name, p in module.named_parameters()}
    x = rows()
    expected = [torch.stack(oracle.attention(list(row), weights, "a", config)) for row in x]
    torch.testing.assert_close(module(x, rotary), torch.stack(expected))


def test_a_position_attends_to_itself_and_those_before():
    module, rotary = make()
    x = rows().requires_grad_()
    y = module(x, rotary)
    for t in range(LENGTH):
        (gradient,) = torch.autograd.grad(y[0, t].sum(), x, retain_graph=True)
        reached = gradient.abs().sum(-1) > 0
        assert reached[0].tolist() == [s <= t for s in range(LENGTH)]
        assert not reached[1].any()


def test_fewer_key_heads_are_the_same_as_repeated_ones():
    grouped, rotary = make(num_kv_heads=2)
    full, full_rotary = make(num_kv_heads=4)
    head = grouped.config.head_dim
    q, k, v = grouped.qkv.weight.detach().split([4 * head, 2 * head, 2 * head])

    def repeated(weight):
        return weight.view(2, head, WIDTH).repeat_interleave(2, dim=0).flatten(0, 1)

    state = grouped.state_dict() | {"qkv.weight": torch.cat([q, repeated(k), repeated(v)])}
    full.load_state_dict(state)
    x = rows()
    torch.testing.assert_close(full(x, full_rotary), grouped(x, rotary))


def test_qk_norm_makes_scores_blind_to_the_scale_of_queries_and_keys():
    module, rotary = make()
    x = rows()
    before = module(x, rotary)
    with torch.no_grad():
        module.qkv.weight[: 6 * 6] *= 1000.0  # four query heads and two key heads of width 6
    after = module(x, rotary)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)


def test_a_row_alone_and_in_a_batch_gives_the_same():
    module, rotary = make()
    x = rows(batch=3)
    torch.testing.assert_close(module(x, rotary)[1:2], module(x[1:2], rotary))
