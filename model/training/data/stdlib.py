"""The running interpreter's own standard library as a corpus: real text on every machine.

Every module becomes up to two documents: ``prose`` (its docstrings and comments, in the order they
stand) and ``code`` (the source without them).
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from model.errors import ConfigError
from model.training.data.documents import Document, JobList, Report, count, note, sha256
from model.training.data.files import Hashes

# Left out, so that one interpreter version gives one corpus wherever it was installed from:
# installed packages; tests (Debian ships them apart from the library, and they hold files that are
# broken on purpose); build settings, which name the machine. And two folders of generated tables,
# in which nearly equal files would stand on both sides of the split.
SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    | {"encodings", "pydoc_data"}
)
SKIPPED_PREFIXES = ("config-", "_sysconfigdata", "sitecustomize", "usercustomize")


@dataclass(frozen=True)
class StdlibJob:
    """Modules below ``root``; which part of them goes into which domain."""

    root: Path
    domain_by_part: tuple[tuple[str, str], ...]
    digest: str
    """Of the modules' contents."""
    size: int

    @cached_property
    def key(self) -> str:
        """Contents of the modules, and the Python version that parses them."""
        parts = sorted(self.domain_by_part)
        return sha256(f"stdlib:{sys.version.split()[0]}:{parts}:{self.digest}".encode())

    def documents(self, report: Report) -> Iterator[Document]:
        """Split every module; those that do not parse are named in the report."""
        note(report, "unparsed")
        for path in sorted(_module_paths(self.root)):
            count(report, "files")
            try:
                parts = dict(zip(("code", "prose"), split_module(path.read_bytes()), strict=True))
            except (SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
                note(report, "unparsed", f"{path.relative_to(self.root).as_posix()}: {error}")
                continue
            for part, domain in self.domain_by_part:
                if parts[part].strip():
                    yield Document(domain, parts[part].encode())


def stdlib_parts(
    domain_by_part: Mapping[str, str], hashes: Hashes, root: Path | None = None
) -> JobList:
    """The library of the interpreter that runs this, or the one under ``root``.

    Raises:
        ConfigError: where its source is not installed.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    files = [hashes.of(path) for path in sorted(_module_paths(root))]
    if not files:
        raise ConfigError(
            f"data: no standard library source under {root}; this Python was installed "
            "without it, use data=text or data=synthetic"
        )
    digest = sha256(" ".join(sorted(digest for _, digest in files)).encode())
    size = sum(size for size, _ in files)
    return JobList((StdlibJob(root, tuple(domain_by_part.items()), digest, size),))


def split_module(source: bytes) -> tuple[str, str]:
    """(code, prose) of one module.

    Raises:
        SyntaxError, UnicodeDecodeError, tokenize.TokenError: when it does not parse.
    """
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    text = source.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the library's own source, not of this program
        tree = ast.parse(text)
    # Not str.splitlines: it also breaks at form feeds, which the parser does not count as lines.
    lines = [line + "\n" for line in text.split("\n")]
    remarks = [*_docstrings(tree, lines), *_comments(text)]
    return _cut_out(lines, remarks), _join_prose(sorted(remarks, key=lambda r: r.start))


class _Remark(NamedTuple):
    """A docstring or comment: (line from 1, column in characters) to the same, and its words."""

    start: tuple[int, int]
    end: tuple[int, int]
    words: str
    is_comment: bool


def _module_paths(root: Path) -> Iterator[Path]:
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if _takes_part(name)]
        yield from (Path(folder, n) for n in names if n.endswith(".py") and _takes_part(n))


def _takes_part(name: str) -> bool:
    return name not in SKIPPED_FOLDERS and not name.startswith(SKIPPED_PREFIXES)


def _docstrings(tree: ast.Module, lines: list[str]) -> Iterator[_Remark]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
            continue
        if isinstance(first.value.value, str):
            yield _Remark(
                (first.lineno, _column(lines[first.lineno - 1], first.col_offset)),
                (
                    first.end_lineno or first.lineno,
                    _column(lines[(first.end_lineno or first.lineno) - 1], first.end_col_offset),
                ),
                inspect.cleandoc(first.value.value),
                is_comment=False,
            )


def _column(line: str, byte_offset: int | None) -> int:
    # The parser counts columns in UTF-8 bytes, the tokenizer in characters.
    return len(line.encode()[:byte_offset].decode())


def _comments(text: str) -> Iterator[_Remark]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            words = token.string.lstrip("#").removeprefix(" ").rstrip()
            yield _Remark(token.start, token.end, words, is_comment=True)


def _cut_out(lines: list[str], remarks: list[_Remark]) -> str:
    """The source without the remarks; a line that held nothing else goes as a whole."""
    rest = list(lines)
    for remark in sorted(remarks, key=lambda r: r.start, reverse=True):
        (first, start), (last, end) = remark.start, remark.end
        joined = rest[first - 1][:start].rstrip() + rest[last - 1][end:].rstrip()
        rest[first - 1 : last] = [f"{joined}\n"] if joined.strip() else []
    return "".join(rest).strip("\n") + "\n"


def _join_prose(remarks: list[_Remark]) -> str:
    """Paragraphs: a docstring is one, comments on following lines are one together."""
    paragraphs: list[str] = []
    previous: _Remark | None = None
    for remark in remarks:
        follows = previous is not None and remark.start[0] == previous.end[0] + 1
        if previous and follows and remark.is_comment and previous.is_comment:
            paragraphs[-1] += "\n" + remark.words
        else:
            paragraphs.append(remark.words)
        previous = remark
    return "".join(f"{words.strip()}\n\n" for words in paragraphs if words.strip())
