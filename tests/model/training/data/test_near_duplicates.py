"""Held-out text that leaks into training nearly unchanged: found, counted, left out."""

import random

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import MixtureCorpus
from model.training.data import prepare_corpus
from model.training.data.documents import Document
from model.training.data.similar import NUM_RANGES, _plain, jaccard, shingles, sketch
from model.training.sources import TextFiles

END = 256


def words(rng, count):
    return ["".join(rng.choices("abcdefghij", k=rng.randint(2, 9))) for _ in range(count)]


def as_sets(tokens):
    """The documents of a side as sets of 16-letter runs, by the definition, written plainly."""
    texts, current = [], []
    for token in np.asarray(tokens).tolist():
        if token == END:
            texts.append(" ".join(bytes(current).decode().lower().split()))
            current = []
        else:
            current.append(token)
    return [{text[i : i + 16] for i in range(len(text) - 15)} for text in texts]


def leaks(prepared, limit):
    heldout = [s for side in prepared.heldout_tokens.values() for s in as_sets(side)]
    train = [s for side in prepared.train.values() for s in as_sets(side)]
    return sum(any(len(t & h) >= limit * len(t | h) for h in heldout) for t in train)


@pytest.fixture
def planted(tmp_path):
    """Two domains; every tenth document has near copies in both, told apart by a word or case."""
    rng = random.Random(0)
    for domain in ("one", "two"):
        (tmp_path / domain).mkdir()
    for i in range(60):
        text = words(rng, 150)
        (tmp_path / "one" / f"{i}.txt").write_text(" ".join(text))
        if i % 10 == 0:
            for copy in range(10):
                changed = [*text]
                changed[rng.randrange(150)] = "changed"
                joined = "\n ".join(changed).upper() if copy % 2 else " ".join(changed)
                (tmp_path / ("one", "two")[copy % 2] / f"{i}-{copy}.txt").write_text(joined)
        (tmp_path / "two" / f"{i}.txt").write_text(" ".join(words(rng, 150)))
    return MixtureCorpus(
        sources={d: TextFiles(paths=(f"{tmp_path}/{d}",)) for d in ("one", "two")},
        heldout_frac=0.2,
    )


def test_planted_near_duplicates_never_stay_on_both_sides(planted, tmp_path):
    data = tmp_path / "data"
    as_found = prepare_corpus(
        MixtureCorpus(sources=planted.sources, heldout_frac=0.2, max_similarity=None), data
    )
    cleaned = prepare_corpus(planted, data)

    num_leaks = leaks(as_found, 0.8)
    assert num_leaks > 10  # there was something to find
    assert leaks(cleaned, 0.8) == 0
    assert cleaned.report["near_duplicates"] == num_leaks  # and nothing else was taken
    assert len(cleaned.report["near_duplicates_by_domain"]) == 2
    for domain, size in cleaned.domains.items():
        before = as_found.domains[domain]
        # The measure stays what it was; only training gives way.
        assert size.heldout_documents == before.heldout_documents
        assert size.train_documents < before.train_documents
    assert cleaned.fingerprint != as_found.fingerprint


def test_a_domain_that_repeats_one_text_is_refused(tmp_path):
    text = " ".join(words(random.Random(1), 300))
    for i in range(20):
        (tmp_path / f"{i}.txt").write_text(f"{text} {i}")
    corpus = MixtureCorpus(sources={"same": TextFiles(paths=(f"{tmp_path}/*.txt",))})

    with pytest.raises(ConfigError, match="every training document of domain 'same' is nearly one"):
        prepare_corpus(corpus, tmp_path / "data")


@pytest.mark.parametrize("changed", [0, 1, 3, 8])
def test_a_sketch_agrees_as_often_as_its_documents_are_alike(changed):
    agreed, alike = [], []
    for seed in range(30):
        rng = random.Random(seed)
        left = words(rng, 400)
        right = [*left]
        for place in rng.sample(range(400), changed):
            right[place] = "zzzzzz"
        hashes = [shingles(Document("d", " ".join(text).encode())) for text in (left, right)]
        alike.append(jaccard(*hashes))
        agreed.append((sketch(hashes[0]) == sketch(hashes[1])).mean())
    # Standard error of the mean of 30 sketches of 128 ranges, four of them.
    wanted = np.mean(alike)
    error = 4 * np.sqrt(wanted * (1 - wanted) / (30 * NUM_RANGES))
    assert np.mean(agreed) == pytest.approx(wanted, abs=max(error, 1e-12))


def test_case_and_white_space_make_no_difference():
    text = b" \tOne  two\r\n\x0b\x0cTHREE\xc3\x89 four\n\n\n   five "
    assert _plain(text) == b" ".join(text.lower().split())
    assert _plain(b" \n") == b""
    alike = [Document("d", text), Document("d", b"one two three\xc3\x89 four five")]
    assert np.array_equal(*map(shingles, alike))


def test_a_sketch_holds_the_smallest_hash_of_each_range():
    hashes = shingles(Document("d", np.random.default_rng(0).bytes(300)))
    found = sketch(hashes)
    by_range = [hashes[hashes >> np.uint64(57) == number] for number in range(NUM_RANGES)]
    empty = [not len(members) for members in by_range]
    assert 0 < sum(empty) < NUM_RANGES
    for number, members in enumerate(by_range):
        if len(members):
            assert found[number] == members.min()
    assert len(np.unique(found)) == NUM_RANGES, "what an empty range took is marked by how far"


def test_short_texts_and_tokens_have_shingles_too():
    for document in (Document("d", b""), Document("d", b"a"), Document("d", b"\1\0\0\0", True)):
        assert len(shingles(document)) == 1
        assert sketch(shingles(document)).shape == (NUM_RANGES,)
    near = [np.arange(400), np.arange(400)]
    near[1][7] = 999
    pair = [shingles(Document("d", x.astype("<u4").tobytes(), True)) for x in near]
    assert jaccard(*pair) == pytest.approx((393 - 8) / (393 + 8))
