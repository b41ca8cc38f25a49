"""Text files as documents: each file is one, long ones are cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from model.errors import ConfigError
from model.training.corpora import TextCorpus
from model.training.data.documents import Document, JobList, Report, count, note, sha256
from model.training.data.files import READ_AT_ONCE, Hashes, TextFile, expand, grouped
from model.training.data.structured import refuse_structured
from model.training.sources import TextFiles


@dataclass(frozen=True)
class TextJob:
    """Some files, each cut into documents of at most ``document_bytes``."""

    files: tuple[TextFile, ...]
    document_bytes: int

    @cached_property
    def key(self) -> str:
        """Contents and domains of the files, and where long ones are cut."""
        members = sorted(f"{file.domain}:{file.digest}" for file in self.files)
        return sha256("\n".join(["text", str(self.document_bytes), *members]).encode())

    @property
    def size(self) -> int:
        """Bytes of the files."""
        return sum(file.size for file in self.files)

    def documents(self, report: Report) -> Iterator[Document]:
        """Cut every file.

        Raises:
            ConfigError: for a file that is not UTF-8 text.
        """
        note(report, "empty")
        for file in self.files:
            count(report, "files")
            if file.size < READ_AT_ONCE and not file.path.read_bytes().strip():
                note(report, "empty", str(file.path))
                continue
            with file.path.open("rb") as opened:
                offset = 0
                for piece in cut_stream(opened, self.document_bytes):
                    require_text(piece, file.path, offset)
                    offset += len(piece)
                    yield Document(file.domain, piece)


def text_corpus(corpus: TextCorpus, hashes: Hashes) -> JobList:
    """Files of ``corpus.domains`` in the domain named there; others in that of their suffix.

    Raises:
        ConfigError: where nothing matches, two domains claim a file, nothing can be read, or the
            text lies within rows that nobody said to read as they stand.
    """
    domain_by_path: dict[Path, str] = {}
    for domain, patterns in sorted((corpus.domains or {}).items()):
        for path in expand(patterns, f"data.domains.{domain}"):
            other = domain_by_path.setdefault(path, domain)
            if other != domain:
                raise ConfigError(
                    f"data.domains: {path} is matched by both {other!r} and {domain!r}; "
                    "a file belongs to one domain"
                )
    refuse_structured(corpus.paths, domain_by_path)
    for path in expand(corpus.paths, "data.paths"):
        domain_by_path.setdefault(path, path.suffix.removeprefix(".") or "text")
    if not domain_by_path:
        raise ConfigError("data.paths: empty; name the files, folders or globs to train on")
    return JobList(_jobs(domain_by_path, corpus.document_bytes, hashes))


def text_files(source: TextFiles, domain: str, where: str, hashes: Hashes) -> JobList:
    """Every file of the source in one domain."""
    paths = dict.fromkeys(expand(source.paths, f"{where}.paths"), domain)
    return JobList(_jobs(paths, source.document_bytes, hashes))


def _jobs(domains: dict[Path, str], document_bytes: int, hashes: Hashes) -> tuple[TextJob, ...]:
    files = [TextFile(domains[path], path, *hashes.of(path)) for path in sorted(domains)]
    return tuple(TextJob(group, document_bytes) for group in grouped(files))


def cut(text: bytes, document_bytes: int) -> list[bytes]:
    """Pieces of at most ``document_bytes``, which together are ``text``.

    Each ends at the last blank line that fits, else at the last line end, else between two
    characters.
    """
    pieces = []
    start = 0
    while len(text) - start > document_bytes:
        end = _piece_end(text, start, document_bytes)
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def cut_stream(file: BinaryIO, document_bytes: int) -> Iterator[bytes]:
    """The pieces :func:`cut` makes of the whole file, with little of it in memory."""
    text, start = b"", 0
    at_once = max(READ_AT_ONCE, 2 * document_bytes)
    while more := file.read(at_once):
        text, start = text[start:] + more, 0
        while len(text) - start > document_bytes:
            end = _piece_end(text, start, document_bytes)
            yield text[start:end]
            start = end
    if start < len(text):
        yield text[start:]


def require_text(text: bytes, path: Path, offset: int) -> None:
    """Refuse what is not UTF-8 text; ``offset`` is where in the file it begins.

    Raises:
        ConfigError: with the place.
    """
    try:
        text.decode()
        place = text.find(b"\0")
        problem = "a zero byte"
    except UnicodeDecodeError as error:
        place = error.start
        problem = f"not UTF-8 (byte 0x{text[place]:02x})"
    if place >= 0:
        raise ConfigError(
            f"data.paths: {path} is not text: {problem} at offset {offset + place}; "
            "leave the file out or convert it to UTF-8"
        )


def _piece_end(text: bytes, start: int, document_bytes: int) -> int:
    last = start + document_bytes
    end = text.rfind(b"\n\n", start, last) + 2
    if end < start + 2:
        end = text.rfind(b"\n", start, last) + 1
    if end < start + 1:
        end = _last_character_start(text, last)
    return end


def _last_character_start(text: bytes, position: int) -> int:
    # Continuation bytes of UTF-8 look like 10xxxxxx; a character has at most three of them.
    for back in range(4):
        if text[position - back] & 0xC0 != 0x80:
            return position - back
    return position
