"""bfloat16 on a CPU that multiplies it: by operations of our own, elsewhere by the framework's."""

from dataclasses import replace

import pytest
import torch
import toy_runs
from torch import Tensor

from model.kernels import block, loss, rounding
from model.training import precision
from model.training.captured import Captured
from model.training.precision import computing_here, computing_in
from model.training.products import products_told
from model.transformer import build_model

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not block.serves(torch.ones(1)) or not block.can_round(), reason="no bfloat16 products here"
    ),
]

CPU = torch.device("cpu")
MODEL = replace(toy_runs.MODEL, mtp_depth=0)


def windows_of(seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(MODEL.vocab_size, (3, 10), generator=draw)


def gradients_of(model, windows, context) -> list[Tensor]:
    model.zero_grad()
    with context("bf16", CPU):
        nats = model(windows[:, :-1], windows[:, 1:]).loss_nats
    nats.backward()
    return [nats.detach(), *(p.grad.clone() for p in model.parameters())]


def test_a_pass_is_played_back_in_the_same_bits():
    model = build_model(MODEL, seed=0)
    captured = Captured(model, "bf16")
    for seed in range(3):
        windows = windows_of(seed)
        model.zero_grad()
        found = captured.forward_backward(windows)
        mine = [torch.tensor(found.loss_nats), *(p.grad.clone() for p in model.parameters())]
        for a, b in zip(mine, gradients_of(model, windows, computing_here), strict=True):
            assert torch.equal(a, b)


def test_a_cpu_that_cannot_round_leaves_bfloat16_to_the_framework(monkeypatch):
    model = build_model(MODEL, seed=0)
    windows = windows_of(0)
    by_framework = gradients_of(model, windows, computing_in)
    by_itself = gradients_of(model, windows, computing_here)
    assert not torch.equal(by_framework[1], by_itself[1])
    torch.testing.assert_close(by_framework[0], by_itself[0], rtol=1e-2, atol=0)
    monkeypatch.setattr(precision.block, "can_round", lambda: False)
    for a, b in zip(by_framework, gradients_of(model, windows, computing_here), strict=True):
        assert torch.equal(a, b)
    assert not rounding.is_on()


def test_a_record_tells_what_multiplied(monkeypatch):
    by = "the tile unit" if block.has_tiles() else "vector registers"
    assert products_told(MODEL, "bf16", CPU)["bf16_products"] == by
    assert "bf16_products" not in products_told(MODEL, "fp32", CPU)
    monkeypatch.setattr(precision.block, "can_round", lambda: False)
    assert products_told(MODEL, "bf16", CPU)["bf16_products"] == "the framework"


def test_a_record_tells_of_a_loss_in_panels(monkeypatch):
    large = replace(MODEL, vocab_size=4097)
    monkeypatch.setattr(loss, "takes_panels", lambda vocabulary: vocabulary > 4096)
    assert products_told(large, "fp32", CPU)["loss"] == "in panels of the vocabulary"
    assert "loss" not in products_told(MODEL, "fp32", CPU)
    assert "loss" not in products_told(large, "bf16", CPU)
