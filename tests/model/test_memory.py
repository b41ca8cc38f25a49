"""Estimated memory against the bytes that the built module really saves for its backward pass."""

import dataclasses

import pytest
import torch

from model import loss
from model.accounting import count_params
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.kernels import on_gpu, step
from model.kernels.compiled import NoCompiledKernel, load_library
from model.memory import PrecisionPlan, activation_memory, state_memory
from model.transformer import build_model

FLOAT32 = PrecisionPlan(
    weight_bytes=4,
    gradient_bytes=4,
    master_bytes=0,
    moment_bytes=8,
    stream_bytes=4,
    product_bytes=4,
)
BFLOAT16 = dataclasses.replace(
    FLOAT32, weight_bytes=2, master_bytes=4, stream_bytes=2, product_bytes=2
)
AUTOCAST = dataclasses.replace(FLOAT32, product_bytes=2)

BASE = ModelConfig(
    vocab_size=100,
    hidden_size=64,
    num_layers=3,
    num_dense_layers=1,
    dense_width=160,
    attention=AttentionConfig(num_heads=8, num_kv_heads=4, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=32, experts_per_token=4, expert_width=16, num_groups=4, groups_per_token=2
    ),
)
CONFIGS = {
    "mixture": BASE,
    "dense": dataclasses.replace(BASE, moe=None),
    "mtp": dataclasses.replace(BASE, mtp_depth=1),
    "no shared expert": dataclasses.replace(
        BASE, moe=dataclasses.replace(BASE.moe, num_shared_experts=0)
    ),
    "no QK-norm": dataclasses.replace(
        BASE, attention=dataclasses.replace(BASE.attention, qk_norm=False)
    ),
    "a gate a head": dataclasses.replace(
        BASE, attention=dataclasses.replace(BASE.attention, output_gate="headwise")
    ),
    "a gate an element": dataclasses.replace(
        BASE, attention=dataclasses.replace(BASE.attention, output_gate="elementwise")
    ),
    "wide, large vocabulary": dataclasses.replace(
        BASE,
        hidden_size=256,
        vocab_size=3000,
        attention=AttentionConfig(num_heads=4, num_kv_heads=1, head_dim=64, rotary_dim=32),
    ),
    "many experts": dataclasses.replace(
        BASE, moe=dataclasses.replace(BASE.moe, num_experts=256, experts_per_token=8)
    ),
}


@pytest.fixture
def plainly(monkeypatch):
    """The framework's operations and a whole output layer, whose memory the closed form states."""
    monkeypatch.setattr(step, "serves", lambda *tensors: False)
    monkeypatch.setattr(loss, "BLOCK_SCORES", 2**60)


def saved_bytes(config, sequence_length, sequences, dtype, kernel="grouped"):
    """Bytes of every storage that autograd holds after a forward pass, weights aside."""
    model = build_model(config, seed=0, dtype=dtype, kernel=kernel)
    weights = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    held = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held[storage.data_ptr()] = tensor  # kept, so that no address is used twice
        return tensor

    tokens = torch.randint(
        0,
        config.vocab_size,
        (sequences, sequence_length),
        generator=torch.Generator().manual_seed(0),
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = model(tokens, tokens)
    assert result.token_nats_BT.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in held.values())


@pytest.mark.parametrize(("dtype", "plan"), [(torch.float32, FLOAT32), (torch.bfloat16, BFLOAT16)])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_activations_are_what_autograd_holds(config, dtype, plan, plainly):
    measured = saved_bytes(config, 96, 4, dtype)
    estimated = activation_memory(config, plan, sequence_length=96, sequences=4).total
    assert estimated == pytest.approx(measured, rel=0.01)


