"""A stack of models computes what each of its models computes by itself."""

import copy

import pytest
import torch

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.packed.stack import Stack
from model.packed.transformer import PackedTransformer
from model.transformer import build_model

ATTENTION = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4)
MOE = MoEConfig(
    num_experts=8, experts_per_token=2, expert_width=8, num_groups=4, groups_per_token=2
)


def config(**changes):
    values = {
        "vocab_size": 61,
        "hidden_size": 32,
        "num_layers": 2,
        "num_dense_layers": 1,
        "dense_width": 48,
        "attention": ATTENTION,
        "moe": MOE,
        "init_std": 0.05,
    }
    return ModelConfig(**{**values, **changes})


SHAPES = {
    "mixture": config(),
    "mtp": config(mtp_depth=1),
    "dense": config(moe=None, num_dense_layers=0),
    "softmax, no shared expert, no bias": config(
        moe=MoEConfig(
            num_experts=8,
            experts_per_token=2,
            expert_width=8,
            score="softmax",
            num_shared_experts=0,
            selection_bias=False,
        )
    ),
    "a gate a head": config(
        attention=AttentionConfig(
            num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4, output_gate="headwise"
        )
    ),
    "a gate an element": config(
        attention=AttentionConfig(
            num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4, output_gate="elementwise"
        )
    ),
    "no head norms": config(
        attention=AttentionConfig(
            num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4, qk_norm=False
        )
    ),
}


def models(shape, dtype):
    """Three, each of its own seed, with routers that have learned a bias."""
    made = [build_model(shape, seed=seed, dtype=dtype) for seed in range(3)]
    draw = torch.Generator().manual_seed(5)
    for model in made:
        for router in model.routers():
            if router.selection_bias is not None:
                router.selection_bias.uniform_(-0.1, 0.1, generator=draw)
    return made


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_losses_loads_and_every_gradient_are_those_of_the_models_alone(shape, dtype):
    alone = models(shape, dtype)
    packed = PackedTransformer(copy.deepcopy(alone))
    windows = torch.randint(61, (3, 17), generator=torch.Generator().manual_seed(1))
    together = packed(windows[:, :-1], windows[:, 1:])
    total = together.loss_nats_M.sum()
    if together.mtp_loss_nats_M is not None:
        total = total + 0.3 * together.mtp_loss_nats_M.sum()
    total.backward()
    packed.stack.hand_out_gradients()
    rounding = 64 * torch.finfo(dtype).eps
    for row, (model, member) in enumerate(zip(alone, packed.stack.members, strict=True)):
        result = model(windows[:, :-1], windows[:, 1:])
        loss = result.loss_nats
        if result.mtp_loss_nats is not None:
            loss = loss + 0.3 * result.mtp_loss_nats
        loss.backward()
        nats = together.token_nats_MBT[row]
        torch.testing.assert_close(nats, result.token_nats_BT, rtol=rounding, atol=rounding)
        for stats, load_ME in zip(result.routing, together.loads, strict=True):
            assert load_ME[row].tolist() == stats.load_E.tolist()
        grads = dict(member.named_parameters())
        for name, parameter in model.named_parameters():
            largest = parameter.grad.abs().max().item()
            torch.testing.assert_close(
                grads[name].grad, parameter.grad, rtol=0, atol=rounding * largest, msg=name
            )


def test_what_is_not_a_number_stays_in_its_own_model():
    members = models(SHAPES["mixture"], torch.float32)
    with torch.no_grad():
        members[1].embedding.weight.fill_(float("nan"))
    packed = PackedTransformer(members)
    windows = torch.randint(61, (2, 9))
    result = packed(windows[:, :-1], windows[:, 1:])
    result.loss_nats_M.sum().backward()
    packed.stack.hand_out_gradients()
    assert result.loss_nats_M.isfinite().tolist() == [True, False, True]
    for row, member in enumerate(members):
        healthy = all(p.grad.isfinite().all() for p in member.parameters())
        assert healthy is (row != 1)


def test_a_member_and_its_row_are_the_same_memory():
    members = models(SHAPES["mixture"], torch.float32)
    before = copy.deepcopy(members[2].state_dict())
    stack = Stack(members)
    assert {n: t.tolist() for n, t in members[2].state_dict().items()} == {
        n: t.tolist() for n, t in before.items()
    }
    with torch.no_grad():
        members[1].output.weight.fill_(7.0)
        stack.buffers["blocks.1.feed_forward.router.selection_bias"][0].fill_(3.0)
    assert stack.weights["output.weight"][1].eq(7).all()
    assert not stack.weights["output.weight"][0].eq(7).any()
    assert members[0].blocks[1].feed_forward.router.selection_bias.eq(3).all()


def test_models_of_two_shapes_make_no_stack():
    other = build_model(config(vocab_size=60), seed=0)
    with pytest.raises(ValueError, match="2 shapes among 2 models"):
        Stack([build_model(config(), seed=0), other])
