"""A run begun with weights trained before: those of the published layout to the bit, no others."""

import math
import os
from dataclasses import replace
from functools import partial

import pytest
import torch
import toy_runs
from toy_runs import RUNTIME, last_weights, lines, train_until, train_whole

from model.errors import ConfigError
from model.hf import ExportOptions, export_checkpoint
from model.tensor_files import TensorHeader
from model.training.config import InitialWeights
from model.training.initial import given_weights, place_weights
from model.training.run import initial_state
from model.training.schedules import learning_rate
from model.training.trainer import train
from model.training.whole import WholeModel
from model.transformer import build_model
from model.weights import write_weights

MODEL = replace(toy_runs.MODEL, vocab_size=320, num_dense_layers=0, init_std=0.006)
"""Its table is padded: the corpus has 257 tokens."""
TRAIN = replace(toy_runs.TRAIN, tokens=128 * 20)
TRAINED = build_model(MODEL, seed=9).state_dict()
STEPS = TRAIN.num_steps


@pytest.fixture
def published(tmp_path):
    options = ExportOptions(dtype=torch.float32, max_positions=32, eos_token_id=None)
    export_checkpoint(MODEL, TRAINED, tmp_path / "published", options)
    return given_weights(tmp_path / "published")


def begun(published, folder, corpus, *, step=0, config=TRAIN, by=train_whole):
    begins = folder / "begins"
    place_weights(published, begins)
    initial = InitialWeights(sha256=published.digest(), step=step)
    config = replace(config, initial_weights=initial)
    return by(MODEL, config, corpus, folder, trunk_dir=begins)


def test_the_weights_come_through_the_published_layout_to_the_bit(published, tmp_path):
    headers = {name: TensorHeader(tuple(t.shape), t.dtype) for name, t in TRAINED.items()}
    write_weights(tmp_path / "own", MODEL, headers, TRAINED.values())
    own = given_weights(tmp_path / "own")
    assert own.digest() == published.digest(), "one content, one run, whichever folder it is in"
    assert own.model == published.model == MODEL
    place_weights(own, tmp_path / "run" / "begins")
    linked = tmp_path / "run" / "begins" / "weights.safetensors"
    assert os.stat(linked).st_nlink == 2, "a link takes no space"

    device = torch.device("cpu")
    learner = WholeModel(MODEL, TRAIN, initial_state(MODEL, TRAIN, device), device)
    assert not torch.equal(learner.weights()["model.output.weight"], TRAINED["output.weight"])
    learner.begin_with(TRAINED)
    for name, tensor in learner.weights().items():
        assert torch.equal(tensor, TRAINED[name.removeprefix("model.")]), name


def test_the_hash_is_of_every_number_name_type_and_shape(published, tmp_path):
    def digest(cut=1, **tensors):
        headers = {name: TensorHeader(tuple(t.shape), t.dtype) for name, t in tensors.items()}
        parts = [part for tensor in tensors.values() for part in tensor.view(-1).split(cut)]
        return replace(published, headers=headers, parts=lambda: iter(parts)).digest()

    four = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert digest(a=four) == digest(a=four, cut=3), "wherever it is cut for reading"
    digests = {
        digest(a=four),
        digest(b=four),
        digest(a=four.T.contiguous()),
        digest(a=four.view(4)),
        digest(a=four.view(torch.int32)),
        digest(a=four[:1], b=four[1:]),
    }
    assert len(digests) == 6
    begins = tmp_path / "begins"
    place_weights(published, begins)
    other = replace(published, parts=lambda: (torch.zeros_like(part) for part in published.parts()))
    place_weights(other, begins)
    assert given_weights(begins).digest() == published.digest(), "there already: left alone"


