"""JSON lines as documents: one object a line, plain or gzipped."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from model.errors import ConfigError
from model.training.data.documents import Document, JobList, Report, count, sha256
from model.training.data.files import Hashes, TextFile, expand, ranges
from model.training.data.text import cut
from model.training.sources import JsonlFiles


@dataclass(frozen=True)
class JsonlJob:
    """The lines of a file that begin in [begin, end)."""

    file: TextFile
    begin: int
    end: int
    field: str
    document_bytes: int

    @cached_property
    def key(self) -> str:
        """Content of the file, the portion of it, and how it is read."""
        file = f"{self.file.domain}:{self.file.digest}:{self.begin}-{self.end}"
        return sha256(f"jsonl:{file}:{self.field}:{self.document_bytes}".encode())

    @property
    def size(self) -> int:
        """Bytes of the portion."""
        return self.end - self.begin

    def documents(self, report: Report) -> Iterator[Document]:
        """The text of every line, cut where it is long.

        Raises:
            ConfigError: for a line that is no JSON object with a text in it.
        """
        count(report, "files", int(self.begin == 0))
        for offset, line in self._lines():
            if not line.strip():
                continue
            text = self._text(offset, line)
            if not text.strip():
                count(report, "empty_documents")
                continue
            for piece in cut(text, self.document_bytes):
                yield Document(self.file.domain, piece)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        is_gzip = self.file.path.suffix == ".gz"
        with (gzip.open if is_gzip else open)(self.file.path, "rb") as opened:
            if is_gzip:
                yield from enumerate(opened)
                return
            place = 0
            if self.begin:
                # The line that holds the byte before this portion belongs to the one before.
                opened.seek(self.begin - 1)
                place = self.begin - 1 + len(opened.readline())
            while place < self.end and (line := opened.readline()):
                yield place, line
                place += len(line)

    def _text(self, offset: int, line: bytes) -> bytes:
        try:
            row = json.loads(line)
            text = row[self.field] if isinstance(row, dict) else None
            if isinstance(text, str):
                return text.encode()
        except KeyError:
            names = ", ".join(sorted(row)[:8])
            where = self._where(offset)
            raise ConfigError(f"{where}: no field {self.field!r}; it has: {names}") from None
        except ValueError as error:  # no JSON, not UTF-8, or half a surrogate pair
            where = self._where(offset)
            raise ConfigError(f"{where}: not a line of JSON text ({error})") from None
        held = f"{row[self.field]!r:.40}" if isinstance(row, dict) else "no object"
        raise ConfigError(
            f"{self._where(offset)}: field {self.field!r} is not text but {held}; name the one "
            "that is, or leave such lines out"
        )

    def _where(self, offset: int) -> str:
        """The source, the file and the line that an editor shows, from 1."""
        path = self.file.path
        before = offset
        if path.suffix != ".gz":
            with path.open("rb") as opened:
                chunks = iter(lambda: opened.read(min(1 << 20, offset - opened.tell())), b"")
                before = sum(chunk.count(b"\n") for chunk in chunks)
        return f"data.sources.{self.file.domain}: {path} line {before + 1}"


def jsonl_files(source: JsonlFiles, domain: str, where: str, hashes: Hashes) -> JobList:
    """Every file of the source, large ones in portions."""
    jobs: list[JsonlJob] = []
    for path in expand(source.paths, f"{where}.paths"):
        file = TextFile(domain, path, *hashes.of(path))
        portions = [(0, file.size)] if path.suffix == ".gz" else ranges(file.size)
        jobs += [JsonlJob(file, *p, source.field, source.document_bytes) for p in portions]
    return JobList(tuple(jobs))
