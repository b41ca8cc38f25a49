"""Passes played back against the same passes through autograd: the same bits, whatever changed."""

from dataclasses import replace

import pytest
import torch
import toy_runs

from model.config import YarnConfig
from model.kernels import block
from model.layers import Rotary
from model.training import captured as captured_module
from model.training.captured import Captured
from model.training.config import OptimizerConfig
from model.training.optim import build_optimizer
from model.transformer import build_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(not block.serves(torch.ones(1)), reason="no compiled operations here"),
]

MODEL = replace(
    toy_runs.MODEL,
    num_layers=3,
    mtp_depth=0,
    moe=replace(toy_runs.MODEL.moe, num_groups=4, groups_per_token=2),
)


def batch(seed: int, sequences: int = 3, length: int = 9) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(MODEL.vocab_size, (sequences, length + 1), generator=draw)


def assert_same(model, captured, windows) -> None:
    model.zero_grad()
    found = captured.forward_backward(windows)
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    plain = model(windows[:, :-1], windows[:, 1:])
    plain.loss_nats.backward()
    assert found.loss_nats == plain.loss_nats.item()
    for mine, stats in zip(found.loads, plain.routing, strict=True):
        assert torch.equal(mine, stats.load_E)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert torch.equal(grad, parameter.grad)


@pytest.fixture
def played(monkeypatch):
    """How many calls were made again."""
    again = captured_module.Call.again
    calls = []

    def counted(self):
        calls.append(self.function)
        return again(self)

    monkeypatch.setattr(captured_module.Call, "again", counted)
    return calls


@pytest.mark.parametrize("moe", [True, False])
def test_the_same_bits_step_after_step(moe, played):
    model = build_model(MODEL if moe else replace(MODEL, moe=None), seed=0)
    captured, optimizer = Captured(model), build_optimizer(model, OptimizerConfig(peak_lr=1e-2))
    for seed in range(4):
        assert_same(model, captured, batch(seed))
        optimizer.step()
        for router in model.routers():
            router.selection_bias += 0.01 * torch.randn(8)
    assert len(played) >= 3 * 2 * 8
    assert_same(model, captured, batch(7, sequences=2))  # another shape
    assert_same(model, captured, batch(8))


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_an_output_gate_is_played_back_with_the_rest(gate, played):
    gated = replace(MODEL, attention=replace(MODEL.attention, output_gate=gate))
    model = build_model(gated, seed=0)
    captured, optimizer = Captured(model), build_optimizer(model, OptimizerConfig(peak_lr=1e-2))
    opened = model.blocks[1].attention.output_gate.weight
    for seed in range(3):
        before = opened.clone()
        assert_same(model, captured, batch(seed))
        optimizer.step()
        assert not torch.equal(opened, before)
    assert played


def test_what_was_changed_in_between_is_seen(played):
    model = build_model(MODEL, seed=0)
    captured = Captured(model)
    assert_same(model, captured, batch(0))
    model.load_state_dict(build_model(MODEL, seed=1).state_dict())
    assert_same(model, captured, batch(1))
    before = len(played)
    assert before > 0
    yarn = YarnConfig(factor=4.0, original_positions=8)
    model.rotary = Rotary(replace(MODEL.attention, yarn=yarn))
    assert_same(model, captured, batch(2))
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    assert_same(model, captured, batch(3))
    torch.set_num_threads(2)
    assert_same(model, captured, batch(4))
    assert len(played) == before  # three new first passes
    assert_same(model, captured, batch(5))
    assert len(played) > before


@pytest.mark.parametrize("why", ["prediction of a second token", "an operation of the framework"])
def test_a_pass_of_more_than_compiled_calls_is_left_to_autograd(why):
    config = MODEL
    if why == "prediction of a second token":
        config = replace(MODEL, mtp_depth=1)
    model = build_model(config, seed=0)
    if why == "an operation of the framework":
        model.blocks[1].register_forward_hook(lambda _, __, out: (out[0] * 1.0, out[1]))
    captured = Captured(model)
    for seed in range(3):
        assert captured.forward_backward(batch(seed)) is None


def test_a_large_pass_is_left_to_autograd(monkeypatch):
    monkeypatch.setattr(captured_module, "MOST_NUMBERS", 100)
    assert Captured(build_model(MODEL, seed=0)).forward_backward(batch(0)) is None


def test_a_token_outside_the_vocabulary_is_refused():
    captured = Captured(build_model(MODEL, seed=0))
    assert captured.forward_backward(batch(0)) is not None
    wrong = batch(1)
    wrong[1, 4] = MODEL.vocab_size
    with pytest.raises(IndexError, match="vocabulary"):
        captured.forward_backward(wrong)
