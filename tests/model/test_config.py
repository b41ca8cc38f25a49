"""Model configurations: Ling's ratios, and refusals that name both values."""

from dataclasses import replace

import pytest

from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig
from model.errors import ConfigError
from model.own.parts import OwnCounts, OwnPart

LING_MINI_MOE = MoEConfig(
    num_experts=256, experts_per_token=8, expert_width=512, num_groups=8, groups_per_token=4
)
ATTENTION = AttentionConfig(num_heads=16, num_kv_heads=4, head_dim=128, rotary_dim=64)
LING_MINI = ModelConfig(
    vocab_size=157_184,
    hidden_size=2048,
    num_layers=20,
    dense_width=5120,
    attention=ATTENTION,
    moe=LING_MINI_MOE,
    num_dense_layers=1,
)


def test_ling_mini_ratios() -> None:
    assert LING_MINI_MOE.activation_ratio == 9 / 257
    assert LING_MINI_MOE.shared_ratio == 1 / 9
    assert LING_MINI.granularity == 8
    assert LING_MINI.num_moe_layers == 19
    assert [LING_MINI.is_moe_layer(i) for i in range(3)] == [False, True, True]


def test_what_is_not_said_is_not_built() -> None:
    """No leading dense layer, no prediction block, no scaled context."""
    bare = ModelConfig(
        vocab_size=32, hidden_size=16, num_layers=2, dense_width=32,
        attention=ATTENTION, moe=LING_MINI_MOE,
    )  # fmt: skip
    assert (bare.num_dense_layers, bare.mtp_depth, bare.num_moe_layers) == (0, 0, 2)
    assert YarnConfig(factor=1, original_positions=4096).factor == 1


def test_dense_model_has_no_granularity() -> None:
    dense = replace(LING_MINI, moe=None, num_dense_layers=0)
    assert dense.granularity is None
    assert dense.num_moe_layers == 0
    assert not dense.is_moe_layer(19)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts_per_token": 300}, r"experts_per_token \(300\) must be <= num_experts \(256\)"),
        ({"num_groups": 7}, r"num_groups \(7\) must divide num_experts \(256\)"),
        ({"groups_per_token": 9}, r"groups_per_token \(9\) must be <= num_groups \(8\)"),
        ({"num_groups": 256, "groups_per_token": 8}, r"at least 2 experts a group"),
        (
            {"num_groups": 64, "groups_per_token": 1},
            r"experts_per_token \(8\) must be <= the 4 experts that 1 kept groups of 4 hold",
        ),
        ({"expert_width": -4}, r"expert_width must be positive, got -4"),
        ({"num_shared_experts": -1}, r"num_shared_experts must be >= 0, got -1"),
    ],
)
def test_moe_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(LING_MINI_MOE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, r"num_kv_heads \(3\) must divide num_heads \(16\)"),
        ({"rotary_dim": 63}, r"rotary_dim \(63\) must be even and between 0 and head_dim \(128\)"),
        ({"rotary_dim": 130}, r"rotary_dim \(130\) must be even"),
        ({"output_gate": "head"}, "output_gate must be none, headwise or elementwise, got 'head'"),
    ],
)
def test_attention_refusals(change: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(ATTENTION, **change)


def test_a_gate_has_an_output_a_head_or_one_for_each_of_its_elements() -> None:
    kinds = ("none", "headwise", "elementwise")
    assert [replace(ATTENTION, output_gate=kind).gate_width for kind in kinds] == [0, 16, 16 * 128]


def test_an_attention_of_the_users_own_has_no_gate_of_the_built_in_one() -> None:
    counts = (OwnCounts(),) * 20
    own = OwnPart(
        kind="attention", name="my:Mixer", source="0" * 8, sequence_length=32, counts=counts
    )
    assert replace(LING_MINI, own=(own,)).own
    gated = replace(ATTENTION, output_gate="headwise")
    with pytest.raises(ConfigError, match=r"own.attention: output_gate is headwise.* my:Mixer"):
        replace(LING_MINI, own=(own,), attention=gated)
    norm = replace(own, kind="norm")
    assert replace(LING_MINI, own=(norm,), attention=gated).attention.gate_width == 16


def test_model_refusals() -> None:
    with pytest.raises(ConfigError, match=r"num_dense_layers \(21\) must be between 0 and num_la"):
        replace(LING_MINI, num_dense_layers=21)
    with pytest.raises(ConfigError, match="hidden_size must be positive, got 0"):
        replace(LING_MINI, hidden_size=0)
    with pytest.raises(ConfigError, match="mtp_depth must be 0 or 1, got 2"):
        replace(LING_MINI, mtp_depth=2)
    with pytest.raises(ConfigError, match="yarn factor must be >= 1"):
        YarnConfig(factor=0.5, original_positions=4096)
