"""Passes played back as a CUDA graph against the same passes through autograd: the same bits.

Which passes are captured is tested everywhere, that the bits are the same on a GPU alone.
"""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import toy_runs

from model.config import YarnConfig
from model.layers import Rotary
from model.training.batch import forward_backward
from model.training.config import RuntimeConfig
from model.training.graphed import Graphed, _first_of
from model.training.learner import Gradients
from model.training.optim import build_optimizer, global_norm
from model.training.run import initial_state
from model.training.runtime import set_up
from model.training.trainer import train
from model.training.whole import WholeModel
from model.transformer import build_model

on_a_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

MODEL = replace(
    toy_runs.MODEL,
    hidden_size=32,
    num_layers=3,
    moe=replace(toy_runs.MODEL.moe, num_groups=4, groups_per_token=2),
)
TRAINS = {
    "float32": toy_runs.TRAIN,
    "bfloat16": replace(toy_runs.TRAIN, precision="bf16"),
    "bfloat16 weights": replace(
        toy_runs.TRAIN,
        precision="bf16_weights",
        optimizer=replace(toy_runs.TRAIN.optimizer, kind="adamw8bit"),
    ),
    "losses of the routers": replace(
        toy_runs.TRAIN,
        balance=replace(toy_runs.TRAIN.balance, aux_loss_weight=0.01, z_loss_weight=0.001),
    ),
}


def batch(seed: int, sequences: int = 3, length: int = 16) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(MODEL.vocab_size, (sequences, length + 1), generator=draw)


def on_gpu(config, train_config):
    dtype = torch.bfloat16 if train_config.precision == "bf16_weights" else torch.float32
    return build_model(config, seed=0, device=set_up(RuntimeConfig(device="cuda")), dtype=dtype)


def through_autograd(model, graphed, train_config, windows) -> None:
    """What a run does with a shape that it sees first."""
    assert graphed.forward_backward(windows) is None
    forward_backward(model, windows.cuda(), train_config)
    model.zero_grad()


def assert_same(model, graphed, train_config, windows) -> None:
    model.zero_grad()
    found = graphed.forward_backward(windows)
    assert found is not None
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    loads = [load.clone() for load in found.loads]
    model.zero_grad()
    plain = forward_backward(model, windows.cuda(), train_config)
    assert (found.loss_nats, found.mtp_nats) == (plain.loss_nats, plain.mtp_nats)
    for mine, load in zip(loads, plain.loads, strict=True):
        assert torch.equal(mine, load)
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        assert (grad is None) == (parameter.grad is None)
        assert grad is None or torch.equal(grad, parameter.grad)
    assert found.norm == global_norm([g for g in grads if g is not None]).item()
    model.zero_grad()


@on_a_gpu
@pytest.mark.parametrize("train_config", TRAINS.values(), ids=TRAINS.keys())
@pytest.mark.parametrize("kind", ["mixture", "without prediction", "dense"])
def test_the_same_bits_step_after_step(train_config, kind):
    changes = {"mixture": {}, "without prediction": {"mtp_depth": 0}, "dense": {"moe": None}}
    model = on_gpu(replace(MODEL, **changes[kind]), train_config)
    graphed = Graphed(model, train_config)
    optimizer = build_optimizer(model, train_config.optimizer)
    through_autograd(model, graphed, train_config, batch(0))
    for seed in range(4):
        assert_same(model, graphed, train_config, batch(seed))
        graphed.forward_backward(batch(seed))
        optimizer.step()
        for router in model.routers():
            router.selection_bias += 0.01 * torch.randn(8, device="cuda")
    through_autograd(model, graphed, train_config, batch(7, sequences=2))
    assert_same(model, graphed, train_config, batch(7, sequences=2))
    assert_same(model, graphed, train_config, batch(8))


@on_a_gpu
def test_another_rotary_embedding_is_seen():
    model = on_gpu(MODEL, toy_runs.TRAIN)
    graphed = Graphed(model, toy_runs.TRAIN)
    through_autograd(model, graphed, toy_runs.TRAIN, batch(0))
    assert_same(model, graphed, toy_runs.TRAIN, batch(0))
    attention = replace(MODEL.attention, yarn=YarnConfig(factor=4.0, original_positions=16))
    model.rotary = Rotary(attention)
    through_autograd(model, graphed, toy_runs.TRAIN, batch(0))
    assert_same(model, graphed, toy_runs.TRAIN, batch(0))


@on_a_gpu
def test_what_waits_for_the_device_goes_through_autograd(monkeypatch, caplog):
    model = on_gpu(MODEL, toy_runs.TRAIN)
    monkeypatch.setattr(
        "model.balance.count_choices",
        lambda expert_TK, num: torch.bincount(expert_TK.flatten(), minlength=num),
    )
    graphed = Graphed(model, toy_runs.TRAIN)
    for seed in range(3):
        assert graphed.forward_backward(batch(seed)) is None
        found = forward_backward(model, batch(seed).cuda(), toy_runs.TRAIN)
        assert found.loss_nats > 0
    assert caplog.text.count("no CUDA graph") == 1


