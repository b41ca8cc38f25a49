"""The split by hash, and the stream as a pure function of the position."""

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.data.documents import Document
from model.training.data.split import count_heldout
from model.training.data.stream import NUM_SLOTS, Mixture, cut_windows, shuffled


def digests(count):
    """First 8 bytes of the hashes of so many documents, as numbers in order."""
    texts = (f"text {i}".encode() for i in range(count))
    high = [int.from_bytes(Document("d", text).digest[:8]) for text in texts]
    return np.sort(np.array(high, dtype=np.uint64))


def test_share_of_the_heldout_documents():
    high = digests(4000)
    num = count_heldout(high, 0.05, "d")

    assert num == pytest.approx(200, abs=4 * 14)
    assert high[num - 1] / 2.0**64 < 0.05 <= high[num] / 2.0**64


def test_a_document_keeps_its_side_when_others_come_and_go():
    small, large = digests(300), digests(900)
    in_small = small[: count_heldout(small, 0.1, "d")]
    in_large = large[: count_heldout(large, 0.1, "d")]

    assert set(in_small) <= set(in_large)
    assert set(small) - set(in_small) <= set(large) - set(in_large)


def test_both_sides_of_a_tiny_domain_hold_something():
    for count in (2, 3):
        for frac in (1e-9, 1 - 1e-9):
            assert 1 <= count_heldout(digests(count), frac, "d") < count


def test_a_single_document_cannot_be_split():
    with pytest.raises(ConfigError, match="domain 'lonely' has a single document"):
        count_heldout(digests(1), 0.5, "lonely")


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


def walked(index: int, size: int, key: int) -> int:
    """The order of windows that every version has: four rounds over halves of so many bits that
    two hold ``size``, the other half mixed by the golden ratio and splitmix64's first constant,
    until the place lies below ``size``; in Python's whole numbers, modulo 2^64."""
    bits = next(half for half in range(1, 33) if 4**half >= size)
    while True:
        left, right = index >> bits, index % 2**bits
        for number in range(4):
            mixed = (right + key + number) * 0x9E3779B97F4A7C15 % 2**64
            mixed = (mixed ^ mixed >> 29) * 0xBF58476D1CE4E5B9 % 2**64
            left, right = right, left ^ (mixed >> 32) % 2**bits
        index = left << bits | right
        if index < size:
            return index


@pytest.mark.parametrize("size", [1, 2, 4, 5, 100, 4097])
def test_the_order_of_windows_is_that_of_every_version(size):
    """A run that goes on with a later version reads on in the text where it was."""
    for key in (0, 12345, 2**64 - 3):
        found = shuffled(np.arange(size), size, np.full(size, key, dtype=np.uint64))
        assert found.tolist() == [walked(index, size, key) for index in range(size)]


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
