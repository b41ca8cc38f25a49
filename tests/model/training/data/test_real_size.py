"""What large corpora need: portions, several processes, kills, shards checked as they are read."""

import os
import random
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from model.errors import ConfigError
from model.training.corpora import BpeTokenizer, MixtureCorpus, StdlibCorpus
from model.training.data import manifest as manifest_module
from model.training.data import open_corpus, prepare_corpus
from model.training.data import pool as pool_module
from model.training.data import prepare as prepare_module
from model.training.data import shards as shards_module
from model.training.data import tokens as tokens_module
from model.training.sources import JsonlFiles, TextFiles


@pytest.fixture
def corpus(tmp_path):
    """120 documents of two domains, 170 kB."""
    rng = random.Random(0)
    for domain in ("a", "b"):
        (tmp_path / domain).mkdir()
        for i in range(60):
            text = " ".join("".join(rng.choices("abcdefgh", k=7)) for _ in range(180))
            (tmp_path / domain / f"{i}.txt").write_text(text)
    return MixtureCorpus(
        sources={d: TextFiles(paths=(f"{tmp_path}/{d}",)) for d in ("a", "b")}, heldout_frac=0.1
    )


def test_several_processes_and_many_shards_give_the_same_corpus(corpus, tmp_path, monkeypatch):
    corpus = replace(corpus, tokenizer=BpeTokenizer(vocab_size=300))
    alone = prepare_corpus(corpus, tmp_path / "alone", workers=1)
    steps = []
    monkeypatch.setattr(pool_module, "PARALLEL_BYTES", 0)
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 20_000)

    many = prepare_corpus(
        corpus, tmp_path / "many", workers=2, progress=lambda *step: steps.append(step)
    )

    assert many.fingerprint == alone.fingerprint
    assert len(list((tmp_path / "many" / many.fingerprint).glob("a-*.train*.npy"))) > 3
    np.testing.assert_array_equal(many.windows(0, 200, 64), alone.windows(0, 200, 64))
    np.testing.assert_array_equal(many.heldout("b", 32, 999), alone.heldout("b", 32, 999))
    for what in ("reading", "tokenising"):
        done = [(done, total) for name, done, total in steps if name == what]
        assert done == sorted(done)
        assert done[0][0] == 0
        assert done[-1][0] == done[-1][1] > 0


KILLED = """
import os, signal, sys
from pathlib import Path
from model.training.corpora import MixtureCorpus
from model.training.data import prepare_corpus, shards, spool
from model.training.data import files, safely
from model.training.sources import TextFiles

folder, saves = Path(sys.argv[1]), int(sys.argv[2])
files.JOB_BYTES, shards.SHARD_BYTES = 20_000, 20_000
save = safely.save_array

def save_or_die(path, array):
    global saves
    saves -= 1
    if saves < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    save(path, array)

spool.save_array = shards.save_array = save_or_die
sources = {d: TextFiles(paths=(f"{folder}/{d}",)) for d in ("a", "b")}
prepare_corpus(MixtureCorpus(sources=sources, heldout_frac=0.1), folder / "data", workers=1)
"""


@pytest.mark.parametrize("saves", [3, 17])  # while reading, while encoding
def test_a_killed_preparation_goes_on_where_it_was(corpus, tmp_path, monkeypatch, saves):
    command = [sys.executable, "-c", KILLED, str(tmp_path), str(saves)]
    assert subprocess.run(command, check=False).returncode == -9
    [work] = (tmp_path / "data").glob(".preparing-*")
    kept = {p: p.stat().st_mtime_ns for p in work.rglob("*.npy") if "index" not in p.name}
    assert len(kept) >= min(saves, 8)
    written = []
    save = shards_module.save_array
    for module in ("spool", "shards"):
        monkeypatch.setattr(
            f"model.training.data.{module}.save_array",
            lambda path, array: (written.append(path), save(path, array)),
        )
    monkeypatch.setattr("model.training.data.files.JOB_BYTES", 20_000)
    monkeypatch.setattr(shards_module, "SHARD_BYTES", 20_000)

    again = prepare_corpus(corpus, tmp_path / "data", workers=1)

    assert not set(written) & {p for p in kept if p.parent.name in ("spool", "tokens")}
    assert not list((tmp_path / "data").glob(".preparing-*"))
    assert again.fingerprint == prepare_corpus(corpus, tmp_path / "clean").fingerprint


