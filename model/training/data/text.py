"""The user's own text files as a corpus."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from model.errors import ConfigError
from model.training.config import TextCorpus
from model.training.data.documents import (
    Collection,
    Document,
    Progress,
    sha256,
    without_duplicates,
)


class TextFile(NamedTuple):
    """One file, its domain and its bytes."""

    domain: str
    path: Path
    content: bytes


@dataclass(frozen=True)
class TextSource:
    """Files of ``corpus.domains`` in the domain named there; others in that of their suffix."""

    corpus: TextCorpus

    @cached_property
    def files(self) -> tuple[TextFile, ...]:
        """Every file, read; ordered by path.

        Raises:
            ConfigError: where nothing matches, two domains claim a file, or nothing can be read.
        """
        domain_by_path: dict[Path, str] = {}
        for domain, patterns in sorted((self.corpus.domains or {}).items()):
            for path in _expand(patterns, f"data.domains.{domain}"):
                other = domain_by_path.setdefault(path, domain)
                if other != domain:
                    raise ConfigError(
                        f"data.domains: {path} is matched by both {other!r} and {domain!r}; "
                        "a file belongs to one domain"
                    )
        for path in _expand(self.corpus.paths, "data.paths"):
            domain_by_path.setdefault(path, path.suffix.removeprefix(".") or "text")
        if not domain_by_path:
            raise ConfigError("data.paths: empty; name the files, folders or globs to train on")
        return tuple(
            TextFile(domain_by_path[path], path, _read(path)) for path in sorted(domain_by_path)
        )

    def key(self) -> str:
        """Contents and domains of the files, and where long ones are cut."""
        members = sorted(f"{file.domain}:{sha256(file.content)}" for file in self.files)
        return sha256("\n".join([str(self.corpus.document_bytes), *members]).encode())

    def collect(self, progress: Progress) -> Collection:
        """Cut every file into documents.

        Raises:
            ConfigError: for a file that is not UTF-8 text, or when all are empty.
        """
        documents: list[Document] = []
        empty: list[str] = []
        for index, file in enumerate(self.files):
            progress("reading text", index, len(self.files))
            _require_text(file)
            if not file.content.strip():
                empty.append(str(file.path))
            else:
                pieces = cut(file.content, self.corpus.document_bytes)
                documents += [Document.of(file.domain, piece) for piece in pieces]
        if not documents:
            raise ConfigError(
                f"data.paths: empty corpus; the {len(self.files)} files found hold no text"
            )
        kept, num_duplicates = without_duplicates(documents)
        report: dict[str, int | list[str]] = {
            "files": len(self.files),
            "empty": empty,
            "duplicates": num_duplicates,
        }
        return Collection(kept, report)


def cut(text: bytes, document_bytes: int) -> list[bytes]:
    """Pieces of at most ``document_bytes``, which together are ``text``.

    Each ends at the last blank line that fits, else at the last line end, else between two
    characters.
    """
    pieces = []
    start = 0
    while len(text) - start > document_bytes:
        window = text[start : start + document_bytes]
        end = window.rfind(b"\n\n") + 2
        if end < 2:
            end = window.rfind(b"\n") + 1
        if end < 1:
            end = _last_character_start(text, start + document_bytes) - start
        pieces.append(text[start : start + end])
        start += end
    return [*pieces, text[start:]]


def _last_character_start(text: bytes, position: int) -> int:
    # Continuation bytes of UTF-8 look like 10xxxxxx.
    while text[position] & 0xC0 == 0x80:
        position -= 1
    return position


def _expand(patterns: Iterable[str], where: str) -> list[Path]:
    paths: set[Path] = set()
    for pattern in patterns:
        matched = [Path(name) for name in glob.glob(pattern, recursive=True)]
        files = {path for path in matched if path.is_file()}
        for folder in (path for path in matched if path.is_dir()):
            files |= {path for path in folder.rglob("*") if path.is_file()}
        if not files:
            raise ConfigError(f"{where}: no file matches {pattern!r} (from {Path.cwd()})")
        paths |= files
    return sorted(paths)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.paths: cannot read {path}: {error.strerror}") from None


def _require_text(file: TextFile) -> None:
    try:
        file.content.decode()
        offset = file.content.find(b"\0")
        problem = "a zero byte"
    except UnicodeDecodeError as error:
        offset = error.start
        problem = f"not UTF-8 (byte 0x{file.content[offset]:02x})"
    if offset >= 0:
        raise ConfigError(
            f"data.paths: {file.path} is not text: {problem} at offset {offset}; "
            "leave the file out or convert it to UTF-8"
        )