@on_a_gpu
def test_a_run_is_that_of_autograd_also_when_it_was_interrupted(corpus, tmp_path, monkeypatch):
    runtime = RuntimeConfig(device="cuda")

    def to_the_end(name, **options):
        return train(MODEL, toy_runs.TRAIN, corpus, runtime, tmp_path / name, **options)

    replays = []
    replay = Graphed._replay
    monkeypatch.setattr(Graphed, "_replay", lambda *given: replays.append(1) or replay(*given))
    graphed = to_the_end("graphed")
    assert len(replays) == toy_runs.TRAIN.num_steps - 1
    monkeypatch.setattr("model.training.progress.PROGRESS_EVERY_S", 0.0)
    with pytest.raises(toy_runs.Enough):
        to_the_end("interrupted", on_progress=toy_runs.enough_at(11))
    interrupted = to_the_end("interrupted")
    monkeypatch.setattr(Graphed, "serves", staticmethod(lambda *given: False))
    plain = to_the_end("plain")
    assert graphed.loss_nats == interrupted.loss_nats == plain.loss_nats
    for name in ("interrupted", "plain"):
        toy_runs.assert_same_run(tmp_path / "graphed", tmp_path / name)


@pytest.fixture
def captures(monkeypatch):
    """Shapes of the passes that are captured, without a GPU to capture them."""
    shapes = []
    monkeypatch.setattr(
        Graphed, "_capture", lambda self, windows: shapes.append(windows.shape) or 1
    )
    monkeypatch.setattr(Graphed, "_replay", lambda self, graph, windows: graph)
    return shapes


def test_a_shape_is_captured_once_autograd_has_gone_through_it(captures):
    model = build_model(MODEL, seed=0)
    graphed = Graphed(model, toy_runs.TRAIN)
    few = batch(0, sequences=2)
    found = [graphed.forward_backward(windows) for windows in (batch(0), few, batch(1), few)]
    assert found == [None, None, 1, 1]
    assert captures == [batch(0).shape, few.shape]
    assert graphed.forward_backward(batch(2)) == 1
    assert len(captures) == 2


def test_what_was_put_in_the_place_of_something_else_is_captured_anew(captures):
    model = build_model(MODEL, seed=0)
    graphed = Graphed(model, toy_runs.TRAIN)

    def again():
        return graphed.forward_backward(batch(0)), graphed.forward_backward(batch(0))

    assert again() == (None, 1)
    assert again() == (1, 1)
    model.rotary = Rotary(MODEL.attention)
    assert again() == (None, 1)
    model.norm.weight.data = model.norm.weight.data.clone()
    assert again() == (None, 1)
    next(model.routers()).selection_bias.data = torch.zeros(8)
    assert again() == (None, 1)
    assert len(captures) == 4


def test_a_large_pass_is_left_to_autograd(captures, monkeypatch):
    graphed = Graphed(build_model(MODEL, seed=0), toy_runs.TRAIN)
    monkeypatch.setattr("model.training.graphed.MOST_NUMBERS", batch(0).numel() * 32 - 1)
    assert [graphed.forward_backward(batch(0)) for _ in range(3)] == [None] * 3
    monkeypatch.setattr("model.training.graphed.MOST_NUMBERS", batch(0).numel() * 32)
    assert [graphed.forward_backward(batch(0)) for _ in range(2)] == [None, 1]


def test_what_cannot_be_captured_is_tried_once(captures, monkeypatch):
    monkeypatch.setattr(Graphed, "_capture", lambda self, windows: captures.append(1))
    graphed = Graphed(build_model(MODEL, seed=0), toy_runs.TRAIN)
    assert [graphed.forward_backward(batch(0)) for _ in range(4)] == [None] * 4
    assert captures == [1]


def test_which_runs_may_be_captured():
    model, gpu, cpu = build_model(MODEL, seed=0), torch.device("cuda"), torch.device("cpu")
    assert Graphed.serves(model, toy_runs.TRAIN, gpu)
    assert not Graphed.serves(model, toy_runs.TRAIN, cpu)
    assert not Graphed.serves(model, replace(toy_runs.TRAIN, precision="fp8"), gpu)
    model.config = SimpleNamespace(own=("a part",))
    assert not Graphed.serves(model, toy_runs.TRAIN, gpu)


def test_the_refusal_that_is_told_is_the_first():
    first, last = RuntimeError("not permitted while capturing"), RuntimeError("an earlier error")
    last.__context__ = first
    assert _first_of(last) is first


def test_the_norm_that_came_with_a_pass_is_that_passs_alone(monkeypatch):
    monkeypatch.setattr("model.kernels.adamw.serves", lambda tensors: False)
    cpu = torch.device("cpu")
    whole = WholeModel(MODEL, toy_runs.TRAIN, initial_state(MODEL, toy_runs.TRAIN, cpu), cpu)

    class Once:
        found = Gradients(5.0, 0.0, [], norm=2.0)

        def forward_backward(self, windows):
            for p in whole.model.parameters():
                p.grad = torch.ones_like(p)
            found, self.found = self.found, None
            return found

    whole._captured = Once()
    assert whole.forward_backward(batch(0)).loss_nats == 5.0
    assert whole.clip(0.5) == 2.0
    assert all((p.grad == 0.25).all() for p in whole.model.parameters())
    whole.forward_backward(batch(0))  # through autograd
    norm = global_norm([p.grad for p in whole.model.parameters() if p.grad is not None]).item()
    assert whole.clip(1e9) == norm != 2.0
