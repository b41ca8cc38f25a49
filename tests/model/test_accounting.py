"""Counts against the built module and the published sizes; FLOPs against the dispatcher's count
and the published learning rates.
"""

import dataclasses
import itertools
from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.accounting import (
    count_params,
    flops_per_token,
    layer_counts,
    layer_flops_per_token,
)
from model.attention import Attention
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.experts import RoutedExperts
from model.kernels import block, loss
from model.layers import RMSNorm, SwiGLU
from model.moe import MoE
from model.mtp import MultiTokenPrediction
from model.router import Router
from model.transformer import build_model


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
    # The published digits are partly cut, not rounded: 999.705 and 4.8646.
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


@pytest.mark.parametrize(("gate", "outputs"), [("headwise", 16), ("elementwise", 16 * 128)])
def test_an_output_gate_by_hand(gate, outputs):
    """Ling-mini's 20 layers of width 2048: 16 more rows of the projections each, or 2048.

    A weight is 6 FLOPs a token in training; a sigmoid and a product of elements are in no count of
    matrix products.
    """
    attention = dataclasses.replace(LING_MINI.attention, output_gate=gate)
    gated = dataclasses.replace(LING_MINI, attention=attention)
    weights = 20 * 2048 * outputs
    plain, counts = count_params(LING_MINI), count_params(gated)
    assert counts.by_group["attention"] - plain.by_group["attention"] == weights
    assert counts.total - plain.total == weights
    assert counts.active - plain.active == weights
    assert counts.active_non_embedding - plain.active_non_embedding == weights
    before, flops = flops_per_token(LING_MINI, 4096), flops_per_token(gated, 4096)
    assert flops.house - before.house == 6 * weights
    assert flops.others["all_matmuls"] - before.others["all_matmuls"] == 6 * weights


def test_layers_sum_to_the_house_convention():
    layers = layer_counts(LING_1T)
    parts = sum(layer_flops_per_token(LING_1T, layer, 4096) for layer in layers)
    assert parts + 6 * LING_1T.hidden_size == flops_per_token(LING_1T, 4096).house


def test_groups_sum_to_the_total():
    for mtp_depth in (0, 1):
        config = dataclasses.replace(LING_MINI, mtp_depth=mtp_depth)
        counts = count_params(config)
        assert sum(counts.by_group.values()) == counts.total
        layers = sum(layer.total for layer in layer_counts(config))
        assert layers + counts.embedding + config.hidden_size == counts.total


SMALL = ModelConfig(
    vocab_size=101,
    hidden_size=48,
    num_layers=3,
    dense_width=56,
    num_dense_layers=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=10, rotary_dim=4),
    moe=MoEConfig(
        num_experts=12, experts_per_token=3, expert_width=20, num_groups=3, groups_per_token=2
    ),
)


def grid():
    """Dense and mixture, leading dense layers, shared experts, MTP, GQA ratios, QK-norm, gates."""
    ffns = [
        (shared, dense_layers)
        for shared, dense_layers in itertools.product((0, 1, 2), (0, 1, 3))
        if dense_layers or shared != 2
    ]
    for ffn, mtp, kv_heads, qk_norm, gate in itertools.product(
        [*ffns, None], (0, 1), (1, 4), (True, False), ("none", "headwise", "elementwise")
    ):
        attention = dataclasses.replace(
            SMALL.attention, num_kv_heads=kv_heads, qk_norm=qk_norm, output_gate=gate
        )
        config = dataclasses.replace(SMALL, attention=attention, mtp_depth=mtp)
        if ffn is None:
            yield dataclasses.replace(config, moe=None, num_dense_layers=0)
        else:
            moe = dataclasses.replace(SMALL.moe, num_shared_experts=ffn[0])
            yield dataclasses.replace(config, moe=moe, num_dense_layers=ffn[1])


def groups_of_the_module(model: nn.Module) -> Counter[str]:
    """Parameters of the built module by the type of what owns them."""
    groups: Counter[str] = Counter()
    inside_mtp = set()
    for module in model.modules():
        if isinstance(module, MultiTokenPrediction):
            groups["mtp"] = size(module)
            inside_mtp = set(module.modules())
    shared = {m.shared for m in model.modules() if isinstance(m, MoE)}
    owners = {
        "norms": RMSNorm,
        "router": Router,
        "routed_experts": RoutedExperts,
        "dense_ffn": SwiGLU,
        "embedding": nn.Embedding,
    }
    for module in set(model.modules()) - inside_mtp:
        if isinstance(module, Attention):
            products = [module.qkv, module.out, module.output_gate]
            groups["attention"] += sum(size(product) for product in products if product)
        for name, owner in owners.items():
            if isinstance(module, owner):
                groups["shared_experts" if module in shared else name] += size(module)
    groups["output"] = size(model.output)
    return groups


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_group_is_what_the_built_module_has():
    configs = list(grid())
    assert len(configs) > 180
    for config in configs:
        model = build_model(config, seed=0, device="meta")
        counts = count_params(config)
        assert counts.total == size(model), config
        built = groups_of_the_module(model)
        assert {n: c for n, c in counts.by_group.items() if c} == {
            n: c for n, c in built.items() if c
        }, config
        layers = [*model.blocks, *([model.mtp] if model.mtp else [])]
        assert [c.total for c in layer_counts(config)] == [size(layer) for layer in layers]


@pytest.mark.parametrize("config", [LING_MINI, LING_FLASH, LING_1T])
def test_the_published_sizes_are_those_of_the_built_module(config):
    config = dataclasses.replace(config, mtp_depth=1)
    assert count_params(config).total == size(build_model(config, seed=0, device="meta"))


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mtp_depth": 1},
        {"num_dense_layers": 0},
        {"moe": None, "num_dense_layers": 0},
        {"attention": dataclasses.replace(SMALL.attention, num_kv_heads=4)},
        {"attention": dataclasses.replace(SMALL.attention, output_gate="headwise")},
        {"attention": dataclasses.replace(SMALL.attention, output_gate="elementwise")},
        {"moe": dataclasses.replace(SMALL.moe, num_shared_experts=2)},
    ],
    ids=[
        "mixture",
        "mtp",
        "no dense layer",
        "dense",
        "no GQA",
        "a gate a head",
        "a gate an element",
        "two shared",
    ],
)
def test_all_matmuls_agree_with_the_flop_counter(changes, backward, monkeypatch):
    """To the last FLOP, with kernels that the counter sees into: plain loop, plain attention."""
    for compiled in (block, loss):
        monkeypatch.setattr(compiled, "serves", lambda *tensors: False)
    config = dataclasses.replace(SMALL, **changes)
    model = build_model(config, seed=0, kernel="reference")
    batch, length = 2, 24
    tokens = torch.randint(0, 101, (batch, length), generator=torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result = model(tokens, tokens)
        if backward:
            total = result.loss_nats
            if result.mtp_loss_nats is not None:
                total = total + result.mtp_loss_nats
            total.backward()
    expected = flops_per_token(config, length).others["all_matmuls"] * batch * length
    # A forward pass is a third of a training step.
    counted = counter.get_total_flops() * (1 if backward else 3)
    assert counted == pytest.approx(expected, rel=1e-12)
