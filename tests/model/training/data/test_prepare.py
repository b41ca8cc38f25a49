"""A corpus from text to windows: fingerprints, what is found again, what is refused."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import BpeTokenizer, StdlibCorpus, SyntheticCorpus, TextCorpus
from model.training.data import open_corpus, prepare_corpus
from model.training.data import prepare as prepare_module
from model.training.data.stream import Mixture

PROJECT = Path(__file__).resolve().parents[4]
SHARED_CORPORA = PROJECT.parent / "shared" / "data" / "corpora"


@pytest.fixture
def library(tmp_path):
    """A small corpus of two domains."""
    folder = tmp_path / "library"
    folder.mkdir()
    for i in range(40):
        (folder / f"{i}.txt").write_text(f"Document number {i} speaks of {i * i}.\n" * 5)
        (folder / f"{i}.md").write_text(f"# Title {i}\n\nWürde, Straße {i}.\n" * 4)
    return TextCorpus(paths=(str(folder),), heldout_frac=0.2)


@pytest.fixture
def prepared(library, tmp_path):
    return prepare_corpus(library, tmp_path / "data")


def test_arrays_hold_the_documents_and_their_ends(prepared, library):
    folder = Path(library.paths[0])
    for domain in ("txt", "md"):
        sides = (prepared.train[domain], prepared.heldout_tokens[domain])
        both = np.concatenate([np.asarray(side) for side in sides])
        texts = bytes(min(t, 255) if t < 256 else 0 for t in both.tolist()).split(b"\0")[:-1]
        assert sorted(texts) == sorted(p.read_bytes() for p in folder.glob(f"*.{domain}"))
        size = prepared.domains[domain]
        assert size.train_documents + size.heldout_documents == 40
        assert size.train_tokens == size.train_bytes + size.train_documents
        assert size.train_bytes + size.heldout_bytes == sum(map(len, texts))


def test_no_document_is_on_both_sides(prepared):
    for domain in prepared.domains:
        sides = [
            set(prepared.codec.decode(np.asarray(tokens).tolist()).split("\n"))
            for tokens in (prepared.train[domain], prepared.heldout_tokens[domain])
        ]
        assert sides[0] & sides[1] <= {""}


def test_second_call_finds_what_the_first_prepared(library, tmp_path, monkeypatch):
    first = prepare_corpus(library, tmp_path / "data")
    monkeypatch.setattr(prepare_module, "_alone", lambda *_: pytest.fail("prepared again"))

    second = prepare_corpus(library, tmp_path / "data")

    assert second.fingerprint == first.fingerprint
    np.testing.assert_array_equal(second.windows(0, 9, 32), first.windows(0, 9, 32))


def test_two_processes_may_prepare_the_same_corpus(library, tmp_path, monkeypatch):
    rename = os.rename

    def the_other_was_quicker(building, target):
        shutil.copytree(building, target)
        rename(building, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", the_other_was_quicker)
        prepared = prepare_corpus(library, tmp_path / "data")

    assert prepared.windows(0, 2, 16).shape == (2, 17)
    names = {path.name for path in (tmp_path / "data").iterdir()}
    assert names == {prepared.fingerprint, "keys"}


def test_a_full_disk_leaves_nothing_half_made(library, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        with pytest.raises(OSError, match="No space left"):
            prepare_corpus(library, tmp_path / "data")

    assert not list((tmp_path / "data").iterdir())
    prepare_corpus(library, tmp_path / "data")


def test_a_vocabulary_is_learnt_anew_by_another_version_of_its_library(library, monkeypatch):
    """What is found again without reading: bytes stay bytes, merges may be chosen otherwise."""
    learnt = replace(library, tokenizer=BpeTokenizer(vocab_size=300))
    before = [prepare_module._keys(corpus, ()) for corpus in (library, learnt)]
    monkeypatch.setattr("tokenizers.__version__", "99.0")
    after = [prepare_module._keys(corpus, ()) for corpus in (library, learnt)]
    assert after[0] == before[0]
    assert not set(after[1]) & set(before[1])


def test_a_fingerprint_is_of_this_text_and_no_other():
    """It is in every run's id: written otherwise, each run ever trained would be trained again."""
    sides = {"train": {"sha256": "12", "tokens": 9}, "heldout": {"sha256": "34", "tokens": 3}}
    plain = {
        "format": 7,
        "vocab_size": 257,
        "tokenizer_sha256": "ab",
        "weights": {"b": 0.25, "a": 0.75},
        "domains": {"b": sides, "a": sides},
        "stages": [],
        "report": {"documents": 5},
    }
    text = '[7,257,"ab",{"a":0.75,"b":0.25},{"a":["12","34"],"b":["12","34"]}]'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert prepare_module.fingerprint_of(plain) == expected
    staged = text[:-1] + ',[{"frac":0.5,"name":"late"}]]'
    expected = hashlib.sha256(staged.encode()).hexdigest()[:16]
    found = prepare_module.fingerprint_of({**plain, "stages": [{"name": "late", "frac": 0.5}]})
    assert found == expected


