"""Counts against the published sizes, and FLOPs against the published learning rates."""

import dataclasses

import pytest

from model.accounting import count_params, flops_per_token, layer_counts
from model.config import AttentionConfig, ModelConfig, MoEConfig


def ling(
    *, width: int, layers: int, heads: int, kv_heads: int, dense_layers: int, dense_width: int
) -> ModelConfig:
    """A Ling 2.0 model: what the three published sizes share is written once."""
    return ModelConfig(
        vocab_size=157_184,
        hidden_size=width,
        num_layers=layers,
        dense_width=dense_width,
        num_dense_layers=dense_layers,
        attention=AttentionConfig(
            num_heads=heads, num_kv_heads=kv_heads, head_dim=128, rotary_dim=64
        ),
        moe=MoEConfig(
            num_experts=256,
            experts_per_token=8,
            expert_width=width // 4,
            num_groups=8,
            groups_per_token=4,
        ),
    )


LING_MINI = ling(width=2048, layers=20, heads=16, kv_heads=4, dense_layers=1, dense_width=5120)
LING_FLASH = ling(width=4096, layers=32, heads=32, kv_heads=4, dense_layers=1, dense_width=9216)
LING_1T = ling(width=8192, layers=80, heads=64, kv_heads=8, dense_layers=4, dense_width=18_432)


@pytest.mark.parametrize(
    ("config", "total", "active", "active_non_embedding"),
    [
        (LING_MINI, 16.26e9, 1.433e9, 0.789e9),
        (LING_FLASH, 102.89e9, 6.152e9, 4.864e9),
        (LING_1T, 999.70e9, 51.05e9, 48.48e9),
    ],
)
def test_counts_of_the_published_models(config, total, active, active_non_embedding):
    counts = count_params(config)
    # Half a unit of the last published digit; 4.864 was cut, not rounded (4.8646).
    assert counts.total == pytest.approx(total, abs=0.006e9)
    assert counts.active == pytest.approx(active, rel=2e-4)
    assert counts.active_non_embedding == pytest.approx(active_non_embedding, rel=2e-4)
    assert counts.active == counts.active_non_embedding + counts.embedding


@pytest.mark.parametrize(("config", "total"), [(LING_MINI, 17.08e9), (LING_FLASH, 106.20e9)])
def test_the_prediction_block_brings_the_published_base_sizes(config, total):
    with_mtp = count_params(dataclasses.replace(config, mtp_depth=1))
    assert with_mtp.total == pytest.approx(total, abs=0.005e9)
    assert with_mtp.active == count_params(config).active


@pytest.mark.parametrize(
    ("config", "peak_lr"), [(LING_MINI, 3.36e-4), (LING_FLASH, 2.61e-4), (LING_1T, 1.86e-4)]
)
@pytest.mark.parametrize("mtp_depth", [0, 1])
def test_the_convention_returns_the_published_learning_rates(config, peak_lr, mtp_depth):
    config = dataclasses.replace(config, mtp_depth=mtp_depth)
    train_flops = flops_per_token(config, 4096).house * 20e12
    assert f"{1.1576 * train_flops**-0.1529:.2e}" == f"{peak_lr:.2e}"


def test_the_learning_rate_tells_the_convention_apart():
    """Counting the prediction block, or not counting the router, misses a published rate."""

    def rate(flops: float) -> str:
        return f"{1.1576 * (flops * 20e12) ** -0.1529:.2e}"

    flops = flops_per_token(LING_MINI, 4096)
    router = count_params(LING_MINI).by_group["router"]
    mtp_active = layer_counts(dataclasses.replace(LING_MINI, mtp_depth=1))[-1].active
    assert rate(flops.house - 6 * router) != "3.36e-04"
    assert rate(flops.house + 6 * mtp_active) != "3.36e-04"
    assert rate(flops.others["with_output"]) != "3.36e-04"
    assert rate(flops.others["causal_attention"]) != "3.36e-04"


@pytest.mark.parametrize("config", [LING_MINI, LING_FLASH, LING_1T])
def test_conventions_differ_by_what_their_names_say(config):
    counts, flops = count_params(config), flops_per_token(config, 4096)
    attention = config.num_layers * 12 * config.attention.num_heads * 128 * 4096
    output = 6 * config.vocab_size * config.hidden_size
    assert flops.house == 6 * counts.active_non_embedding + attention
    assert flops.others["with_output"] == flops.house + output
    assert flops.others["causal_attention"] == flops.house - attention / 2
    assert flops.others["six_active"] == 6 * counts.active
    assert flops.others["six_total"] == 6 * counts.total
    norms = counts.by_group["norms"]
    assert flops.others["all_matmuls"] == flops.house + output - 6 * norms


def test_groups_sum_to_the_total():
    for mtp_depth in (0, 1):
        config = dataclasses.replace(LING_MINI, mtp_depth=mtp_depth)
        counts = count_params(config)
        assert sum(counts.by_group.values()) == counts.total
        layers = sum(layer.total for layer in layer_counts(config))
        assert layers + counts.embedding + config.hidden_size == counts.total
