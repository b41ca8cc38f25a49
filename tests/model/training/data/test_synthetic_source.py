"""The generated language: its exact entropy against counts that know nothing of the formula."""

import itertools
import math

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import SyntheticCorpus
from model.training.data.synthetic import MarkovSource, SyntheticSource

END = -1


def long_stream(source, num_documents, seed=7):
    documents = source.sample_documents(num_documents, np.random.default_rng(seed))
    return np.concatenate([np.append(document, END) for document in documents])


def counted_entropy(stream, context_length, num_symbols):
    """Conditional entropy from n-gram counts of the stream, end tokens being symbols like others,
    with the context cut at the last end token. Plug-in estimate, nats per token."""
    ends = np.flatnonzero(stream == END)
    position = np.arange(len(stream))
    last_end = np.concatenate([[-1], ends])[np.searchsorted(ends, position)]
    since_end = np.minimum(position - last_end - 1, context_length)
    context = np.zeros(len(stream), dtype=np.int64)
    for back in range(1, context_length + 1):
        inside = since_end >= back
        shifted = np.roll(stream, back) + 1
        context = context * (num_symbols + 1) + np.where(inside, shifted, 0)
    joint_keys = context * (num_symbols + 2) + stream + 1
    _, joint = np.unique(joint_keys, return_counts=True)
    _, marginal = np.unique(context, return_counts=True)

    def nats(counts):
        share = counts / counts.sum()
        return -(share * np.log(share)).sum()

    return nats(joint) - nats(marginal)


def plain_probability(source, document, position):
    """Probability of the token at ``position`` of one document, end token included."""
    context = document[max(0, position - source.order) : position]
    state = source.first_state[len(context)]
    for index, symbol in enumerate(reversed(context)):
        state += int(symbol) * source.num_symbols**index
    if position == len(document):
        return source.end_probability
    return (1 - source.end_probability) * source.probability[state, document[position]]


@pytest.mark.parametrize("order", [0, 1, 2])
def test_entropy_rate_equals_the_counted_one(order):
    source = MarkovSource.drawn(num_symbols=5, order=order, seed=3)

    stream = long_stream(source, 3000)

    assert len(stream) > 1_000_000
    counted = counted_entropy(stream, order, 5)
    assert source.entropy_by_context()[-1] == pytest.approx(counted, abs=2.5e-3)


def test_entropy_with_too_little_context_equals_the_counted_one():
    """A reader of one token of an order-2 source: they know an end, or the last symbol."""
    source = MarkovSource.drawn(num_symbols=5, order=2, seed=3)
    stream = long_stream(source, 3000)

    pairs = stream[:-1] * 100 + stream[1:]
    singles = stream[:-1]

    def nats(values):
        share = np.unique(values, return_counts=True)[1] / len(values)
        return -(share * np.log(share)).sum()

    none, one, _ = source.entropy_by_context()
    assert none == pytest.approx(nats(stream), abs=2.5e-3)
    assert one == pytest.approx(nats(pairs) - nats(singles), abs=2.5e-3)


def test_entropy_equals_the_mean_surprise_of_the_true_probabilities():
    source = MarkovSource.drawn(num_symbols=16, order=2, seed=0)
    documents = source.sample_documents(300, np.random.default_rng(1))

    surprise = [
        -math.log(plain_probability(source, document, position))
        for document in documents
        for position in range(len(document) + 1)
    ]

    error = np.std(surprise) / math.sqrt(len(surprise))
    assert abs(np.mean(surprise) - source.entropy_by_context()[-1]) < 4 * error
    assert error < 5e-3


def test_stationary_law_is_kept_by_one_step_and_sums_to_one():
    source = MarkovSource.drawn(num_symbols=4, order=2, seed=1)
    law = source.stationary
    after = np.zeros_like(law)
    after[0] = source.end_probability * law.sum()
    for state, symbol in itertools.product(range(len(law)), range(4)):
        to = source.next_states(np.array([state]), np.array([symbol]))[0]
        keep = 1 - source.end_probability
        after[to] += keep * law[state] * source.probability[state, symbol]

    np.testing.assert_allclose(law.sum(), 1, atol=1e-12)
    np.testing.assert_allclose(after, law, atol=1e-13)


def test_documents_are_reproducible_and_end_by_chance():
    corpus = SyntheticCorpus(tokens=200_000, num_symbols=20, order=1, seed=5)

    first = list(SyntheticSource(corpus).documents({}))
    second = list(SyntheticSource(corpus).documents({}))

    assert first == second
    lengths = np.array([len(d.text) for d in first])
    assert lengths.sum() + len(lengths) >= 200_000
    # Geometric: the standard deviation is about the mean.
    assert lengths.mean() == pytest.approx(511, rel=0.15)
    assert lengths.std() == pytest.approx(511, rel=0.2)


def test_learning_has_a_long_way_to_go():
    """Each token of context tells much: 1-gram, 2-gram and 3-gram models differ by far."""
    none, one, two = MarkovSource.drawn(64, 2, seed=0).entropy_by_context()
    assert none - one > 0.2
    assert one - two > 0.2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_symbols": 1}, "num_symbols must be between 2 and 94, got 1"),
        ({"num_symbols": 95}, "num_symbols must be between 2 and 94, got 95"),
        ({"num_symbols": 64, "order": 4}, "makes a table of 1.07e\\+09 entries"),
        ({"order": -1}, "data.order \\(-1\\)"),
    ],
)
def test_impossible_languages_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        SyntheticSource(SyntheticCorpus(**settings)).entropy_by_context()
