"""Every kind of source, read from files written by the formats' own rules."""

import functools
import gzip
import json
import random
import re
import struct
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model.errors import ConfigError
from model.training.corpora import BpeTokenizer, MixtureCorpus
from model.training.data import documents as documents_module
from model.training.data import files as files_module
from model.training.data import megatron as megatron_module
from model.training.data import prepare_corpus
from model.training.data import tables as tables_module
from model.training.data.arithmetic import problem
from model.training.data.documents import Document
from model.training.data.files import Hashes
from model.training.data.mixture import source_of
from model.training.sources import (
    Arithmetic,
    FileTokenizer,
    HubDataset,
    JsonlFiles,
    MegatronFiles,
    ParquetFiles,
    StdlibPart,
    TextFiles,
)

TEXTS = [f"Würde number {i}, {'straße ' * (i % 7)}\nends." for i in range(200)]


def read(source):
    """Every document of the source, and how many jobs gave them."""
    corpus = MixtureCorpus(sources={"web": source})
    jobs = source_of(corpus, Hashes()).jobs()
    found = [document for job in jobs for document in job.documents({})]
    assert {document.domain for document in found} <= {source.domain or "web"}
    return found, len(jobs)


def texts(source):
    return sorted(document.text.decode() for document in read(source)[0])


@pytest.fixture
def small_jobs(monkeypatch):
    """Portions of 500 bytes, so that small files are read in many."""
    for module in (documents_module, files_module, tables_module, megatron_module):
        monkeypatch.setattr(module, "JOB_BYTES", 500, raising=False)


@pytest.mark.usefixtures("small_jobs")
def test_json_lines_are_read_once_each_however_the_file_is_cut(tmp_path):
    lines = [json.dumps({"id": i, "body": text}) for i, text in enumerate(TEXTS)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines[:150]) + "\n\n")
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write("\n".join(lines[150:]))  # no line end at the end

    source = JsonlFiles(paths=(f"{tmp_path}/*.jsonl*",), field="body")

    assert texts(source) == sorted(TEXTS)
    assert read(source)[1] > 10


@pytest.mark.parametrize("cuts", range(1, 9))
def test_no_line_is_lost_at_any_border(tmp_path, monkeypatch, cuts):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": "x" * n}) + "\n" for n in range(1, 12)))
    size = path.stat().st_size
    monkeypatch.setattr(files_module, "JOB_BYTES", size // cuts)

    assert texts(JsonlFiles(paths=(str(path),))) == ["x" * n for n in range(1, 12)]


@pytest.mark.usefixtures("small_jobs")
def test_parquet_by_row_groups(tmp_path):
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pa.table({"content": [*TEXTS, None, "  "], "id": range(len(TEXTS) + 2)})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=9)

    source = ParquetFiles(paths=(str(tmp_path),), column="content")

    assert texts(source) == sorted(TEXTS)
    assert read(source)[1] > 5
    with pytest.raises(ConfigError, match="no column 'text'; it has: content, id"):
        read(ParquetFiles(paths=(str(tmp_path),)))
    (tmp_path / "b.parquet").write_text("not a table")
    with pytest.raises(ConfigError, match=r"b\.parquet is not a Parquet file"):
        read(source)


@pytest.mark.slow
def test_a_dataset_folder_is_streamed_without_the_network(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    (tmp_path / "set").mkdir()
    lines = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "set" / "train.jsonl").write_text(lines)

    source = HubDataset(dataset=str(tmp_path / "set"), max_documents=150)

    assert texts(source) == sorted(TEXTS[:150])
    with pytest.raises(ConfigError, match="no column 'body'; it has: text"):
        read(HubDataset(dataset=str(tmp_path / "set"), column="body"))


def test_the_network_is_not_used_unless_asked_for(tmp_path):
    with pytest.raises(ConfigError, match="'some/dataset' is no folder here, and the network is"):
        read(HubDataset(dataset="some/dataset"))
    with pytest.raises(ConfigError, match="needs its revision"):
        HubDataset(dataset="some/dataset", network=True)


