"""Documents in their final order, encoded into shards by processes beside each other."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.data.documents import Document, sha256
from model.training.data.safely import save_array
from model.training.data.spool import Index, Spool, portions
from model.training.data.tokenizers import ENCODE_AT_ONCE, BytesCodec, Codec, codec_from_json
from model.training.data.tokens import BLOCK_BYTES, Shard, block_hash

SHARD_BYTES = 2**24
"""Text of one shard: what a process holds in memory, and what a kill can cost."""
COUNT_AT_ONCE = 2**20


@dataclass(frozen=True)
class EncodeTask:
    """Documents ``first`` .. ``last - 1`` of an index on disk, and the shard they make."""

    spool: Spool
    index_path: Path
    first: int
    last: int
    codec_path: Path
    target: Path
    size: int


@dataclass(frozen=True)
class EncodedShard:
    """A shard on disk."""

    shard: Shard
    num_bytes: int
    """Of the text it stands for."""


def encode_tasks(
    spool: Spool, index: Index, index_path: Path, codec_path: Path, folder: Path, name: str
) -> list[EncodeTask]:
    """The shards of one side of a domain; the index is written for the processes to read."""
    save_array(index_path, index)
    tasks = []
    for number, (first, last) in enumerate(portions(index["length"], SHARD_BYTES)):
        target = folder / shard_name(name, number)
        size = int(index["length"][first:last].sum(dtype=np.int64))
        tasks.append(EncodeTask(spool, index_path, first, last, codec_path, target, size))
    return tasks


def shard_name(name: str, number: int) -> str:
    """``code-1a2b3c4d.train.npy``; further shards have a number."""
    return f"{name}.npy" if number == 0 else f"{name}-{number:05d}.npy"


def side_name(domain: str, side: str) -> str:
    """A file name whatever the domain is called; the digest keeps two names apart."""
    readable = re.sub(r"\W", "_", domain)[:40]
    return f"{readable}-{sha256(domain.encode())[:8]}.{side}"


def encode_shard(task: EncodeTask) -> EncodedShard:
    """Make a shard, unless that was done before; either way say what is in it.

    Raises:
        ConfigError: the tokenizer does not fit the documents.
    """
    codec, bytes_by_token = _codec(task.codec_path)
    if not task.target.exists():
        save_array(task.target, _encode(task, codec, bytes_by_token))
    tokens: NDArray[np.integer] = np.load(task.target, mmap_mode="r", allow_pickle=False)
    parts = range(0, len(tokens), COUNT_AT_ONCE)
    num_bytes = sum(int(bytes_by_token[tokens[at : at + COUNT_AT_ONCE]].sum()) for at in parts)
    num_blocks = -(-tokens.nbytes // BLOCK_BYTES)
    blocks = tuple(block_hash(tokens, block) for block in range(num_blocks))
    return EncodedShard(Shard(task.target.name, len(tokens), blocks), num_bytes)


def hash_shards(folder: Path, shards: list[Shard]) -> tuple[str, str]:
    """(type of the tokens, sha256 of it and of all tokens in order): however they are cut."""
    dtype = str(np.load(folder / shards[0].file, mmap_mode="r").dtype)
    digest = hashlib.sha256(dtype.encode())
    for shard in shards:
        tokens = np.load(folder / shard.file, mmap_mode="r", allow_pickle=False)
        for at in range(0, len(tokens), COUNT_AT_ONCE):
            digest.update(np.ascontiguousarray(tokens[at : at + COUNT_AT_ONCE]).data)
    return dtype, digest.hexdigest()


def _encode(
    task: EncodeTask, codec: Codec, bytes_by_token: NDArray[np.int64]
) -> NDArray[np.integer]:
    """All tokens in one array, an end token after every document."""
    dtype = np.uint16 if codec.vocab_size <= 2**16 else np.uint32
    end: NDArray[np.integer] = np.array([codec.vocab_size - 1], dtype=dtype)
    index = np.load(task.index_path, mmap_mode="r")[task.first : task.last]
    parts: list[NDArray[np.integer]] = []
    with task.spool.reader() as reader:
        for at in range(0, len(index), ENCODE_AT_ONCE):
            some = [reader.document(row) for row in index[at : at + ENCODE_AT_ONCE]]
            for document, tokens in zip(some, _tokens(some, codec), strict=True):
                _require_fit(document, tokens, codec, bytes_by_token)
                parts += [tokens.astype(dtype), end]
    return np.concatenate(parts)


def _tokens(documents: list[Document], codec: Codec) -> Iterator[NDArray[np.integer]]:
    encoded = codec.encode([d.text for d in documents if not d.is_tokens])
    for document in documents:
        if document.is_tokens:
            yield np.frombuffer(document.text, dtype="<u4")
        else:
            yield next(encoded)


def _require_fit(
    document: Document,
    tokens: NDArray[np.integer],
    codec: Codec,
    bytes_by_token: NDArray[np.int64],
) -> None:
    """A token file must be of this tokenizer, and a text must be its tokens exactly."""
    if document.is_tokens:
        largest = int(tokens.max())
        if largest >= codec.vocab_size - 1:
            raise ConfigError(
                f"data: domain {document.domain!r} holds the token {largest}, the tokenizer has "
                f"{codec.vocab_size - 1} entries: its files were made with another; name that one "
                "(data/tokenizer=file), or the end_token they use"
            )
    elif not isinstance(codec, BytesCodec):
        stood_for = int(bytes_by_token[tokens].sum())
        if stood_for != len(document.text):
            raise ConfigError(
                f"data.tokenizer: its tokens stand for {stood_for} bytes of a document of "
                f"{len(document.text)} in domain {document.domain!r}: it changes the text, and "
                "bits per byte would be wrong; use one without normalisation"
            )


@lru_cache(maxsize=1)
def _codec(path: Path) -> tuple[Codec, NDArray[np.int64]]:
    codec = codec_from_json(path.read_text())
    return codec, codec.bytes_by_token()