def test_a_killed_worker_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(pool_module, "PARALLEL_BYTES", 0)
    with (
        pool_module.started(1, 2) as workers,
        pytest.raises(RuntimeError, match="was killed, perhaps for want of memory, or"),
    ):
        workers.run(os._exit, [1], lambda _: None)


def test_a_large_corpus_is_checked_where_it_is_read(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(manifest_module, "CHECKED_AT_ONCE_BYTES", 0)
    for module in (tokens_module, shards_module):
        monkeypatch.setattr(module, "BLOCK_BYTES", 4096)
    prepared = prepare_corpus(corpus, tmp_path / "data")
    whole = prepared.windows(0, 400, 64)
    [path] = (tmp_path / "data" / prepared.fingerprint).glob("a-*.train.npy")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    opened = open_corpus(tmp_path / "data", prepared.fingerprint)

    refused = []
    for window in range(400):
        try:
            read = opened.windows(window, 1, 64)
        except ConfigError as error:
            refused.append(str(error))
        else:
            np.testing.assert_array_equal(read, whole[window : window + 1])
    assert 0 < len(refused) < 100  # the block's windows, and no wrong number ever
    [line] = set(refused)
    assert "is damaged (a-" in line
    assert "is not what was written, in its block" in line
    assert "\n" not in line


def test_another_mixture_of_the_same_tokens_reads_nothing_again(corpus, tmp_path, monkeypatch):
    first = prepare_corpus(corpus, tmp_path / "data")
    monkeypatch.setattr(prepare_module, "write_job", lambda _: pytest.fail("read again"))
    weights = {"a": 0.9, "b": 0.1}

    second = prepare_corpus(replace(corpus, weights=weights), tmp_path / "data")

    assert second.weights == weights
    assert second.fingerprint != first.fingerprint
    third = prepare_corpus(replace(corpus, weights={"a": 0.5, "b": 0.5}), tmp_path / "data")
    assert len({first.fingerprint, second.fingerprint, third.fingerprint}) == 3
    for name in ("a", "b"):
        np.testing.assert_array_equal(second.train[name], first.train[name])


def test_a_folder_of_an_older_layout_is_made_anew(corpus, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        for module in (manifest_module, prepare_module):
            patched.setattr(module, "LAYOUT", 1)
        old = prepare_corpus(corpus, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"is damaged .*layout 2, it has 1"):
        open_corpus(tmp_path / "data", old.fingerprint)

    assert prepare_corpus(corpus, tmp_path / "data").fingerprint == old.fingerprint


def test_an_empty_corpus_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": " "}\n\n')
    corpus = MixtureCorpus(sources={"a": JsonlFiles(paths=(f"{tmp_path}/*.jsonl",))})
    with pytest.raises(ConfigError, match="empty corpus; the 1 files found hold no text"):
        prepare_corpus(corpus, tmp_path / "data")
    with pytest.raises(ConfigError, match=r"data\.sources\.a\.paths: empty; name the files"):
        prepare_corpus(MixtureCorpus(sources={"a": TextFiles(paths=())}), tmp_path / "data")


START = """
import sys, time
from pathlib import Path
from model.training.corpora import StdlibCorpus
begin = time.process_time()
from model.training.data import open_corpus, prepare_corpus
found = prepare_corpus(StdlibCorpus(), Path(sys.argv[1]))
open_corpus(Path(sys.argv[1]), found.fingerprint).windows(0, 64, 128)
print(time.process_time() - begin)
"""


@pytest.mark.slow
def test_a_run_starts_on_a_prepared_corpus_within_two_seconds(tmp_path):
    prepare_corpus(StdlibCorpus(), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path)], check=True, capture_output=True, text=True
    )
    assert float(done.stdout) < 2.0
