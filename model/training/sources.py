"""Where the text of a mixture comes from, and how its shares change over a run: frozen values.

A mixture names sources, each source gives documents to a domain, and stages give the domains their
shares. No torch, and nothing is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.config import require, require_positive

DOCUMENT_BYTES = 16_384
"""Longest document by default; longer texts are cut."""


@dataclass(frozen=True, kw_only=True)
class DataStage:
    """A part of a run with a mixture, and perhaps a sequence length, of its own.

    Ling 2.0 (report, section 2): 10T tokens at 32 % reasoning, 10T at 46 %, then 150B at a sequence
    length of 32K, then 600B of reasoning and chain of thought.
    """

    name: str
    frac: float
    """Share of the run's tokens; those of all stages sum to 1."""
    weights: dict[str, float]
    """Share of each domain in this stage; names every domain and sums to 1."""
    sequence_length: int | None = None
    """Tokens of one window; null: the run's own."""

    def __post_init__(self) -> None:
        require(bool(self.name), "a stage needs a name")
        require(0 < self.frac <= 1, f"stage {self.name}: frac must be in (0, 1], got {self.frac}")
        require_shares(f"stage {self.name}: weights", self.weights)
        if self.sequence_length is not None:
            require_positive(**{f"stage {self.name}: sequence_length": self.sequence_length})


def require_stages(stages: tuple[DataStage, ...]) -> None:
    """Stages that make a whole run, each with a name of its own."""
    if not stages:
        return
    require_shares("stages", {f"{i}.frac": stage.frac for i, stage in enumerate(stages)})
    names = [stage.name for stage in stages]
    for name in names:
        require(names.count(name) == 1, f"stages: two are called {name!r}")


def require_shares(what: str, shares: Mapping[str, float]) -> None:
    """Shares are at least 0 and sum to 1."""
    for name, share in shares.items():
        require(share >= 0, f"{what}.{name} must be >= 0, got {share}")
    total = sum(shares.values())
    require(abs(total - 1) < 1e-6, f"{what} must sum to 1, they sum to {total:.6g}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """What every source has. ``domain`` null means the name the source has in the mixture."""

    domain: str | None = None
    """Domain its documents belong to; several sources may fill one domain."""


@dataclass(frozen=True, kw_only=True)
class FileSource(Source):
    """Files, folders or globs; documents longer than ``document_bytes`` are cut."""

    paths: tuple[str, ...]
    document_bytes: int = DOCUMENT_BYTES

    def __post_init__(self) -> None:
        require_positive(document_bytes=self.document_bytes)


@dataclass(frozen=True, kw_only=True)
class TextFiles(FileSource):
    """Plain text: each file is a document."""

    kind: Literal["text"] = "text"


@dataclass(frozen=True, kw_only=True)
class JsonlFiles(FileSource):
    """One JSON object a line, its text under ``field``; also ``.jsonl.gz``."""

    kind: Literal["jsonl"] = "jsonl"
    field: str = "text"


@dataclass(frozen=True, kw_only=True)
class ParquetFiles(FileSource):
    """Tables with a text column (needs ``pip install windtunnel-moe[data]``)."""

    kind: Literal["parquet"] = "parquet"
    column: str = "text"


@dataclass(frozen=True, kw_only=True)
class HubDataset(Source):
    """A Hugging Face dataset, streamed (needs ``pip install windtunnel-moe[data]``)."""

    kind: Literal["hub"] = "hub"
    dataset: str
    """Folder on this machine, or a name on the hub."""
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    """Commit on the hub; must be given with ``network``, so that the text stays the same."""
    column: str = "text"
    max_documents: int | None = None
    """Take the first so many; null: all."""
    network: bool = False
    """Whether it may be read from the network. Off: ``dataset`` is a folder."""
    document_bytes: int = DOCUMENT_BYTES

    def __post_init__(self) -> None:
        require_positive(document_bytes=self.document_bytes)
        if self.max_documents is not None:
            require_positive(max_documents=self.max_documents)
        require(
            not self.network or self.revision is not None,
            f"{self.dataset}: a dataset read from the network needs its revision (a commit)",
        )


@dataclass(frozen=True, kw_only=True)
class MegatronFiles(Source):
    """Token files ``NAME.bin`` with their ``NAME.idx``, made with the corpus's own tokenizer."""

    kind: Literal["megatron"] = "megatron"
    paths: tuple[str, ...]
    """The ``.idx`` files: files, folders or globs."""
    end_token: int | None = None
    """Token the files end their documents with; it becomes the corpus's own end token."""


@dataclass(frozen=True, kw_only=True)
class StdlibPart(Source):
    """Code or prose of the running interpreter's standard library."""

    kind: Literal["stdlib"] = "stdlib"
    part: Literal["code", "prose"]


@dataclass(frozen=True, kw_only=True)
class Arithmetic(Source):
    """Generated sums, differences, products and quotients, worked out step by step."""

    kind: Literal["arithmetic"] = "arithmetic"
    bytes: int = 4_000_000
    """Length of the generated text."""
    max_digits: int = 4
    """Digits of the longest operand; shorter ones are as likely."""
    problems: int = 8
    """Problems in a document."""
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(bytes=self.bytes, problems=self.problems)
        require(1 <= self.max_digits <= 9, f"max_digits must be 1 to 9, got {self.max_digits}")


SourceConfig = (
    TextFiles | JsonlFiles | ParquetFiles | HubDataset | MegatronFiles | StdlibPart | Arithmetic
)


@dataclass(frozen=True, kw_only=True)
class FileTokenizer:
    """A byte-level BPE ``tokenizer.json`` made elsewhere; an end token is added to its entries."""

    kind: Literal["file"] = "file"
    path: Path