def write_megatron(path: Path, documents, dtype="<u2", code=8):
    """A pair of files by Megatron-LM's published layout, two sequences to each long document."""
    sequences, borders = [], [0]
    for tokens in documents:
        parts = [tokens[: len(tokens) // 2], tokens[len(tokens) // 2 :]]
        sequences += [part for part in parts if len(tokens) > 3 or len(part)]
        borders.append(len(sequences))
    lengths = [len(sequence) for sequence in sequences]
    item = np.dtype(dtype).itemsize
    offsets = np.cumsum([0, *lengths[:-1]]) * item
    path.with_suffix(".bin").write_bytes(
        b"".join(np.array(s, dtype=dtype).tobytes() for s in sequences)
    )
    path.with_suffix(".idx").write_bytes(
        b"MMIDIDX\x00\x00"
        + struct.pack("<QBQQ", 1, code, len(sequences), len(borders))
        + np.array(lengths, dtype="<i4").tobytes()
        + np.array(offsets, dtype="<i8").tobytes()
        + np.array(borders, dtype="<i8").tobytes()
    )


@pytest.mark.usefixtures("small_jobs")
@pytest.mark.parametrize(("dtype", "code"), [("<u2", 8), ("<i4", 4)])
def test_megatron_files_document_by_document(tmp_path, dtype, code):
    rng = np.random.default_rng(0)
    wanted = [rng.integers(0, 250, size=n).tolist() for n in rng.integers(1, 60, size=80)]
    write_megatron(tmp_path / "a", [[*tokens, 250] for tokens in wanted], dtype, code)

    documents, num_jobs = read(MegatronFiles(paths=(str(tmp_path),), end_token=250))

    assert [np.frombuffer(d.text, "<u4").tolist() for d in documents] == wanted
    assert all(d.is_tokens for d in documents)
    assert num_jobs > 5


def tokenizer_file(path):
    """A byte-level BPE of the 256 bytes and one merge, with a marker of its own."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {char: i for i, char in enumerate(alphabet)} | {"th": 256}
    model = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h")]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens(["<|end|>"])
    model.save(str(path))
    return model


def test_token_files_and_text_make_one_corpus_with_the_tokenizer_they_share(tmp_path):
    model = tokenizer_file(tmp_path / "tokenizer.json")
    rng = np.random.default_rng(1)
    pieces = ["".join(rng.choice(list("the ü\n"), size=60)) for _ in range(60)]
    encoded = [model.encode(piece).ids for piece in pieces]
    write_megatron(tmp_path / "tokens", [[*ids, 257] for ids in encoded])
    (tmp_path / "text").mkdir()
    for i in range(30):
        (tmp_path / "text" / f"{i}.txt").write_text(pieces[i][::-1] + "<|end|>")
    corpus = MixtureCorpus(
        tokenizer=FileTokenizer(path=tmp_path / "tokenizer.json"),
        sources={
            "ready": MegatronFiles(paths=(f"{tmp_path}/*.idx",), end_token=257),
            "raw": TextFiles(paths=(f"{tmp_path}/text",)),
        },
        heldout_frac=0.2,
    )

    prepared = prepare_corpus(corpus, tmp_path / "data")

    assert prepared.vocab_size == 259  # 257, the marker, and the end of a document
    size = prepared.domains["ready"]
    assert size.train_bytes + size.heldout_bytes == sum(len(piece.encode()) for piece in pieces)
    assert size.train_documents + size.heldout_documents == 60
    both = [np.asarray(side["raw"]) for side in (prepared.train, prepared.heldout_tokens)]
    assert sum((side == 258).sum() for side in both) == 30
    assert not any((side == 257).any() for side in both)  # a text cannot spell the marker
    # Another tokenizer than the files were made with.
    with pytest.raises(ConfigError, match=r"token 2\d\d, the tokenizer has 256 entries: its fil"):
        prepare_corpus(
            MixtureCorpus(sources={"ready": MegatronFiles(paths=(f"{tmp_path}/*.idx",))}),
            tmp_path / "data",
        )
    with pytest.raises(ConfigError, match="token files cannot teach a tokenizer"):
        prepare_corpus(
            MixtureCorpus(sources=corpus.sources, tokenizer=BpeTokenizer(vocab_size=300)),
            tmp_path / "data",
        )


def test_a_tokenizer_that_changes_the_text_is_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer_file(path)
    state = json.loads(path.read_text())
    lowered = {**state, "normalizer": {"type": "Lowercase"}}
    lowered["normalizer"] = {"type": "Replace", "pattern": {"String": "ab"}, "content": "a"}
    path.write_text(json.dumps(lowered))
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text(f"abc {i}")
    source = TextFiles(paths=(f"{tmp_path}/*.txt",))
    corpus = MixtureCorpus(sources={"t": source}, tokenizer=FileTokenizer(path=path))

    with pytest.raises(
        ConfigError, match=r"stand for 4 bytes of a document of 5 .*changes the text"
    ):
        prepare_corpus(corpus, tmp_path / "data")
    path.write_text(json.dumps({**state, "pre_tokenizer": None}))
    with pytest.raises(ConfigError, match="is not a byte-level BPE"):
        prepare_corpus(corpus, tmp_path / "data")
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"tokenizer\.json is no tokenizer\.json"):
        prepare_corpus(corpus, tmp_path / "data")


def test_generated_arithmetic_is_right_in_every_line():
    rng = random.Random(3)
    for _ in range(400):
        head, *steps, answer = problem(rng, 4).splitlines()
        left, sign, right = head.split()
        a, b = int(left), int(right)
        wanted = {"+": f"{a + b}", "-": f"{a - b}", "*": f"{a * b}"}
        wanted["/"] = f"{a // b} rest {a % b}" if b else ""
        assert answer == f"= {wanted[sign]}"
        for step in steps:
            for term, result in re.findall(r"([\d+*/-]+)=(-?\d+)", step):
                numbers = [int(n) for n in re.findall(r"\d+", term)]
                first, rest = numbers[0], numbers[1:]
                by_sign = {
                    "+": lambda a, b: a + b,
                    "-": lambda a, b: a - b,
                    "*": lambda a, b: a * b,
                    "/": lambda a, b: a // b,
                }
                value = functools.reduce(by_sign[re.findall(r"[+*/-]", term)[0]], rest, first)
                assert value == int(result), step


def test_arithmetic_follows_its_seed_and_its_parts(monkeypatch):
    monkeypatch.setattr("model.training.data.arithmetic.PART_BYTES", 4_000)
    first, num_jobs = read(Arithmetic(bytes=10_000))
    assert num_jobs == 3
    assert first == read(Arithmetic(bytes=10_000))[0]
    assert set(first).isdisjoint(read(Arithmetic(bytes=10_000, seed=1))[0])
    assert 10_000 <= sum(len(d.text) for d in first) < 13_000
    assert len(set(first)) == len(first)


def test_sources_may_share_a_domain_and_the_library_has_two():
    corpus = MixtureCorpus(
        sources={
            "code": StdlibPart(part="code"),
            "sums": Arithmetic(bytes=1000, domain="reasoning"),
            "more": Arithmetic(bytes=1000, seed=1, domain="reasoning"),
        }
    )
    jobs = source_of(corpus, Hashes()).jobs()
    domains = [next(iter(job.documents({}))).domain for job in jobs]
    assert domains == ["code", "reasoning", "reasoning"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(
            b'{"text": "a"}\n{"body": 1}\n', "line 2: no field 'text'; it has: body", id="field"
        ),
        pytest.param(b'{"text": "a"}\n{"text"', "line 2: not a line of JSON text", id="JSON"),
        pytest.param(b'{"text": 5}', "line 1: field 'text' is not text but 5", id="number"),
        pytest.param(b'["a"]', "line 1: field 'text' is not text but no object", id="list"),
        pytest.param(b'{"text": "\\ud800"}', "line 1: not a line of JSON text", id="surrogate"),
        pytest.param(b'{"text": "\xff"}', "line 1: not a line of JSON text", id="not UTF-8"),
    ],
)
def test_a_line_that_is_no_text_is_named(tmp_path, content, message):
    (tmp_path / "a.jsonl").write_bytes(content)

    with pytest.raises(ConfigError, match=message) as caught:
        read(JsonlFiles(paths=(f"{tmp_path}/a.jsonl",)))
    assert "\n" not in str(caught.value)


def harmed(content, place, value):
    return content[:place] + value + content[place + len(value) :]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        pytest.param(lambda idx, bin: (idx[:20], bin), "it has 20 bytes", id="header"),
        pytest.param(lambda idx, bin: (harmed(idx, 0, b"X"), bin), "does not begin", id="magic"),
        pytest.param(lambda idx, bin: (harmed(idx, 17, b"\x06"), bin), "dtype code 6", id="dtype"),
        pytest.param(lambda idx, bin: (idx[:-5], bin), "cut short", id="cut"),
        pytest.param(lambda idx, bin: (idx, bin[:-2]), "describes .* has", id="bin"),
        pytest.param(
            lambda idx, bin: (harmed(idx, 34, b"\x63"), bin), "do not follow", id="length"
        ),
        pytest.param(
            lambda idx, bin: (harmed(idx, len(idx) - 8, b"\x63"), bin), "cover", id="border"
        ),
    ],
)
def test_token_files_that_do_not_fit_together(tmp_path, harm, message):
    write_megatron(tmp_path / "a", [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10]])
    index, tokens = tmp_path / "a.idx", tmp_path / "a.bin"
    for path, content in zip(
        (index, tokens), harm(index.read_bytes(), tokens.read_bytes()), strict=True
    ):
        path.write_bytes(content)

    with pytest.raises(ConfigError, match=message) as caught:
        read(MegatronFiles(paths=(str(index),)))
    assert "\n" not in str(caught.value)


def test_a_file_is_hashed_again_only_when_it_changed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_text("one")
    monkeypatch.setattr(files_module, "SETTLED_S", -1.0)
    hashes = Hashes()
    first = hashes.of(path)
    (tmp_path / "kept.json").write_bytes(hashes.content())
    again = Hashes(tmp_path / "kept.json")
    with monkeypatch.context() as patched:
        patched.setattr(files_module.hashlib, "file_digest", lambda *_: pytest.fail("read again"))
        assert again.of(path) == first
    assert again.content() is None
    path.write_text("two")  # the same size
    assert again.of(path) != first


def test_a_document_is_what_its_content_is():
    assert Document("a", b"x").digest == Document("b", b"x").digest
