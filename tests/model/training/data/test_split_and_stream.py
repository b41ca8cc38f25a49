"""The split by hash, and the stream as a pure function of the position."""

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.data.documents import Document
from model.training.data.split import hash_position, split_documents
from model.training.data.stream import NUM_SLOTS, Mixture, cut_windows, shuffled


def documents(count, domain="d", prefix="text"):
    return [Document.of(domain, f"{prefix} {i}".encode()) for i in range(count)]


def test_share_of_the_heldout_documents():
    split = split_documents(documents(4000), 0.05)["d"]

    assert len(split.train) + len(split.heldout) == 4000
    assert len(split.heldout) == pytest.approx(200, abs=4 * 14)
    assert all(hash_position(d.digest) < 0.05 for d in split.heldout)


def test_a_document_keeps_its_side_when_others_come_and_go():
    small = split_documents(documents(300), 0.1)["d"]
    large = split_documents(documents(900), 0.1)["d"]

    assert set(small.heldout) <= set(large.heldout)
    assert set(small.train) <= set(large.train)


def test_both_sides_of_a_tiny_domain_hold_something():
    for count in (2, 3):
        for frac in (1e-9, 1 - 1e-9):
            split = split_documents(documents(count), frac)["d"]
            assert split.train
            assert split.heldout


def test_a_single_document_cannot_be_split():
    with pytest.raises(ConfigError, match="domain 'lonely' has a single document"):
        split_documents(documents(1, "lonely"), 0.5)


WEIGHTS = {"a": 0.5, "b": 0.3, "c": 0.2 - 1e-4, "rare": 1e-4, "never": 0.0}


def test_every_domain_has_its_share_at_every_point():
    mixture = Mixture.of(WEIGHTS)
    domain, _ = mixture.locate(np.arange(2 * NUM_SLOTS))
    weight = np.array(list(WEIGHTS.values()))

    seen = np.cumsum(domain[:, None] == np.arange(5), axis=0)
    due = np.arange(1, len(domain) + 1)[:, None] * weight

    assert np.abs(seen - due).max() < 2.5
    assert mixture.slots_by_domain.sum() == NUM_SLOTS
    np.testing.assert_array_equal(mixture.counts(70_001), seen[70_000])


def test_windows_of_a_domain_are_numbered_without_a_gap():
    mixture = Mixture.of(WEIGHTS)
    domain, number = mixture.locate(np.arange(NUM_SLOTS + 5000))

    for index in range(4):
        expected = np.arange((domain == index).sum())
        np.testing.assert_array_equal(number[domain == index], expected)


def test_a_share_below_the_grain_is_refused():
    with pytest.raises(ConfigError, match=r"data\.weights\.b: 1e-06 is too small"):
        Mixture.of({"a": 1 - 1e-6, "b": 1e-6})


def test_windows_follow_each_other_and_begin_again():
    tokens = np.arange(100, 110, dtype=np.uint16)

    windows = cut_windows(tokens, np.array([0, 4, 8, 12, 20]), 4)

    assert windows.tolist() == [
        [100, 101, 102, 103, 104],
        [104, 105, 106, 107, 108],
        [108, 109, 100, 101, 102],
        [102, 103, 104, 105, 106],
        [100, 101, 102, 103, 104],
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 1000, 4097])
def test_a_shuffle_is_a_permutation_that_its_key_names(size):
    place = np.arange(size)
    orders = [shuffled(place, size, np.full(size, key, dtype=np.uint64)) for key in (5, 6)]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), place)
    one_by_one = [shuffled(place[i : i + 1], size, np.full(1, 5, dtype=np.uint64)) for i in place]
    np.testing.assert_array_equal(np.concatenate(one_by_one), orders[0])
    if size > 100:
        assert (orders[0] != orders[1]).mean() > 0.9
        # Neighbours are torn apart: the mean step of a random order is a third of its length.
        assert np.abs(np.diff(orders[0])).mean() == pytest.approx(size / 3, rel=0.1)
