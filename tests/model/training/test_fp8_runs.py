"""Training in FP8: near float32, and layers beyond a limit go on in bfloat16 and say so."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import toy_runs
from toy_runs import RUNTIME, lines, train_until

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training import fp8 as rules
from model.training.config import BalanceConfig, EvaluationConfig
from model.training.corpora import SyntheticCorpus
from model.training.data import prepare_corpus
from model.training.fp8 import Fp8Layers
from model.training.precision import computing_in
from model.training.trainer import train
from model.transformer import build_model

MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=32,
    num_layers=2,
    dense_width=48,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=4, experts_per_token=2, expert_width=16),
    init_std=0.1,
)

TRAIN = replace(
    toy_runs.TRAIN,
    tokens=64 * 10,
    batch_tokens=64,
    seed=0,
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(heldout_tokens=512, num_intermediate=0),
    precision="fp8",
)


def loss_and_gradients(precision, config=MODEL, **fallen):
    model = build_model(config, seed=0)
    layers = Fp8Layers(model, **fallen) if precision == "fp8" else None
    if layers is not None:
        layers.watch()
    tokens = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(1))
    with computing_in(precision, torch.device("cpu")):
        loss = model(tokens[:, :-1], tokens[:, 1:]).loss_nats
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.item(), gradients, layers


def test_a_model_in_fp8_is_near_the_one_in_fp32():
    exact, exact_gradients, _ = loss_and_gradients("fp32")
    loss, gradients, layers = loss_and_gradients("fp8")
    line = layers.verdict()

    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.01)
    assert gradients.keys() == exact_gradients.keys()
    for name in ("blocks.1.feed_forward.experts.w_down", "blocks.0.attention.qkv.weight"):
        cosine = torch.cosine_similarity(
            gradients[name].flatten(), exact_gradients[name].flatten(), dim=0
        )
        assert 0.9 < cosine < 0.999999, name
    # Every product of attention and feed-forwards; the prediction block's own projection stays.
    expected = {
        *(f"blocks.{n}.attention.{name}" for n in (0, 1) for name in ("qkv", "out")),
        *(f"blocks.0.feed_forward.{name}" for name in ("gate_up", "down")),
        *(
            f"blocks.1.feed_forward.{part}.{name}"
            for part in ("experts", "shared")
            for name in ("gate_up", "down")
        ),
    }
    assert expected <= set(line["cosine"])
    assert all(name.startswith("mtp.block.") for name in set(line["cosine"]) - expected)
    assert not any("projection" in name or "output" in name for name in line["cosine"])
    assert line["fallen"] == {}


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_the_projection_of_an_output_gate_is_one_of_attentions(gate):
    config = replace(MODEL, attention=replace(MODEL.attention, output_gate=gate))
    exact, exact_gradients, _ = loss_and_gradients("fp32", config)
    loss, gradients, layers = loss_and_gradients("fp8", config)
    assert loss == pytest.approx(exact, rel=0.01)
    name = "blocks.0.attention.output_gate"
    assert name in layers.verdict()["cosine"]
    found = [grads[f"{name}.weight"].flatten() for grads in (gradients, exact_gradients)]
    assert 0.9 < torch.cosine_similarity(*found, dim=0) < 0.999999


def test_a_layer_beyond_a_limit_falls_back_and_says_so(monkeypatch, caplog):
    monkeypatch.setattr(rules, "MIN_COSINE", 0.99999)
    _, _, layers = loss_and_gradients("fp8")
    line = layers.verdict()

    name = "blocks.0.attention.qkv"
    assert "is below 0.99999" in line["fallen"][name]
    assert f"{name} computes in bfloat16 from now on: cosine" in caplog.text
    assert set(layers.fallen) == set(line["fallen"])
    # With every layer fallen back it is bfloat16.
    loss, _, _ = loss_and_gradients("fp8", fallen=layers.fallen)
    in_bf16, _, _ = loss_and_gradients("bf16")
    assert loss == pytest.approx(in_bf16, rel=2e-3)


def test_only_every_hundredth_step_is_looked_at():
    layers = Fp8Layers(build_model(MODEL, seed=0))
    assert [step for step in range(250) if layers.is_due(step)] == [0, 100, 200]


def test_a_run_in_fp8_goes_on_with_the_layers_that_fell_back(tmp_path, monkeypatch):
    monkeypatch.setattr(rules, "MEASURE_EVERY", 4)
    monkeypatch.setattr(rules, "MIN_COSINE", 0.9997)
    corpus = prepare_corpus(SyntheticCorpus(tokens=20_000, num_symbols=8), tmp_path / "data")
    model = replace(MODEL, vocab_size=257, mtp_depth=0)

    whole = train(model, TRAIN, corpus, RUNTIME, tmp_path / "whole")
    train_until(6, model, TRAIN, corpus, tmp_path / "run")
    resumed = train(model, TRAIN, corpus, RUNTIME, tmp_path / "run")

    assert whole.status == "done"
    assert len(whole.fp8_fallen) > 0
    assert resumed.fp8_fallen == whole.fp8_fallen
    assert resumed.loss_nats == whole.loss_nats
    looks = lines(tmp_path / "whole", "fp8")
    assert [line["step"] for line in looks] == [1, 5, 9]
    told = [name for line in looks for name in line["fallen"]]
    assert tuple(told) == whole.fp8_fallen
    for earlier, later in pairwise(looks):
        assert not set(earlier["fallen"]) & set(later["cosine"]), "it computes in bfloat16"
