"""Stages: text, context, rate and balance change at their step, and each stage is measured."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import toy_runs
from toy_runs import CORPUS, RUNTIME, last_weights, lines, train_until

from model.config import YarnConfig
from model.errors import ConfigError
from model.training.config import EvaluationConfig, ScheduleConfig, StageConfig
from model.training.data import prepare_corpus
from model.training.data.stages import lay_out
from model.training.evaluate import Evaluator, plain_forward
from model.training.heldout import HeldoutMeasures
from model.training.positions import position_bounds
from model.training.reader import Reader
from model.training.sources import DataStage
from model.training.stages import lay_out_stages, model_after, stage_at
from model.training.trainer import train
from model.transformer import build_model

MODEL = replace(toy_runs.MODEL, num_layers=1, num_dense_layers=0, mtp_depth=0)
TRAIN = replace(
    toy_runs.TRAIN,
    tokens=128 * 20,
    schedule=ScheduleConfig(kind="constant", warmup_frac=0.0),
    evaluation=EvaluationConfig(heldout_tokens=1024, num_intermediate=1),
    stages=(
        StageConfig(name="long", rope_base=1e5, yarn_factor=2.0, lr_factor=0.5, balance_rate=0.0),
    ),
)
ALL = {"synthetic": 1.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    config = replace(
        CORPUS,
        stages=(
            DataStage(name="short", frac=0.6, weights=ALL),
            DataStage(name="long", frac=0.4, weights=ALL, sequence_length=64),
        ),
    )
    return prepare_corpus(config, tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("whole")
    return train(MODEL, TRAIN, corpus, RUNTIME, run_dir), run_dir


def spans_of(corpus):
    return corpus.spans(num_steps=20, batch_tokens=128, sequence_length=32)


def test_what_holds_in_each_stage(corpus):
    short, long = stages = lay_out_stages(MODEL, TRAIN, spans_of(corpus))

    assert (short.name, short.last_step, short.sequence_length) == ("short", 12, 32)
    assert (short.attention, short.lr_factor, short.balance) == (
        MODEL.attention,
        1.0,
        TRAIN.balance,
    )
    assert (long.last_step, long.sequence_length, long.lr_factor) == (20, 64, 0.5)
    assert long.balance.update_rate == 0.0
    assert long.attention.rope_base == 1e5
    assert long.attention.yarn == YarnConfig(factor=2.0, original_positions=32)
    assert [stage_at(stages, step).name for step in (0, 11, 12, 19)] == ["short"] * 2 + ["long"] * 2


def test_of_an_earlier_stage_the_embedding_and_the_longest_sequence_stay():
    """Its rate and balance end with it; YaRN stretches what was reached before its stage."""
    lengths = {"first": 32, "long": 64, "short": 32, "stretched": 32, "last": 32}
    text = tuple(
        DataStage(name=name, frac=0.2, weights=ALL, sequence_length=length)
        for name, length in lengths.items()
    )
    entries = (
        StageConfig(name="long", rope_base=1e5, lr_factor=0.5, balance_rate=0.0),
        StageConfig(name="stretched", yarn_factor=2.0),
        StageConfig(name="last", rope_base=2e5),
    )
    config = replace(TRAIN, tokens=128 * 30, stages=entries)
    spans = lay_out(text, ALL, num_steps=30, batch_tokens=128, sequence_length=32)
    stages = lay_out_stages(MODEL, config, spans)
    assert [stage.last_step for stage in stages] == [6, 12, 18, 24, 30]
    assert [stage.lr_factor for stage in stages] == [1.0, 0.5, 1.0, 1.0, 1.0]
    assert [stage.balance.update_rate for stage in stages] == [0.01, 0.0, 0.01, 0.01, 0.01]
    based = replace(MODEL.attention, rope_base=1e5)
    yarn = YarnConfig(factor=2.0, original_positions=64)
    stretched, last = replace(based, yarn=yarn), replace(based, rope_base=2e5, yarn=yarn)
    attention = [stage.attention for stage in stages]
    assert attention == [MODEL.attention, based, based, stretched, last]
    for num_steps, used, longest in ((6, MODEL.attention, 32), (7, based, 64), (30, last, 64)):
        expected = (replace(MODEL, attention=used), longest)
        assert model_after(num_steps, MODEL, config, text) == expected


def test_an_entry_without_its_stage_is_refused(corpus):
    wrong = replace(TRAIN, stages=(StageConfig(name="longer"),))
    with pytest.raises(ConfigError, match=r"\'longer\' is no stage of the data \(short, long\)"):
        lay_out_stages(MODEL, wrong, spans_of(corpus))


def test_a_run_changes_at_its_stages_and_measures_each(whole):
    result, run_dir = whole
    rates = [line["lr"] for line in lines(run_dir, "train")]
    told = lines(run_dir, "stage")

    assert rates == [1e-2] * 12 + [5e-3] * 8
    assert [(s["name"], s["steps"], s["sequence_length"]) for s in result.stages] == [
        ("short", 12, 32),
        ("long", 20, 64),
    ]
    assert [line["loss_nats"] for line in told] == [s["loss_nats"] for s in result.stages]
    assert result.stages[-1]["loss_nats"] == result.loss_nats
    assert lines(run_dir, "eval")[0]["step"] == 10
    saturation = {layer.saturation for layer in result.load_by_layer}
    assert saturation == {None}, "the evaluation before was of windows of another length"
    assert [first for first, _ in result.stages[-1]["by_position"]] == [0, 1, 2, 4, 8, 16, 32]


def test_a_stage_that_a_run_did_not_end_says_where_it_stood(corpus):
    """A run that has diverged in it."""
    stages = lay_out_stages(MODEL, TRAIN, spans_of(corpus))
    learner = SimpleNamespace(state=SimpleNamespace(step=15))
    heldout = HeldoutMeasures(corpus, TRAIN, stages, learner)
    evaluation = SimpleNamespace(loss_nats=9.5, by_position=((0, 9.5),))
    told = heldout.of_stage(stages[1], evaluation)
    assert (told["name"], told["steps"], told["loss_nats"]) == ("long", 15, 9.5)


def test_with_a_rate_of_zero_the_biases_stand_still(corpus, whole, tmp_path):
    train(MODEL, replace(TRAIN, stages=()), corpus, RUNTIME, tmp_path)
    name = "blocks.0.feed_forward.router.selection_bias"
    biases = [last_weights(run_dir)[name] for run_dir in (whole[1], tmp_path)]
    assert biases[0].abs().max() <= 12 * 0.02
    assert not torch.equal(biases[0], biases[1])


@pytest.mark.parametrize("stop_at", [5, 12, 15])
def test_stopped_in_any_stage_it_goes_on_to_the_same_bits(corpus, whole, tmp_path, stop_at):
    train_until(stop_at, MODEL, TRAIN, corpus, tmp_path)
    result = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path)

    assert result.loss_nats == whole[0].loss_nats
    assert result.stages == whole[0].stages


def test_text_drawn_ahead_is_the_text_of_each_step(corpus):
    spans = spans_of(corpus)
    reader = Reader(corpus, spans)
    for step in (*range(20), 3, 25, 26):
        expected = torch.from_numpy(corpus.batch(spans, step))
        assert torch.equal(reader.batch(step), expected), step


def test_loss_by_position_is_the_mean_over_its_range(corpus):
    assert position_bounds(1) == (0, 1)
    assert position_bounds(5) == (0, 1, 2, 4, 5)
    assert position_bounds(8) == (0, 1, 2, 4, 8)
    model = build_model(MODEL, seed=0)
    evaluator = Evaluator(MODEL, corpus, sequence_length=8, tokens_per_domain=24)
    evaluation = evaluator(plain_forward(model, "fp32", torch.device("cpu")))
    found = dict(evaluation.by_position)
    windows = torch.from_numpy(corpus.heldout("synthetic", 8, 24))
    nats = torch.nn.functional.cross_entropy(
        model.logits(windows[:, :-1])[0].flatten(0, 1), windows[:, 1:].flatten(), reduction="none"
    ).view(3, 8)
    assert found[0] == pytest.approx(nats[:, 0].mean().item(), rel=1e-5)
    assert found[4] == pytest.approx(nats[:, 4:].mean().item(), rel=1e-5)
    counts = {0: 1, 1: 1, 2: 2, 4: 4}
    mean = sum(count * found[first] for first, count in counts.items()) / 8
    assert mean == pytest.approx(evaluation.loss_nats, rel=1e-12)
