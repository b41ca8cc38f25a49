"""Documents to token arrays on disk, once.

``<data_dir>/<fingerprint>/`` holds one array a domain and side, the tokenizer and a manifest. The
fingerprint is a hash of exactly what a run can see: the arrays (and so the documents, their split,
their order and the tokenizer) and the weights. What was prepared before is found by a key made from
the raw material and the settings (``<data_dir>/keys/<key>``), which is cheap to compute.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.config import (
    BpeTokenizer,
    CorpusConfig,
    StdlibCorpus,
    SyntheticCorpus,
    TextCorpus,
)
from model.training.data.corpus import DomainSize, PreparedCorpus
from model.training.data.documents import (
    Document,
    Progress,
    Source,
    no_progress,
    sha256,
)
from model.training.data.split import Split, split_documents
from model.training.data.stdlib import StdlibSource
from model.training.data.synthetic import SyntheticSource
from model.training.data.text import TextSource
from model.training.data.tokenizers import BytesCodec, Codec, codec_from_json, train_codec
from model.typed import to_plain

FORMAT = 1
"""Raised when the same material would be cut, split or ordered differently than before."""

SIDES = ("train", "heldout")


def prepare_corpus(
    corpus: CorpusConfig, data_dir: Path, *, progress: Progress | None = None
) -> PreparedCorpus:
    """The corpus, prepared now or found prepared under ``data_dir``.

    Raises:
        ConfigError: for anything about the corpus that the user can correct, in one line.
    """
    source = _source(corpus)
    key_path = data_dir / "keys" / _key(corpus, source)
    if key_path.exists():
        fingerprint = key_path.read_text()
        if (data_dir / fingerprint).exists():
            return open_corpus(data_dir, fingerprint)
    fingerprint = _prepare(corpus, source, data_dir, progress or no_progress)
    write_atomically(key_path, fingerprint.encode())
    return open_corpus(data_dir, fingerprint)


def open_corpus(data_dir: Path, fingerprint: str) -> PreparedCorpus:
    """A corpus prepared before, its arrays mapped into memory and checked against their hashes.

    Raises:
        ConfigError: when it is not there, or its files are not what was written.
    """
    folder = data_dir / fingerprint
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        arrays = {
            (domain, side): _open_array(folder / _array_name(domain, side), entry[side]["sha256"])
            for domain, entry in manifest["domains"].items()
            for side in SIDES
        }
        tokenizer_text = (folder / "tokenizer.json").read_text()
    except FileNotFoundError as error:
        if folder.exists():
            raise _damaged(folder, f"{Path(error.filename).name} is missing") from None
        raise ConfigError(
            f"data: corpus {fingerprint} is not prepared under {data_dir}; "
            "run the sweep command again to prepare it"
        ) from None
    except (ValueError, KeyError) as error:
        raise _damaged(folder, str(error)) from None
    if _fingerprint(manifest) != fingerprint:
        raise _damaged(folder, "the manifest was changed")
    if sha256(tokenizer_text.encode()) != manifest["tokenizer_sha256"]:
        raise _damaged(folder, "the tokenizer was changed")
    return PreparedCorpus(
        fingerprint=fingerprint,
        codec=codec_from_json(tokenizer_text),
        domains={
            domain: DomainSize(
                **{
                    f"{side}_{what}": entry[side][what]
                    for side in SIDES
                    for what in ("tokens", "bytes", "documents")
                }
            )
            for domain, entry in manifest["domains"].items()
        },
        weights=manifest["weights"],
        report=manifest["report"],
        entropy_by_context=tuple(manifest["entropy_by_context"]),
        train={domain: arrays[domain, "train"] for domain in manifest["domains"]},
        heldout_tokens={domain: arrays[domain, "heldout"] for domain in manifest["domains"]},
    )


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``path`` so that a reader sees the old content or the new, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-", delete=False) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, path)


def _source(corpus: CorpusConfig) -> Source:
    match corpus:
        case StdlibCorpus():
            return StdlibSource.running()
        case TextCorpus():
            return TextSource(corpus)
        case SyntheticCorpus():
            return SyntheticSource(corpus)


def _key(corpus: CorpusConfig, source: Source) -> str:
    settings = to_plain(corpus)
    settings.pop("paths", None)  # what the files hold counts, not where they lie
    settings.pop("domains", None)
    library = tokenizers.__version__ if isinstance(corpus.tokenizer, BpeTokenizer) else ""
    return sha256(_canonical([FORMAT, settings, source.key(), library]))[:16]


def _prepare(corpus: CorpusConfig, source: Source, data_dir: Path, progress: Progress) -> str:
    """Make the arrays in a folder of their own, then give it its name. Returns the fingerprint."""
    collection = source.collect(progress)
    splits = split_documents(collection.documents, corpus.heldout_frac)
    progress("training the tokenizer", 0, 1)
    codec = train_codec(
        corpus.tokenizer, (d.text for split in splits.values() for d in split.train)
    )
    data_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=data_dir, prefix=".building-"))
    try:
        domains: dict[str, Any] = {}
        for index, (domain, split) in enumerate(splits.items()):
            progress("tokenising", index, len(splits))
            domains[domain] = _write_domain(building, domain, split, codec, corpus.order_seed)
        codec_text = codec.to_json()
        exact = collection.entropy_by_context if isinstance(codec, BytesCodec) else ()
        manifest = {
            "format": FORMAT,
            "corpus": to_plain(corpus),
            "vocab_size": codec.vocab_size,
            "tokenizer_sha256": sha256(codec_text.encode()),
            "weights": _weights(corpus.weights, domains),
            "entropy_nats": exact[-1] if exact else None,
            "entropy_by_context": exact,
            "domains": domains,
            "report": collection.report,
        }
        _write_synced(building / "tokenizer.json", codec_text.encode())
        _write_synced(building / "manifest.json", json.dumps(manifest, indent=1).encode())
        fingerprint = _fingerprint(manifest)
        building.chmod(0o755)
        try:
            os.rename(building, data_dir / fingerprint)
        except OSError:
            # The same corpus is there already, from other files or from a process beside this one.
            if not (data_dir / fingerprint).exists():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return fingerprint


def _write_domain(
    folder: Path, domain: str, split: Split, codec: Codec, order_seed: int
) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for side, documents in zip(SIDES, split, strict=True):
        ordered = _ordered(documents, order_seed)
        tokens = _encode(ordered, codec)
        np.save(folder / _array_name(domain, side), tokens)
        entry[side] = {
            "tokens": len(tokens),
            "bytes": sum(len(d.text) for d in ordered),
            "documents": len(ordered),
            "sha256": _hash_array(tokens),
        }
    return entry


def _ordered(documents: Sequence[Document], order_seed: int) -> list[Document]:
    # Shuffled from the order of their hashes, so that it is a function of contents and seed.
    shuffled = sorted(documents, key=lambda d: d.digest)
    random.Random(order_seed).shuffle(shuffled)
    return shuffled


def _encode(documents: Sequence[Document], codec: Codec) -> NDArray[np.integer]:
    """All tokens in one array, an end token after every document."""
    dtype = np.uint16 if codec.vocab_size <= 2**16 else np.uint32
    end: NDArray[np.integer] = np.array([codec.vocab_size - 1], dtype=dtype)
    parts: list[NDArray[np.integer]] = []
    for tokens in codec.encode([d.text for d in documents]):
        parts += [tokens.astype(dtype), end]
    return np.concatenate(parts)


def _weights(given: Mapping[str, float] | None, domains: Mapping[str, Any]) -> dict[str, float]:
    """The given weights in the order of the domains, or in proportion to the training tokens."""
    if given is None:
        total = sum(entry["train"]["tokens"] for entry in domains.values())
        return {domain: entry["train"]["tokens"] / total for domain, entry in domains.items()}
    if given.keys() != domains.keys():
        unknown = sorted(given.keys() - domains.keys())
        missing = sorted(domains.keys() - given.keys())
        problem = f"unknown domain {unknown[0]!r}" if unknown else f"domain {missing[0]!r} missing"
        raise ConfigError(f"data.weights: {problem}; this corpus has: {', '.join(domains)}")
    return {domain: given[domain] for domain in domains}


def _fingerprint(manifest: Mapping[str, Any]) -> str:
    visible = [
        manifest["format"],
        manifest["vocab_size"],
        manifest["tokenizer_sha256"],
        manifest["weights"],
        {
            domain: [entry[side]["sha256"] for side in SIDES]
            for domain, entry in manifest["domains"].items()
        },
    ]
    return sha256(_canonical(visible))[:16]


def _open_array(path: Path, expected_sha256: str) -> NDArray[np.integer]:
    # A plain view of the mapped file: indexing np.memmap itself costs more than the reading.
    array: NDArray[np.integer] = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    if _hash_array(array) != expected_sha256:
        raise ValueError(f"{path.name} is not what was written")
    return array


def _hash_array(array: NDArray[np.integer]) -> str:
    digest = hashlib.sha256(str(array.dtype).encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _array_name(domain: str, side: str) -> str:
    # Readable, and a file name whatever the domain is called; the digest keeps two names apart.
    readable = re.sub(r"\W", "_", domain)[:40]
    return f"{readable}-{sha256(domain.encode())[:8]}.{side}.npy"


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _damaged(folder: Path, problem: str) -> ConfigError:
    return ConfigError(
        f"data: the prepared corpus {folder} is damaged ({problem}); "
        "delete that folder and run the command again to prepare it anew"
    )