def test_fingerprint_covers_everything_a_run_can_see_and_nothing_else(library, tmp_path):
    def fingerprint(corpus, data_dir="data"):
        return prepare_corpus(corpus, tmp_path / data_dir).fingerprint

    base = fingerprint(library)
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in Path(library.paths[0]).iterdir():
        (moved / f"renamed-{path.name}").write_bytes(path.read_bytes())
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in Path(library.paths[0]).iterdir():
        (changed / path.name).write_bytes(path.read_bytes() + b"!" * (path.name == "7.md"))

    assert fingerprint(library, "elsewhere") == base
    assert fingerprint(replace(library, paths=(str(moved),))) == base
    others = [
        fingerprint(replace(library, paths=(str(changed),))),
        fingerprint(replace(library, order_seed=1)),
        fingerprint(replace(library, heldout_frac=0.3)),
        fingerprint(replace(library, weights={"txt": 0.25, "md": 0.75})),
        fingerprint(replace(library, tokenizer=BpeTokenizer(vocab_size=300))),
    ]
    assert len({base, *others}) == 6


def test_the_stream_does_not_depend_on_the_batch(prepared):
    whole = prepared.windows(0, 60, 32)
    pieces = [prepared.windows(first, 7, 32) for first in range(0, 56, 7)]

    np.testing.assert_array_equal(np.concatenate(pieces), whole[:56])
    np.testing.assert_array_equal(prepared.windows(59, 1, 32), whole[59:])
    np.testing.assert_array_equal(whole[:, 1:].shape, (60, 32))


def test_each_pass_reads_every_window_of_a_domain_once_in_a_new_order(prepared):
    length, count = 16, 3000
    rows = prepared.windows(0, count, length)
    epochs = prepared.epochs(count, length)

    assert sum(
        epochs[name] * prepared.domains[name].train_tokens for name in prepared.domains
    ) == pytest.approx(count * length)
    assert max(epochs.values()) > 2  # it wraps, and says so
    domain, _ = Mixture.of(prepared.weights).locate(np.arange(count))
    for index, tokens in enumerate(map(np.asarray, prepared.train.values())):
        mine = rows[domain == index].tolist()
        per_pass = (len(tokens) - 1) // length
        every = [tokens[k * length : (k + 1) * length + 1].tolist() for k in range(per_pass)]
        first, second = mine[:per_pass], mine[per_pass : 2 * per_pass]
        assert first != every
        assert sorted(first) == sorted(every)
        if len(second) == per_pass:
            assert sorted(second) == sorted(every)
            assert second != first


def test_weights_decide_the_shares(library, tmp_path):
    corpus = replace(library, weights={"txt": 0.1, "md": 0.9})
    prepare_corpus(library, tmp_path / "data")

    prepared = prepare_corpus(corpus, tmp_path / "data")

    seen = prepared.epochs(1000, 16)
    tokens = {name: seen[name] * prepared.domains[name].train_tokens for name in seen}
    assert tokens["txt"] / 16_000 == pytest.approx(0.1, abs=2e-3)
    assert tokens["md"] / 16_000 == pytest.approx(0.9, abs=2e-3)
    # Shared by all users of a machine, as what was read from the text itself is.
    (same,) = {p.stat().st_mode & 0o777 for p in (tmp_path / "data").iterdir() if p.name != "keys"}
    assert same == 0o755