@pytest.mark.parametrize("gate", ["headwise", "elementwise"])
def test_the_gates_weights_come_along_in_a_folder_of_weights(gate, tmp_path):
    """Which the published layout, whose attention has none, refuses."""
    gated = replace(MODEL, attention=replace(MODEL.attention, output_gate=gate))
    trained = build_model(gated, seed=9).state_dict()
    headers = {name: TensorHeader(tuple(t.shape), t.dtype) for name, t in trained.items()}
    write_weights(tmp_path / "own", gated, headers, trained.values())
    own = given_weights(tmp_path / "own")
    assert own.model == gated
    assert own.headers.keys() == trained.keys()
    place_weights(own, tmp_path / "run" / "begins")
    device = torch.device("cpu")
    learner = WholeModel(gated, TRAIN, initial_state(gated, TRAIN, device), device)
    learner.begin_with(trained)
    name = "blocks.0.attention.output_gate.weight"
    assert torch.equal(learner.weights()[f"model.{name}"], trained[name])
    options = ExportOptions(dtype=torch.float32, max_positions=32, eos_token_id=None)
    with pytest.raises(ConfigError, match=f"attention.output_gate is {gate}"):
        export_checkpoint(gated, trained, tmp_path / "published", options)
    assert not (tmp_path / "published").exists()


def test_a_run_begins_with_them_and_goes_on_like_any_other(published, corpus, tmp_path):
    whole = begun(published, tmp_path / "whole", corpus)
    with pytest.raises(ConfigError, match=r"model.vocab_size \(320\) must be that of the corpus"):
        train(MODEL, TRAIN, corpus, RUNTIME, tmp_path / "scratch")
    optimizer = replace(TRAIN.optimizer, peak_lr=1e-30, weight_decay=0.0)
    still = replace(TRAIN, optimizer=optimizer)
    folder = tmp_path / "still"
    begun(published, folder, corpus, config=still)
    assert torch.equal(last_weights(folder)["output.weight"], TRAINED["output.weight"])

    begun(published, tmp_path / "run", corpus, by=partial(train_until, 7))
    (tmp_path / "run" / "begins" / "weights.safetensors").unlink()
    resumed = train(
        MODEL,
        replace(TRAIN, initial_weights=InitialWeights(sha256=published.digest())),
        corpus,
        RUNTIME,
        tmp_path / "run",
    )
    assert resumed.loss_nats == whole.loss_nats, "from its own checkpoint, without the weights"


def test_weights_with_steps_behind_them_begin_at_that_step(published, corpus, tmp_path):
    result = begun(published, tmp_path / "run", corpus, step=12)
    trained = lines(tmp_path / "run", "train")
    assert [line["step"] for line in trained] == list(range(13, STEPS + 1))
    assert trained[0]["lr"] == learning_rate(TRAIN, 12)
    # One step's loss, and the speed of its own eight steps: the twelve before it count in neither.
    assert trained[0]["train_loss_nats"] == pytest.approx(math.log(MODEL.vocab_size), rel=0.02)
    trained_s = result.seconds["step"] + result.seconds["data"]
    assert result.tokens_per_s * trained_s == pytest.approx(8 * 128)
    with pytest.raises(ConfigError, match=r"initial_weights.step \(21\) must be at most"):
        replace(TRAIN, initial_weights=InitialWeights(sha256="0", step=STEPS + 1))


def test_other_weights_than_planned_are_refused(published, corpus, tmp_path):
    begins = tmp_path / "run" / "begins"
    place_weights(published, begins)
    config = replace(TRAIN, initial_weights=InitialWeights(sha256="of others"))
    with pytest.raises(ConfigError, match="not the weights this run was planned with"):
        train(MODEL, config, corpus, RUNTIME, tmp_path / "run", trunk_dir=begins)
    with pytest.raises(ConfigError, match="give the command that began it again"):
        train(MODEL, config, corpus, RUNTIME, tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="give the command that began it again"):
        train(MODEL, config, corpus, RUNTIME, tmp_path / "gone", trunk_dir=tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no published checkpoint .* and no folder of weights"):
        given_weights(tmp_path)
