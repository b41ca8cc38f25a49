"""The held-out measurement against plain counts over the same windows."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pytest
import torch

from analysis.records import LayerLoad as RecordedLoad
from model.balance import RoutingRequest
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training import evaluate
from model.training.evaluate import Evaluator, plain_forward
from model.training.mirrors import flat
from model.transformer import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

WINDOWS, LENGTH = {"code": 20, "prose": 11}, 6
CONFIG = ModelConfig(
    vocab_size=23,
    hidden_size=16,
    num_layers=2,
    num_dense_layers=1,
    dense_width=24,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4),
    moe=MoEConfig(num_experts=6, experts_per_token=2, expert_width=8),
    mtp_depth=1,
    init_std=0.3,
)


class TwoDomains:
    """What an evaluator asks of a corpus; prose has other tokens than code."""

    domains = tuple(WINDOWS)

    @property
    def weights(self):
        return {"code": 0.75, "prose": 0.25}

    def heldout(self, name, sequence_length, tokens):
        draw = np.random.default_rng(len(name))
        low, high = (0, 14) if name == "code" else (9, 23)
        return draw.integers(low, high, (WINDOWS[name], sequence_length + 1))

    def count_bytes(self, targets):
        return int((1 + targets // 8).sum())


@pytest.fixture
def models():
    return [build_model(CONFIG, seed=seed) for seed in (0, 1)]


@pytest.fixture
def evaluator(monkeypatch):
    monkeypatch.setattr(evaluate, "EVALUATE_AT_ONCE", 5 * LENGTH)  # several passes a domain
    return Evaluator(CONFIG, TwoDomains(), sequence_length=LENGTH, tokens_per_domain=10**6)


def run_of(model):
    return plain_forward(model, "fp32", torch.device("cpu"))


def routed(model, name):
    """Every window of a domain in one pass: nats [B, T], and by layer choices and gates."""
    windows = torch.from_numpy(TwoDomains().heldout(name, LENGTH, 0))
    with torch.no_grad():
        result = model(windows[:, :-1], windows[:, 1:], request=RoutingRequest(detail=True))
    choices = [stats.detail.expert_TK.view(len(windows), LENGTH, 2) for stats in result.routing]
    gates = [stats.detail.gate_TK.view(len(windows), LENGTH, 2) for stats in result.routing]
    return result.token_nats_BT, choices, gates


def test_losses_and_loads_are_those_of_a_plain_count(models, evaluator):
    measured = evaluator(run_of(models[0]))
    by_domain = {name: routed(models[0], name) for name in WINDOWS}
    code, prose = (by_domain[name][0].double().mean().item() for name in WINDOWS)
    assert measured.loss_nats == pytest.approx(0.75 * code + 0.25 * prose, rel=1e-6)
    of_code, of_prose = (  # bytes a token, of the targets
        (1 + TwoDomains().heldout(name, LENGTH, 0)[:, 1:] // 8).mean() for name in WINDOWS
    )
    bits = prose / math.log(2) / of_prose
    assert measured.by_domain["prose"].bits_per_byte == pytest.approx(bits, rel=1e-6)
    bits = (0.75 * code + 0.25 * prose) / math.log(2) / (0.75 * of_code + 0.25 * of_prose)
    assert measured.bits_per_byte == pytest.approx(bits, rel=1e-6)
    code, prose = (by_domain[name][0][:, 2:4].double().mean().item() for name in WINDOWS)
    at_two = dict(measured.by_position)[2]
    assert at_two == pytest.approx(0.75 * code + 0.25 * prose, rel=1e-6)
    assert [use.layer for use in measured.load_by_layer] == [1, 2]
    for row, use in enumerate(measured.load_by_layer):
        counts = Counter()
        vios = []
        for name in WINDOWS:
            chosen = by_domain[name][1][row]
            share = torch.bincount(chosen.flatten(), minlength=6) / chosen.numel()
            assert measured.load_by_domain[name][row] == pytest.approx(share.tolist())
            counts.update(chosen.flatten().tolist())
            for batch in chosen.split(5):
                load = torch.bincount(batch.flatten(), minlength=6)
                vios.append((load.max() / load.double().mean() - 1).item())
        total = sum(counts.values())
        assert use.load == pytest.approx([counts[e] / total for e in range(6)])
        assert use.max_vio == pytest.approx(6 * max(counts.values()) / total - 1)
        assert use.batch_max_vio == pytest.approx(sum(vios) / len(vios))
        assert use.batch_max_vio > use.max_vio > 0


def test_the_close_look_is_at_every_eighth_window(models, evaluator):
    measured = evaluator(run_of(models[0]))
    brief = evaluator.briefly(run_of(models[0]))
    assert measured.by_domain["code"].tokens == 20 * LENGTH
    assert brief.by_domain["code"].tokens == 3 * LENGTH  # windows 0, 8 and 16
    assert torch.equal(measured.choices_LTK, brief.choices_LTK)
    looked_at = {name: routed(models[0], name) for name in WINDOWS}
    for row, use in enumerate(measured.load_by_layer):
        chosen = torch.cat([looked_at[name][1][row][::8].flatten(0, 1) for name in WINDOWS])
        gates = torch.cat([looked_at[name][2][row][::8].flatten(0, 1) for name in WINDOWS])
        assert torch.equal(measured.choices_LTK[row].long(), chosen)
        first = gates[:, 0].double() / gates.sum(-1)
        entropy = -(first * first.log() + (1 - first) * (1 - first).log())
        assert use.gate_entropy == pytest.approx((entropy.exp() / 2).mean().item(), rel=1e-5)
        together = torch.zeros(6, 6, dtype=torch.float64)
        for one, other in chosen.tolist():
            together[one, other] += 1
            together[other, one] += 1
        tokens = torch.bincount(chosen.flatten(), minlength=6)
        partners = (together / tokens.clamp(min=1)[:, None]).amax(-1)[tokens > 0]
        assert use.coactivation == pytest.approx(partners.mean().item())
        pairs = measured.pairs[row]
        assert pairs.experts == tuple(range(6))
        expected = (together[2, 4] / tokens[2].clamp(min=1)).item()
        assert pairs.share[2][4] == pytest.approx(expected, abs=1e-4)


def test_saturation_is_against_the_evaluation_before_brief_or_not(models, evaluator):
    first = evaluator.briefly(run_of(models[0]))
    assert {use.saturation for use in first.load_by_layer} == {None}
    again = evaluator(run_of(models[0]), first.choices_LTK)
    assert [use.saturation for use in again.load_by_layer] == [1.0, 1.0]
    other = evaluator(run_of(models[1]), first.choices_LTK)
    for row, use in enumerate(other.load_by_layer):
        kept = [
            len(set(a) & set(b)) / 2
            for a, b in zip(
                first.choices_LTK[row].tolist(), other.choices_LTK[row].tolist(), strict=True
            )
        ]
        assert use.saturation == pytest.approx(sum(kept) / len(kept))
        assert 0 < use.saturation < 1


def test_a_line_holds_a_number_a_layer_and_the_last_one_the_figures(models, evaluator):
    measured = evaluator(run_of(models[0]))
    line = json.loads(json.dumps(measured.line(), allow_nan=False))
    assert line["layers"] == [1, 2]
    assert line["gate_entropy"] == [use.gate_entropy for use in measured.load_by_layer]
    assert line["saturation"] == [None, None]
    assert "pairs" not in line
    last = json.loads(json.dumps(measured.final_line(), allow_nan=False))
    assert last["final"]
    assert np.shape(last["load_by_domain"]["code"]) == (2, 6)
    assert np.shape(last["pairs"][0]["share"]) == (6, 6)
    mirrored = flat(last)
    assert mirrored["gate_entropy/layer2"] == line["gate_entropy"][1]
    assert all(isinstance(value, bool | int | float) for value in mirrored.values())


def test_a_record_takes_every_field_of_a_layer(models, evaluator):
    for use in evaluator(run_of(models[0])).load_by_layer:
        assert vars(RecordedLoad(**vars(use))) == vars(use)


def test_a_loss_that_is_no_number_says_nothing_of_the_experts(evaluator):
    model = build_model(CONFIG, seed=0)
    with torch.no_grad():
        model.output.weight.fill_(math.nan)
    measured = evaluator(run_of(model))
    assert math.isnan(measured.loss_nats)
    assert (measured.load_by_layer, measured.choices_LTK) == ((), None)


def test_a_dense_model_has_losses_alone():
    dense = ModelConfig(
        vocab_size=23, hidden_size=16, num_layers=1, dense_width=8, attention=CONFIG.attention
    )
    evaluator = Evaluator(dense, TwoDomains(), sequence_length=LENGTH, tokens_per_domain=10**6)
    measured = evaluator(run_of(build_model(dense, seed=0)))
    assert (measured.load_by_layer, measured.load_by_domain, measured.pairs) == ((), {}, ())
    assert "layers" not in measured.final_line()