def test_heldout_windows_are_spread_and_never_overlap(prepared):
    text = np.asarray(prepared.heldout_tokens["txt"])
    few = prepared.heldout("txt", 16, 64)
    all_of_them = prepared.heldout("txt", 16, 10**9)

    assert few.shape == (4, 17)
    assert len(all_of_them) == (len(text) - 1) // 16
    stream = text.tolist()
    starts = [k * ((len(text) - 1) // 4) for k in range(4)]
    assert few.tolist() == [stream[s : s + 17] for s in starts]


def test_bits_per_byte_divide_by_the_bytes_of_the_text(library, tmp_path):
    """For both tokenizers the targets of the whole split stand for its bytes, ends for none."""
    for tokenizer in (library.tokenizer, BpeTokenizer(vocab_size=300)):
        corpus = replace(library, tokenizer=tokenizer)
        prepared = prepare_corpus(corpus, tmp_path / "data")
        for domain, size in prepared.domains.items():
            heldout = np.asarray(prepared.heldout_tokens[domain], dtype=np.int64)
            assert prepared.count_bytes(heldout) == size.heldout_bytes


def test_bpe_is_lossless_and_learns_from_the_training_side_only(library, tmp_path):
    corpus = replace(library, tokenizer=BpeTokenizer(vocab_size=320))
    prepared = prepare_corpus(corpus, tmp_path / "data")

    assert prepared.vocab_size == 320
    text = prepared.codec.decode(np.asarray(prepared.train["md"]).tolist())
    assert len(text.encode()) == prepared.domains["md"].train_bytes
    assert prepared.domains["md"].train_tokens < 0.7 * prepared.domains["md"].train_bytes
    # Other held-out text, same training text: the same tokenizer.
    folder = Path(library.paths[0])
    held_out = prepared.codec.decode(np.asarray(prepared.heldout_tokens["txt"]).tolist())
    victim = next(p for p in folder.glob("*.txt") if p.read_text() in held_out)
    victim.unlink()
    again = prepare_corpus(corpus, tmp_path / "data")
    assert again.codec.to_json() == prepared.codec.to_json()
    assert again.fingerprint != prepared.fingerprint


def test_bpe_learns_from_all_the_text_unless_there_is_too_much(library, tmp_path, monkeypatch):
    corpus, taught = replace(library, tokenizer=BpeTokenizer(vocab_size=300)), []
    train_codec = prepare_module.train_codec

    def teach(tokenizer, texts):
        taught.append(list(texts))
        return train_codec(tokenizer, taught[-1])

    monkeypatch.setattr(prepare_module, "train_codec", teach)
    prepared = prepare_corpus(corpus, tmp_path / "all")
    num_train = sum(size.train_documents for size in prepared.domains.values())
    assert len(taught[0]) == num_train > 20
    total = sum(size.train_bytes for size in prepared.domains.values())
    monkeypatch.setattr(prepare_module, "BPE_SAMPLE_BYTES", total // 2)
    prepare_corpus(corpus, tmp_path / "half")
    assert 0.2 * num_train < len(taught[1]) < 0.8 * num_train
    assert {bytes(text) for text in taught[1]} < {bytes(text) for text in taught[0]}


def test_no_text_can_spell_the_end_token(tmp_path):
    texts = [b"<|endoftext|> </s> <eos> \xc4\x80" * 3, b"plain words again and again" * 3]
    for i in range(6):
        (tmp_path / f"{i}.txt").write_bytes(texts[i % 2] + str(i).encode())
    corpus = TextCorpus(
        paths=(f"{tmp_path}/*.txt",), tokenizer=BpeTokenizer(vocab_size=260), max_similarity=None
    )
    prepared = prepare_corpus(corpus, tmp_path / "data")

    sides = (prepared.train["txt"], prepared.heldout_tokens["txt"])
    assert sum((np.asarray(side) == 259).sum() for side in sides) == 6


def test_synthetic_corpus_knows_its_entropy(tmp_path):
    corpus = SyntheticCorpus(tokens=60_000, num_symbols=8, order=2, seed=1)
    prepared = prepare_corpus(corpus, tmp_path)
    manifest = json.loads((tmp_path / prepared.fingerprint / "manifest.json").read_text())

    none, one, two = prepared.entropy_by_context
    assert none > one > two == prepared.entropy_nats == manifest["entropy_nats"]
    assert prepared.entropy_floor(4) == pytest.approx((one + 3 * two) / 4)
    bpe = prepare_corpus(replace(corpus, tokenizer=BpeTokenizer(vocab_size=300)), tmp_path)
    assert bpe.entropy_nats is None
    assert bpe.entropy_floor(4) is None


def changed_byte(content):
    where = content.find(b"vocab_size") + 14  # in the manifest, something that decides
    where = where if where > 14 else len(content) * 2 // 3
    return content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :]


HARMS = {
    "change": lambda path: path.write_bytes(changed_byte(path.read_bytes())),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "remove": lambda path: path.unlink(),
}


@pytest.mark.parametrize("victim", ["manifest.json", "tokenizer.json", "heldout.npy", "train.npy"])
@pytest.mark.parametrize("harm", HARMS)
def test_damage_is_found_and_named(library, tmp_path, victim, harm):
    fingerprint = prepare_corpus(library, tmp_path / "data").fingerprint
    folder = tmp_path / "data" / fingerprint
    HARMS[harm](next(path for path in folder.iterdir() if path.name.endswith(victim)))

    with pytest.raises(ConfigError, match=r"is damaged|is not prepared") as caught:
        open_corpus(tmp_path / "data", fingerprint)
    assert "\n" not in str(caught.value)


def test_what_runs_are_measured_by_is_checked_however_large_the_rest(
    library, tmp_path, monkeypatch
):
    prepared = prepare_corpus(library, tmp_path / "data")
    most = max(side.nbytes for side in prepared.heldout_tokens.values())
    assert most < sum(side.nbytes for side in prepared.train.values())
    monkeypatch.setattr("model.training.data.manifest.CHECKED_AT_ONCE_BYTES", most)
    open_corpus(tmp_path / "data", prepared.fingerprint)
    for path in sorted((tmp_path / "data" / prepared.fingerprint).glob("*.heldout.npy")):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ConfigError, match="is damaged"):
            open_corpus(tmp_path / "data", prepared.fingerprint)
        path.write_bytes(whole)
    open_corpus(tmp_path / "data", prepared.fingerprint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(
            {"weights": {"txt": 0.5, "poems": 0.5}},
            "data.weights: unknown domain 'poems'; this corpus has: md, txt",
            id="unknown weight",
        ),
        pytest.param({"weights": {"txt": 1.0}}, "domain 'md' missing", id="missing weight"),
        pytest.param(
            {"tokenizer": BpeTokenizer(vocab_size=60_000)},
            "vocab_size: 60000 entries cannot be made from this text, which gives",
            id="vocabulary too large",
        ),
    ],
)
def test_settings_that_do_not_fit_the_text(library, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        prepare_corpus(replace(library, **settings), tmp_path / "data")
    assert not list((tmp_path / "data").glob("*"))  # nothing half made is left


def test_a_domain_shorter_than_a_window_is_refused(prepared):
    with pytest.raises(ConfigError, match=r"domain 'md' has \d+ held-out tokens, .* needs 2001"):
        prepared.heldout("md", 2000, 100)
    with pytest.raises(ConfigError, match=r"domain 'md' has \d+ training tokens"):
        prepared.windows(0, 1, 10_000)
    with pytest.raises(ConfigError, match="shorten the sequence"):
        prepared.require_length(2000)


def test_the_data_package_needs_no_torch():
    program = "import sys, model.training.data; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.slow
def test_stdlib_corpus_of_this_interpreter(tmp_path):
    said = []
    prepared = prepare_corpus(StdlibCorpus(), tmp_path, progress=lambda *step: said.append(step))

    assert list(prepared.domains) == ["code", "prose"]
    assert prepared.domains["code"].train_bytes > 4_000_000
    assert prepared.domains["prose"].train_bytes > 1_500_000
    assert prepared.report["unparsed"] == []
    assert prepared.heldout("prose", 128, 65_536).shape == (512, 129)
    assert "def " in prepared.codec.decode(prepared.heldout("code", 2048, 1)[0].tolist())
    assert {what for what, _, _ in said} >= {
        "reading",
        "comparing with the held-out text",
        "tokenising",
    }


@pytest.mark.skipif(not SHARED_CORPORA.exists(), reason=f"{SHARED_CORPORA} is not there")
def test_published_text_as_a_corpus(tmp_path):
    corpus = TextCorpus(
        paths=(),
        domains={
            "plays": (f"{SHARED_CORPORA}/tinyshakespeare.txt",),
            "articles": (f"{SHARED_CORPORA}/wikitext2_*.txt",),
        },
        weights={"plays": 0.3, "articles": 0.7},
    )
    prepared = prepare_corpus(corpus, tmp_path)

    assert prepared.domains["plays"].train_bytes > 900_000
    assert prepared.domains["articles"].train_bytes > 2_000_000
    total = sum(s.train_bytes + s.heldout_bytes for s in prepared.domains.values())
    files = [SHARED_CORPORA / "tinyshakespeare.txt", *SHARED_CORPORA.glob("wikitext2_*.txt")]
    assert total == sum(path.stat().st_size for path in files)


def test_no_folder_is_removed_with_its_lock_open(tmp_path, monkeypatch):
    """NFS and FUSE rename an open file in place of removing it, and its folder stays."""
    removed = []

    def remove(folder, **_):
        for path in Path(folder).rglob("*"):
            if path.is_file():
                with open(path) as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # BlockingIOError: it is held
        removed.append(Path(folder).name)
        rmtree(folder)

    rmtree = shutil.rmtree
    monkeypatch.setattr("model.training.data.prepare.shutil.rmtree", remove)
    prepare_corpus(
        SyntheticCorpus(tokens=20_000, num_symbols=8, order=2, seed=1), tmp_path / "data"
    )
    assert any(name.startswith(".preparing-") for name in removed)
    assert {path.name[0] for path in (tmp_path / "data").iterdir()}.isdisjoint({"."})