@pytest.mark.skipif(torch.cuda.is_available(), reason="counts what a CPU's interpreter keeps")
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_fused_operations_of_a_gpu_keep_what_is_said_of_them(config, plainly, monkeypatch):
    pytest.importorskip("triton", reason="Triton is not installed")
    monkeypatch.setattr(on_gpu, "module_for", lambda name, *_: on_gpu.module(name))
    measured = saved_bytes(config, 96, 4, torch.float32)
    kept = activation_memory(config, FLOAT32, sequence_length=96, sequences=4, fused=True).total
    assert kept == pytest.approx(measured, rel=0.01)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_activations_and_copies_of_the_weights_under_autocast(config, plainly):
    """Within a tenth: autocast keeps a few tensors in one type or the other as it sees fit."""
    with torch.autocast("cpu", torch.bfloat16):
        measured = saved_bytes(config, 96, 4, torch.float32)
    kept = activation_memory(config, AUTOCAST, sequence_length=96, sequences=4)
    assert kept.weight_copies > 0.02 * measured
    assert kept.total == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("kind", ["a gate a head", "a gate an element"])
def test_what_a_gate_adds_under_autocast_to_the_byte(kind, plainly):
    def measured_and_kept(config):
        with torch.autocast("cpu", torch.bfloat16):
            measured = saved_bytes(config, 96, 4, torch.float32)
        return measured, activation_memory(config, AUTOCAST, sequence_length=96, sequences=4).total

    (before, kept_before), (measured, kept) = map(measured_and_kept, (BASE, CONFIGS[kind]))
    assert measured - before == kept - kept_before > 0


def test_the_compiled_kernel_keeps_the_same(plainly):
    """It rounds each expert's visits up to whole vectors, which many tokens make small."""
    try:
        load_library()
    except NoCompiledKernel as error:
        pytest.skip(f"no compiled kernel here: {error}")
    measured = saved_bytes(BASE, 256, 8, torch.float32, kernel="cpu")
    estimated = activation_memory(BASE, FLOAT32, sequence_length=256, sequences=8).total
    assert estimated == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_compiled_operations_and_blocks_keep_no_more(config, monkeypatch):
    monkeypatch.setattr(loss, "BLOCK_SCORES", 2**14)
    measured = saved_bytes(config, 96, 4, torch.float32)
    estimated = activation_memory(config, FLOAT32, sequence_length=96, sequences=4)
    assert 0.5 * (estimated.total - estimated.ends) < measured <= 1.02 * estimated.total


def test_each_layer_is_what_a_model_with_one_layer_more_holds(plainly):
    plain = dataclasses.replace(BASE, num_dense_layers=3)
    for layer, config in ((2, dataclasses.replace(BASE, num_dense_layers=2)), (0, plain)):
        estimate = activation_memory(config, FLOAT32, sequence_length=96, sequences=4)
        shorter = dataclasses.replace(config, num_layers=2, num_dense_layers=2)
        difference = saved_bytes(config, 96, 4, torch.float32)
        difference -= saved_bytes(shorter, 96, 4, torch.float32)
        last = estimate.layers[-1]
        assert last == pytest.approx(difference, rel=0.01), layer


def test_activations_grow_with_the_micro_batch_and_not_with_the_square_of_the_sequence():
    def total(sequences, length):
        return activation_memory(BASE, FLOAT32, sequence_length=length, sequences=sequences).total

    tables = 2 * 128 * 12 * 8 * 4
    assert total(4, 128) - tables == 4 * (total(1, 128) - tables)
    assert total(1, 512) == 4 * total(1, 128)


def test_state_is_so_many_bytes_a_parameter():
    params = count_params(BASE).total
    assert state_memory(BASE, FLOAT32).total == 16 * params
    assert state_memory(BASE, BFLOAT16).total == 18 * params
    model = build_model(BASE, seed=0)
    optimizer = torch.optim.AdamW(model.parameters())
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    model(tokens, tokens).loss_nats.backward()
    optimizer.step()
    state = state_memory(BASE, FLOAT32)
    moments = sum(
        value.nbytes
        for values in optimizer.state.values()
        for value in values.values()
        if value.dim()
    )
    assert state.moments == moments
    assert state.gradients == sum(p.grad.nbytes for p in model.parameters())
    assert state.weights == sum(p.nbytes for p in model.parameters())


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="weight_bytes must be >= 1, got 0"):
        dataclasses.replace(FLOAT32, weight_bytes=0)
