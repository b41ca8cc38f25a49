"""Documents to shards of tokens on disk, once.

``<data_dir>/<fingerprint>/`` holds the shards of each domain's two sides, the tokenizer and a
manifest. The fingerprint is a hash of exactly what a run can see: the tokens (and so the documents,
their split, their order and the tokenizer), the weights and the stages. What was prepared before is
found by keys made from the raw material and the settings (``<data_dir>/keys/<key>``), which are
cheap to compute: one for everything, and one without the weights and stages, so that another
mixture of the same tokens is made without reading them.

The work is done in ``<data_dir>/.preparing-<key>/`` in three passes over portions of bounded size:
read the documents into a spool, compare the held-out ones with the others, encode. Each portion is
written whole or not at all, so that a killed preparation goes on where it was.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from model.errors import ConfigError
from model.files import sync_folder, write_atomic
from model.locks import alone
from model.training.corpora import BpeTokenizer, CorpusConfig
from model.training.data.corpus import PreparedCorpus
from model.training.data.documents import Job, Progress, Report, Source, no_progress, sha256
from model.training.data.files import Hashes
from model.training.data.manifest import (
    FORMAT,
    LAYOUT,
    SIDES,
    fingerprint_of,
    is_current,
    mixture_weights,
    open_corpus,
)
from model.training.data.mixture import source_of
from model.training.data.pool import Workers, started
from model.training.data.safely import replaced_by, save_array
from model.training.data.shards import encode_shard, encode_tasks, hash_shards, side_name
from model.training.data.similar import (
    CompareTask,
    Similar,
    SketchTask,
    band_hashes,
    find_similar,
    sorted_bands,
)
from model.training.data.split import count_heldout
from model.training.data.spool import Index, Spool, SpoolTask, portions, write_job
from model.training.data.tokenizers import BytesCodec, Codec, codec_from_json, train_codec
from model.training.sources import FileTokenizer
from model.typed import to_plain

BPE_SAMPLE_BYTES = 2**26
"""Training text a tokenizer is learnt from, at most: its memory grows with the text."""


def prepare_corpus(
    corpus: CorpusConfig,
    data_dir: Path,
    *,
    progress: Progress | None = None,
    workers: int | None = None,
) -> PreparedCorpus:
    """The corpus, prepared now or found prepared under ``data_dir``.

    Args:
        corpus: what text, in what shares.
        data_dir: where prepared corpora are kept.
        progress: called while it works.
        workers: processes for a large corpus; null: one for every core.

    Raises:
        ConfigError: for anything about the corpus that the user can correct, in one line.
    """
    hashes = Hashes(data_dir / "keys" / "files.json")
    source = source_of(corpus, hashes)
    jobs = source.jobs()
    tokens_key, key = _keys(corpus, jobs)
    keys = data_dir / "keys"
    fingerprint = _found(data_dir, key)
    if fingerprint is None:
        with _alone(data_dir / f".preparing-{tokens_key}") as work:
            fingerprint = _found(data_dir, key)
            if fingerprint is None:
                same_tokens = _found(data_dir, tokens_key)
                if same_tokens is None:
                    building = _Building(corpus, source, jobs, work, progress or no_progress)
                    same_tokens = _place(building.make(workers), data_dir)
                fingerprint = _remixed(corpus, data_dir, same_tokens)
                keys.mkdir(exist_ok=True)
                write_atomic(keys / tokens_key, fingerprint.encode())
                write_atomic(keys / key, fingerprint.encode())
    if (content := hashes.content()) is not None:
        write_atomic(keys / "files.json", content)
    return open_corpus(data_dir, fingerprint)


def remix_corpus(corpus: CorpusConfig, data_dir: Path, fingerprint: str) -> PreparedCorpus:
    """The tokens of a prepared corpus in the shares that ``corpus`` asks for; nothing is read.

    Raises:
        ConfigError: the shares name other domains than the prepared corpus has.
    """
    return open_corpus(data_dir, _remixed(corpus, data_dir, fingerprint))


def _keys(corpus: CorpusConfig, jobs: Sequence[Job]) -> tuple[str, str]:
    """What decides the tokens, and that with what decides their mixture."""
    tokenizer: Any = to_plain(corpus.tokenizer)
    if isinstance(corpus.tokenizer, FileTokenizer):
        _, tokenizer = Hashes().of(corpus.tokenizer.path, "data.tokenizer.path")
    elif isinstance(corpus.tokenizer, BpeTokenizer):
        tokenizer["library"] = tokenizers.__version__
    settings = [corpus.heldout_frac, corpus.order_seed, corpus.max_similarity]
    material = sorted(job.key for job in jobs)
    tokens = [FORMAT, LAYOUT, tokenizer, settings, material]
    mixture = [tokens, corpus.weights, to_plain(corpus.stages)]
    return sha256(json.dumps(tokens).encode())[:16], sha256(json.dumps(mixture).encode())[:16]


def _found(data_dir: Path, key: str) -> str | None:
    path = data_dir / "keys" / key
    fingerprint = path.read_text() if path.exists() else ""
    return fingerprint if fingerprint and is_current(data_dir / fingerprint) else None


@contextmanager
def _alone(work: Path) -> Iterator[Path]:
    """The folder to work in, held against other processes until it is done and removed.

    A kill leaves the folder for the next attempt; an error removes it, as another attempt would
    meet the same, and a full disk must not stay full. The lock lies beside the folder: a network
    file system only renames a file that is open, and its folder could not be removed.
    """
    lock = work.with_name(f".lock-of{work.name}")
    work.parent.mkdir(parents=True, exist_ok=True)
    with alone(lock):
        try:
            work.mkdir(exist_ok=True)
            try:
                yield work
            except Exception:
                shutil.rmtree(work)
                raise
            shutil.rmtree(work)
        finally:
            lock.unlink(missing_ok=True)


def _place(building: Path, data_dir: Path) -> str:
    """Give the folder its name, the fingerprint of what is in it."""
    fingerprint = fingerprint_of(json.loads((building / "manifest.json").read_bytes()))
    target = data_dir / fingerprint
    if target.exists() and not is_current(target):
        shutil.rmtree(target)  # written by an older version, which cannot be opened any more
    sync_folder(building)  # the files are on disk, and here are their names
    try:
        os.rename(building, target)
        sync_folder(data_dir)
    except OSError:
        # The same corpus is there already, made from other files.
        if not target.exists():
            raise
        shutil.rmtree(building)
    return fingerprint


def _remixed(corpus: CorpusConfig, data_dir: Path, fingerprint: str) -> str:
    """The fingerprint of the same tokens in the mixture ``corpus`` asks for; made if need be."""
    folder = data_dir / fingerprint
    manifest = json.loads((folder / "manifest.json").read_bytes())
    weights = mixture_weights(corpus, manifest["domains"])
    if (weights, to_plain(corpus.stages)) == (manifest["weights"], manifest["stages"]):
        return fingerprint
    manifest |= {"weights": weights, "stages": to_plain(corpus.stages), "corpus": to_plain(corpus)}
    building = Path(tempfile.mkdtemp(dir=data_dir, prefix=".building-"))
    try:
        building.chmod(0o755)
        for path in folder.iterdir():
            if path.name != "manifest.json":
                os.link(path, building / path.name)
        _write_manifest(building, manifest)
        return _place(building, data_dir)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with replaced_by(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=1).encode())


@dataclass(frozen=True)
class _Building:
    """One preparation, from jobs to a folder of shards."""

    corpus: CorpusConfig
    source: Source
    jobs: Sequence[Job]
    work: Path
    progress: Progress

    def make(self, num_workers: int | None) -> Path:
        """All passes. Returns the finished folder, which has no name yet."""
        with started(sum(job.size for job in self.jobs), num_workers) as workers:
            tasks = [SpoolTask(self.work / "spool", job) for job in self.jobs]
            done = self._shown("reading", sum(job.size for job in self.jobs))
            workers.run(write_job, tasks, lambda task: done(task.job.size))
            spool, index, report = Spool.read(self.work / "spool", self.jobs)
            if not len(index):
                files = report.get("files", 0)
                raise ConfigError(f"data: empty corpus; the {files} files found hold no text")
            index = self._without_duplicates(index, report)
            sides = self._split(spool, index)
            del index  # the sides hold it all; at 10 GB it is the largest thing in memory
            if not self.source.keeps_duplicates and self.corpus.max_similarity is not None:
                self._drop_similar(workers, spool, sides, self.corpus.max_similarity, report)
            codec = self._tokenizer(spool, sides, report)
            return self._encode(workers, spool, sides, codec, report)

    def _shown(self, what: str, total: int) -> Callable[[int], None]:
        """Reports bytes as they are done."""
        finished = 0
        self.progress(what, 0, total)

        def done(size: int) -> None:
            nonlocal finished
            finished += size
            self.progress(what, finished, total)

        return done

    def _without_duplicates(self, index: Index, report: Report) -> Index:
        """Ordered by content; the first domain's of every set of equal documents.

        A text that occurs twice could be trained on and held out at the same time.
        """
        index = index[np.lexsort((index["domain"], index["low"], index["high"]))]
        if self.source.keeps_duplicates:
            return index
        same = (index["high"][1:] == index["high"][:-1]) & (index["low"][1:] == index["low"][:-1])
        report["duplicates"] = int(same.sum())
        return index[np.concatenate([[True], ~same])] if same.any() else index

    def _split(self, spool: Spool, index: Index) -> dict[tuple[str, str], Index]:
        """Documents of each (domain, side), ordered by content."""
        sides: dict[tuple[str, str], Index] = {}
        for number, domain in enumerate(spool.domains):
            members = index[index["domain"] == number]
            if not len(members):
                raise ConfigError(
                    f"data: every document of domain {domain!r} is in another domain too; "
                    "a text belongs to one"
                )
            num_heldout = count_heldout(members["high"], self.corpus.heldout_frac, domain)
            sides[domain, "train"] = members[num_heldout:]
            sides[domain, "heldout"] = members[:num_heldout]
        return sides

    def _drop_similar(
        self,
        workers: Workers,
        spool: Spool,
        sides: dict[tuple[str, str], Index],
        limit: float,
        report: Report,
    ) -> None:
        """Take out of the training sides what is nearly a held-out document of any domain."""
        tasks: dict[str, list[SketchTask]] = {}
        for side in SIDES:
            whole = np.concatenate([sides[domain, side] for domain in spool.domains])
            path = self.work / f"{side}.npy"
            save_array(path, whole)
            tasks[side] = [SketchTask(spool, path, *part) for part in portions(whole["length"])]
        done = self._shown("comparing with the held-out text", sum(map(len, tasks.values())))
        sketches = workers.run(band_hashes, tasks["heldout"], lambda _: done(1))
        bands, places = sorted_bands(np.concatenate(sketches))
        save_array(self.work / "bands.npy", bands)
        save_array(self.work / "places.npy", places)
        comparisons = [
            CompareTask(
                task,
                self.work / "heldout.npy",
                self.work / "bands.npy",
                self.work / "places.npy",
                limit,
            )
            for task in tasks["train"]
        ]
        found = [
            s for part in workers.run(find_similar, comparisons, lambda _: done(1)) for s in part
        ]
        report["near_duplicates"] = len(found)
        self._take_out(spool, sides, found, report)

    def _take_out(
        self,
        spool: Spool,
        sides: dict[tuple[str, str], Index],
        found: Sequence[Similar],
        report: Report,
    ) -> None:
        gone = np.array([similar.train for similar in found], dtype=np.int64)
        by_domain = []
        begin = 0
        for domain in spool.domains:
            members = sides[domain, "train"]
            keep = np.ones(len(members), dtype=bool)
            keep[gone[(gone >= begin) & (gone < begin + len(members))] - begin] = False
            begin += len(members)
            sides[domain, "train"] = members[keep]
            if not keep.any():
                raise ConfigError(
                    f"data: every training document of domain {domain!r} is nearly one of the "
                    "held-out ones; its text repeats itself, or raise data.max_similarity"
                )
            if not keep.all():
                by_domain.append(f"{domain}: {(~keep).sum()} of {len(keep)} documents")
        report["near_duplicates_by_domain"] = by_domain

    def _tokenizer(
        self, spool: Spool, sides: Mapping[tuple[str, str], Index], report: Report
    ) -> Codec:
        """The one of an attempt before, so that its shards stay good; else a new one."""
        path = self.work / "tokens" / "tokenizer.json"
        if path.exists():
            return codec_from_json(path.read_text())
        training = [index for (_, side), index in sides.items() if side == "train"]
        total = sum(int(index["length"].sum(dtype=np.int64)) for index in training)
        if isinstance(self.corpus.tokenizer, BpeTokenizer):
            self.progress("training the tokenizer", 0, 1)
            if any(index["is_tokens"].any() for index in training):
                raise ConfigError(
                    "data.tokenizer: token files cannot teach a tokenizer; name the one they were "
                    "made with (data/tokenizer=file)"
                )
            report["tokenizer_bytes"] = min(total, BPE_SAMPLE_BYTES)
        # Which documents teach it is decided by their content, as the split is.
        share = min(1.0, BPE_SAMPLE_BYTES / total) * 2.0**64
        with spool.reader() as reader:
            texts = (
                reader.document(row).text
                for index in training
                for row in index
                if int(row["low"]) < share
            )
            codec = train_codec(self.corpus.tokenizer, texts)
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, codec.to_json().encode())
        return codec

    def _encode(
        self,
        workers: Workers,
        spool: Spool,
        sides: Mapping[tuple[str, str], Index],
        codec: Codec,
        report: Report,
    ) -> Path:
        """Every side's shards and the manifest."""
        folder = self.work / "tokens"
        tasks = {
            (domain, side): encode_tasks(
                spool,
                _ordered(index, self.corpus.order_seed),
                self.work / f"{side_name(domain, side)}.index.npy",
                folder / "tokenizer.json",
                folder,
                side_name(domain, side),
            )
            for (domain, side), index in sides.items()
        }
        every = [task for side in tasks.values() for task in side]
        done = self._shown("tokenising", sum(task.size for task in every))
        encoded = iter(workers.run(encode_shard, every, lambda task: done(task.size)))
        domains: dict[str, dict[str, Any]] = {domain: {} for domain in spool.domains}
        for (domain, side), own in tasks.items():
            results = [next(encoded) for _ in own]
            shards = [result.shard for result in results]
            dtype, digest = hash_shards(folder, shards)
            domains[domain][side] = {
                "tokens": sum(shard.tokens for shard in shards),
                "bytes": sum(result.num_bytes for result in results),
                "documents": len(sides[domain, side]),
                "sha256": digest,
                "dtype": dtype,
                "shards": to_plain(shards),
            }
        exact = self.source.entropy_by_context() if isinstance(codec, BytesCodec) else ()
        _write_manifest(
            folder,
            {
                "format": FORMAT,
                "layout": LAYOUT,
                "corpus": to_plain(self.corpus),
                "vocab_size": codec.vocab_size,
                "tokenizer_sha256": sha256((folder / "tokenizer.json").read_bytes()),
                "weights": mixture_weights(self.corpus, domains),
                "stages": to_plain(self.corpus.stages),
                "entropy_nats": exact[-1] if exact else None,
                "entropy_by_context": exact,
                "domains": domains,
                "report": report,
            },
        )
        return folder


def _ordered(index: Index, order_seed: int) -> Index:
    """Shuffled from the order of their hashes, so that it is a function of contents and seed."""
    places = array("I", range(len(index)))
    random.Random(order_seed).shuffle(places)
    return index[np.frombuffer(places, dtype=np.uint32)]
