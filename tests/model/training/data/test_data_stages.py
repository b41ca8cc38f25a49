"""Stages: each its shares and its length, a pure function of the stage and the position."""

import random

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import MixtureCorpus
from model.training.data import open_corpus, prepare_corpus, span_at
from model.training.sources import DataStage, TextFiles
from model.typed import build, to_plain

FIRST = DataStage(name="first", frac=0.5, weights={"a": 0.75, "b": 0.25})
SECOND = DataStage(name="second", frac=0.5, weights={"a": 0.25, "b": 0.75})


@pytest.fixture
def make(tmp_path):
    rng = random.Random(0)
    for domain, letters in (("a", "abcdefgh"), ("b", "stuvwxyz")):
        (tmp_path / domain).mkdir()
        for i in range(50):
            text = "".join(rng.choices(letters, k=1000))
            (tmp_path / domain / f"{i}.txt").write_text(text)

    def prepared(*stages, **settings):
        sources = {d: TextFiles(paths=(f"{tmp_path}/{d}",)) for d in ("a", "b")}
        corpus = MixtureCorpus(sources=sources, stages=stages, **settings)
        return prepare_corpus(corpus, tmp_path / "data")

    return prepared


def domain_of(window):
    letters = window[window < 256]
    return "a" if letters.mean() < ord("m") else "b"


def test_each_stage_has_its_shares_and_the_record_its_epochs(make):
    corpus = make(FIRST, SECOND)
    spans = corpus.spans(num_steps=100, batch_tokens=256, sequence_length=64)

    assert [(s.name, s.first_step, s.num_steps) for s in spans] == [
        ("first", 0, 50),
        ("second", 50, 50),
    ]
    read = np.concatenate([corpus.batch(spans, step) for step in range(100)])
    seen = [domain_of(window) for window in read]
    assert seen[:200].count("a") == pytest.approx(150, abs=2)
    assert seen[200:].count("a") == pytest.approx(50, abs=2)
    for steps in (0, 30, 50, 77, 100):
        epochs = corpus.epochs_of(spans, steps)
        for name, times in epochs.items():
            counted = seen[: 4 * steps].count(name) * 64 / corpus.domains[name].train_tokens
            assert times == pytest.approx(counted)
    assert corpus.weights == {"a": 0.5, "b": 0.5}  # what runs are measured by


def test_a_stage_goes_on_where_the_one_before_stopped(make):
    """All that a pass holds is read once before anything is read twice, across the border."""
    corpus = make(FIRST, SECOND)
    per_pass = (corpus.domains["a"].train_tokens - 1) // 64
    steps = per_pass * 2 // 4  # windows of "a": half of four a step
    spans = corpus.spans(num_steps=steps, batch_tokens=256, sequence_length=64)
    read = np.concatenate([corpus.batch(spans, step) for step in range(steps)])
    mine = [tuple(window) for window in read.tolist() if domain_of(np.array(window)) == "a"]

    assert len(mine) == pytest.approx(per_pass, abs=4)
    assert len(set(mine[:per_pass])) == min(len(mine), per_pass)


def test_without_stages_the_stream_is_what_it_was(make):
    corpus = make()
    spans = corpus.spans(num_steps=20, batch_tokens=256, sequence_length=64)

    assert [(s.name, s.num_steps) for s in spans] == [("", 20)]
    read = np.concatenate([corpus.batch(spans, step) for step in range(20)])
    np.testing.assert_array_equal(read, corpus.windows(0, 80, 64))
    assert corpus.epochs_of(spans, 20) == corpus.epochs(80, 64)


def test_a_stage_may_have_longer_sequences(make):
    longer = DataStage(name="long", frac=0.5, weights={"a": 0.5, "b": 0.5}, sequence_length=256)
    corpus = make(FIRST, longer)
    spans = corpus.spans(num_steps=10, batch_tokens=256, sequence_length=64)

    assert corpus.batch(spans, 4).shape == (4, 65)
    assert corpus.batch(spans, 5).shape == (1, 257)
    assert span_at(spans, 9).name == "long"
    assert span_at(spans, 4).sequence_length == 64
    with pytest.raises(
        ConfigError, match=r"stages\.1: 'long' has sequences of 256 .* batch of 128"
    ):
        corpus.spans(num_steps=10, batch_tokens=128, sequence_length=64)
    with pytest.raises(ConfigError, match=r"'first' has 0\.5 of 1 steps, less than one"):
        corpus.spans(num_steps=1, batch_tokens=256, sequence_length=64)
    too_long = DataStage(name="l", frac=1.0, weights={"a": 0.5, "b": 0.5}, sequence_length=10**6)
    with pytest.raises(ConfigError, match="one window needs 1000001"):
        make(too_long).require_length(64)


def test_stages_enter_the_fingerprint_and_are_opened_with_it(make, tmp_path):
    plain, staged, swapped = make(), make(FIRST, SECOND), make(SECOND, FIRST)

    assert len({plain.fingerprint, staged.fingerprint, swapped.fingerprint}) == 3
    assert open_corpus(tmp_path / "data", staged.fingerprint).stages == (FIRST, SECOND)


def test_a_domain_too_short_for_its_share_is_refused_beyond_the_limit(make):
    corpus = make(FIRST, SECOND)
    spans = corpus.spans(num_steps=1000, batch_tokens=256, sequence_length=64)
    times = max(corpus.epochs_of(spans, 1000).values())
    assert times > 2

    corpus.require_epochs(spans, times + 0.01)
    with pytest.raises(
        ConfigError, match=r"domain '[ab]' \([0-9,]+ training tokens\) .* limit is 2"
    ):
        corpus.require_epochs(spans, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"stages": [{"name": "x", "frac": 0.5, "weights": {"a": 1}}]},
            "stages must sum to 1, they",
        ),
        ({"stages": [{"name": "x", "frac": 1, "weights": {"a": 0.9}}]}, "x: weights must sum to 1"),
        ({"stages": [{"name": "x", "frac": 1, "weights": {"a": 2, "b": -1}}]}, "b must be >= 0"),
        ({"stages": [{"name": "x", "frac": 0.5, "weights": {"a": 1}}] * 2}, "two are called 'x'"),
        ({"stages": [{"name": "", "frac": 1, "weights": {"a": 1}}]}, "a stage needs a name"),
        ({"weights": {"a": 0.6, "b": 0.6}}, r"weights must sum to 1, they sum to 1\.2"),
        ({"max_epochs": 0}, "max_epochs must be positive"),
        ({"max_similarity": 1.5}, r"max_similarity must be in \(0, 1\], got 1.5"),
        ({"sources": {}}, "sources: empty"),
    ],
)
def test_a_mixture_that_makes_no_sense_is_refused(change, message):
    plain = to_plain(MixtureCorpus(sources={"a": TextFiles(paths=("a.txt",))}))
    with pytest.raises(ConfigError, match=message):
        build(MixtureCorpus, {**plain, **change})


def test_a_stage_must_name_every_domain(make):
    stage = DataStage(name="x", frac=1.0, weights={"a": 1.0})
    with pytest.raises(ConfigError, match=r"data\.stages\.0\.weights: domain 'b' missing"):
        make(stage)
    stage = DataStage(name="x", frac=1.0, weights={"a": 0.5, "b": 0.25, "c": 0.25})
    with pytest.raises(ConfigError, match=r"data\.stages\.0\.weights: unknown domain 'c'"):
        make(stage)
