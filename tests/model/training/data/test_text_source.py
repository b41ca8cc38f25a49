"""The user's files: what is read, how it is cut, and one clear line for what is wrong."""

import io
import random

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import TextCorpus
from model.training.data import text as text_module
from model.training.data.files import Hashes, expand
from model.training.data.prepare import prepare_corpus
from model.training.data.text import cut, cut_stream, text_corpus
from model.training.data.tokenizers import BytesCodec


def collect(**settings):
    """(domain, text) of every document, and the report."""
    report = {}
    jobs = text_corpus(TextCorpus(**settings), Hashes()).jobs()
    return [(d.domain, d.text) for job in jobs for d in job.documents(report)], report


def test_domains_by_suffix_from_files_folders_and_globs(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "a.txt").write_text("alpha")
    (tmp_path / "b.md").write_text("beta")
    (tmp_path / "plain").write_text("gamma")

    documents, _ = collect(paths=(f"{tmp_path}/books", f"{tmp_path}/*.md", f"{tmp_path}/plain"))

    assert set(documents) == {
        ("txt", b"alpha"),
        ("md", b"beta"),
        ("text", b"gamma"),
    }


def test_named_domains_come_before_the_suffix_rule(tmp_path):
    (tmp_path / "a.txt").write_text("alpha")
    (tmp_path / "b.txt").write_text("beta")

    documents, _ = collect(paths=(str(tmp_path),), domains={"first": (f"{tmp_path}/a*",)})

    assert set(documents) == {
        ("first", b"alpha"),
        ("txt", b"beta"),
    }


def test_equal_documents_are_taken_once_and_counted(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text("same" if name < "c" else "other")

    prepared = prepare_corpus(TextCorpus(paths=(str(tmp_path),)), tmp_path / "data")

    sides = [prepared.train["txt"], prepared.heldout_tokens["txt"]]
    assert sorted(prepared.codec.decode(list(side)) for side in map(np.asarray, sides)) == [
        "other",
        "same",
    ]
    assert prepared.report["duplicates"] == 1


def test_cut_keeps_every_byte_and_prefers_blank_lines():
    text = b"one\n\ntwo\nthree\n\nfour\nfive " + "ünfünfünf".encode()

    pieces = cut(text, 12)

    assert b"".join(pieces) == text
    assert all(0 < len(piece) <= 12 for piece in pieces)
    assert pieces[:2] == [b"one\n\n", b"two\nthree\n\n"]
    assert all(piece.decode() for piece in pieces)


def test_cut_of_random_text():
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choices("aé漢\n", k=rng.randrange(1, 80))).encode()
        limit = rng.randrange(4, 30)
        pieces = cut(text, limit)
        assert b"".join(pieces) == text
        assert all(len(piece) <= limit and piece.decode() for piece in pieces if piece)
        assert list(cut_stream(io.BytesIO(text), limit)) == pieces


def test_a_long_file_is_cut_as_if_it_were_whole(monkeypatch):
    monkeypatch.setattr(text_module, "READ_AT_ONCE", 50)
    rng = random.Random(1)
    text = "".join(rng.choices("ab é\n", k=20_000)).encode()

    assert list(cut_stream(io.BytesIO(text), 64)) == cut(text, 64)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({"paths": ("nowhere/*.txt",)}, "no file matches 'nowhere", id="no match"),
        pytest.param({"paths": ("none",)}, "'none' is a folder without files", id="empty folder"),
        pytest.param({"paths": ()}, "data.paths: empty; name the files", id="no paths"),
        pytest.param({"paths": ("blank.txt",)}, "empty corpus; the 1 files", id="empty"),
        pytest.param({"paths": ("zero.txt",)}, "zero byte at offset 3", id="binary"),
        pytest.param(
            {"paths": ("latin.txt",)}, r"not UTF-8 \(byte 0xe9\) at offset 2", id="undecodable"
        ),
        pytest.param(
            {"paths": (), "domains": {"a": ("blank.txt",), "b": ("bl*",)}},
            "blank.txt is matched by both 'a' and 'b'",
            id="claimed twice",
        ),
        pytest.param(
            {"paths": (), "domains": {"a": ("gone*",)}}, "data.domains.a: no file", id="domain glob"
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "none").mkdir()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "zero.txt").write_bytes(b"abc\0def")
    (tmp_path / "latin.txt").write_bytes("abé".encode("latin-1"))

    with pytest.raises(ConfigError, match=message) as caught:
        prepare_corpus(TextCorpus(**settings), tmp_path / "data")

    assert "\n" not in str(caught.value)


def test_rows_with_text_in_them_are_not_read_as_text(tmp_path):
    rows = tmp_path / "docs.jsonl"
    rows.write_text('{"text": "alpha"}\n')
    typed = rf'data=mixture .*kind: jsonl, paths: \["{rows}"\], field: text'
    with pytest.raises(ConfigError, match=typed):
        collect(paths=(str(rows),))
    (tmp_path / "a.txt").write_text("beta")
    (tmp_path / "more.jsonl").write_text('{"text": "gamma"}\n')
    with pytest.raises(
        ConfigError, match=rf"1 more like it.*{tmp_path}/\*\*/\*.jsonl.*other files"
    ):
        collect(paths=(str(tmp_path),))
    parquet = tmp_path / "tables" / "t.parquet"
    parquet.parent.mkdir()
    parquet.write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"kind: parquet.*column: text") as refused:
        collect(paths=(f"{tmp_path}/tables/*",))
    assert "on purpose" not in str(refused.value)  # it is no text at all


def test_rows_are_read_as_they_stand_where_a_domain_names_them(tmp_path):
    rows = tmp_path / "docs.jsonl"
    rows.write_text('{"text": "alpha"}\n')
    documents, _ = collect(paths=(str(rows),), domains={"jsonl": (str(rows),)})
    assert documents == [("jsonl", b'{"text": "alpha"}\n')]


def test_what_finder_leaves_in_folders_is_no_text(tmp_path):
    folder = tmp_path / "notes"
    (folder / "deeper").mkdir(parents=True)
    for place in (folder, folder / "deeper"):
        (place / "a.txt").write_text("some words")
        (place / ".DS_Store").write_bytes(b"\0\0\0\1Bud1\0")
        (place / "._a.txt").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
        (place / "._b.txt").write_text("one's own")
    taken = expand([str(folder)], "data.paths")
    assert [path.name for path in taken] == ["._b.txt", "a.txt"] * 2
    # What is named is meant, and refused with a word.
    assert len(expand([str(folder / ".DS_Store")], "data.paths")) == 1


def test_a_window_that_begins_within_a_character_can_be_shown():
    cut_in_half = "ü".encode()[1:] + b" plain"
    assert BytesCodec().decode([*cut_in_half, 256]) == "\ufffd plain"
