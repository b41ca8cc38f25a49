"""Bytes, or byte-level BPE trained on the training split: text to token numbers.

Neither loses anything: the tokens of a document stand for exactly its bytes. After every document
comes one end token, which stands for none.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, assert_never

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as BpeModel
from tokenizers import decoders, models, pre_tokenizers, trainers

from model.errors import ConfigError
from model.training.corpora import BpeTokenizer, BytesTokenizer, Tokenizer
from model.training.sources import FileTokenizer

ENCODE_AT_ONCE = 64  # documents; bounds the memory of the encoder's own result objects


class Codec(Protocol):
    """A trained tokenizer. Its last token is the end of a document."""

    vocab_size: int

    def encode(self, texts: Sequence[bytes]) -> Iterator[NDArray[np.integer]]:
        """Tokens of each text, without the end token."""

    def decode(self, tokens: Sequence[int]) -> str:
        """The text the tokens stand for; end tokens are skipped."""

    def bytes_by_token(self) -> NDArray[np.int64]:
        """[vocab_size]: how many bytes each token stands for; 0 for the end token."""

    def to_json(self) -> str:
        """Everything ``codec_from_json`` needs."""


class BytesCodec:
    """Token = byte value; the end of a document is 256."""

    vocab_size = 257

    def encode(self, texts: Sequence[bytes]) -> Iterator[NDArray[np.integer]]:
        """Tokens of each text, without the end token."""
        return (np.frombuffer(text, dtype=np.uint8) for text in texts)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text the tokens stand for; a character cut in half is shown as U+FFFD."""
        return bytes(t for t in tokens if t < 256).decode(errors="replace")

    def bytes_by_token(self) -> NDArray[np.int64]:
        """[257]: one byte each, none for the end token."""
        return np.array([1] * 256 + [0])

    def to_json(self) -> str:
        """There is nothing to keep."""
        return json.dumps({"kind": "bytes"})


class BpeCodec:
    """Byte-level BPE; the end token is one past the model's own entries.

    It is not an entry of the model, so that no text can spell it.
    """

    def __init__(self, model: BpeModel) -> None:
        self.model = model
        # A marker's spelling in a text is text: only whole documents end.
        model.encode_special_tokens = True
        self.vocab_size = model.get_vocab_size() + 1

    @classmethod
    def trained(cls, texts: Iterable[bytes], vocab_size: int) -> BpeCodec:
        """A tokenizer of exactly ``vocab_size`` entries, the end token included.

        Raises:
            ConfigError: when the text is too small to give that many.
        """
        model = BpeModel(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - 1,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        model.train_from_iterator((text.decode() for text in texts), trainer)
        codec = cls(model)
        if codec.vocab_size < vocab_size:
            raise ConfigError(
                f"data.tokenizer.vocab_size: {vocab_size} entries cannot be made from this text, "
                f"which gives {codec.vocab_size}; ask for at most that"
            )
        return codec

    def encode(self, texts: Sequence[bytes]) -> Iterator[NDArray[np.integer]]:
        """Tokens of each text, without the end token."""
        for start in range(0, len(texts), ENCODE_AT_ONCE):
            some = [text.decode() for text in texts[start : start + ENCODE_AT_ONCE]]
            encodings = self.model.encode_batch(some, add_special_tokens=False)
            yield from (np.array(encoding.ids, dtype=np.uint32) for encoding in encodings)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text the tokens stand for; a character cut in half is shown as U+FFFD."""
        return self.model.decode([t for t in tokens if t < self.vocab_size - 1])

    def bytes_by_token(self) -> NDArray[np.int64]:
        """[vocab_size]: byte-level BPE spells every byte as one character of an entry's name."""
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for spelling, token in self.model.get_vocab().items():
            sizes[token] = len(spelling)
        return sizes

    def to_json(self) -> str:
        """The tokenizers library's own JSON, with our word for what it is."""
        return json.dumps({"kind": "bpe", "model": json.loads(self.model.to_str())})


def train_codec(config: Tokenizer, training_texts: Iterable[bytes]) -> Codec:
    """The tokenizer ``config`` asks for; BPE learns from ``training_texts`` alone."""
    match config:
        case BytesTokenizer():
            return BytesCodec()
        case BpeTokenizer(vocab_size=vocab_size):
            return BpeCodec.trained(training_texts, vocab_size)
        case FileTokenizer(path=path):
            return read_codec(path)
        case _:
            assert_never(config)


def read_codec(path: Path) -> BpeCodec:
    """A tokenizer made elsewhere.

    Raises:
        ConfigError: when it is not there, or its entries do not stand for bytes.
    """
    try:
        text = path.read_text()
        model = BpeModel.from_str(text)
        state = json.loads(text)
    except OSError as error:
        raise ConfigError(f"data.tokenizer.path: cannot read {path}: {error.strerror}") from None
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"data.tokenizer.path: {path} is no tokenizer.json ({error})") from None
    if state["model"]["type"] != "BPE" or '"ByteLevel"' not in json.dumps(state["pre_tokenizer"]):
        raise ConfigError(
            f"data.tokenizer.path: {path} is not a byte-level BPE; with any other, what a token "
            "stands for in bytes is not known"
        )
    return BpeCodec(model)


def codec_from_json(text: str) -> Codec:
    """The inverse of ``Codec.to_json``."""
    state = json.loads(text)
    if state["kind"] == "bytes":
        return BytesCodec()
    return BpeCodec(BpeModel.from_str(json.dumps(state["model"])))
