"""The texts a run can be trained on, and their tokenizers: frozen values, no torch.

Everything here is scientific: it changes the numbers, and is part of the protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.config import require, require_positive
from model.training.sources import (
    DOCUMENT_BYTES,
    DataStage,
    FileTokenizer,
    SourceConfig,
    require_shares,
    require_stages,
)


@dataclass(frozen=True, kw_only=True)
class BytesTokenizer:
    """One token a byte, and one for the end of a document: vocabulary 257."""

    kind: Literal["bytes"] = "bytes"


@dataclass(frozen=True, kw_only=True)
class BpeTokenizer:
    """Byte-level BPE trained on the training split with the ``tokenizers`` library."""

    kind: Literal["bpe"] = "bpe"
    vocab_size: int = 4096
    """Entries, the end-of-document token included; at least 257."""

    def __post_init__(self) -> None:
        require(self.vocab_size >= 257, f"vocab_size must be >= 257, got {self.vocab_size}")


Tokenizer = BytesTokenizer | BpeTokenizer | FileTokenizer


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What every corpus has. ``weights`` null means in proportion to the training tokens."""

    tokenizer: Tokenizer = BytesTokenizer()
    weights: dict[str, float] | None = None
    """Share of each domain in the token stream; must name every domain and sum to 1. With stages it
    is what a run is measured by, null meaning the mean of the stages."""
    stages: tuple[DataStage, ...] = ()
    """Parts of a run with mixtures of their own; none: the whole run has one."""
    heldout_frac: float = 0.05
    """Share of the documents, chosen by the hash of their content, that is never trained on."""
    order_seed: int = 0
    """Orders the documents. Part of the protocol: equal in every run of a sweep."""
    max_similarity: float | None = 0.8
    """Training documents this like a held-out one (Jaccard similarity) are left out; null: none."""
    max_epochs: float | None = None
    """Most often a run may read a domain; null: no limit. Repeated text is worth less with every
    pass and next to nothing after about 16 (Muennighoff et al., arXiv:2305.16264)."""

    def __post_init__(self) -> None:
        require(0 < self.heldout_frac < 1, f"heldout_frac must be in (0, 1): {self.heldout_frac}")
        if self.max_epochs is not None:
            require_positive(max_epochs=self.max_epochs)
        if self.max_similarity is not None:
            limit = self.max_similarity
            require(0 < limit <= 1, f"max_similarity must be in (0, 1], got {limit}")
        if self.weights is not None:
            require_shares("weights", self.weights)
        require_stages(self.stages)


@dataclass(frozen=True, kw_only=True)
class StdlibCorpus(Corpus):
    """The running interpreter's standard library: domains ``code`` and ``prose``.

    ``prose`` is the docstrings and comments, ``code`` the source without them.
    """

    kind: Literal["stdlib"] = "stdlib"


@dataclass(frozen=True, kw_only=True)
class TextCorpus(Corpus):
    """The user's own files; each file is a document, long ones cut at blank lines."""

    kind: Literal["text"] = "text"
    paths: tuple[str, ...]
    """Files, folders or globs. The domain of a file is its suffix without the dot, unless
    ``domains`` says otherwise."""
    domains: dict[str, tuple[str, ...]] | None = None
    """Domain name to globs, in place of ``paths``' suffix rule."""
    document_bytes: int = DOCUMENT_BYTES
    """Longest document; longer files are cut at the last blank line or line end before it."""


@dataclass(frozen=True, kw_only=True)
class SyntheticCorpus(Corpus):
    """A generated language whose entropy rate is known exactly, so that E can be checked."""

    kind: Literal["synthetic"] = "synthetic"
    tokens: int = 4_000_000
    """Length of the generated text, in tokens."""
    num_symbols: int = 64
    """Alphabet."""
    order: int = 2
    """Symbols of context that decide the next one."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class MixtureCorpus(Corpus):
    """Several sources, each filling a domain, with shares by stage."""

    kind: Literal["mixture"] = "mixture"
    sources: dict[str, SourceConfig]
    """A source's name is its domain, unless it names another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(bool(self.sources), "sources: empty; name at least one")


CorpusConfig = StdlibCorpus | TextCorpus | SyntheticCorpus | MixtureCorpus
