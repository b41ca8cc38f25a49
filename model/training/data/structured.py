"""Files whose text lies within rows: given as plain text, a model would learn their brackets."""

from __future__ import annotations

from collections.abc import Container, Sequence
from pathlib import Path

from model.errors import ConfigError
from model.training.data.files import expand

KINDS = {
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".ndjson": "jsonl",
    ".ndjson.gz": "jsonl",
    ".parquet": "parquet",
}
"""Ending of a name to the kind of source that reads such files."""
COLUMNS = {"jsonl": "field", "parquet": "column"}
"""What a kind of source calls the place of its text."""


def refuse_structured(patterns: Sequence[str], named: Container[Path]) -> None:
    """Refuse rows under ``data.paths``, with the words that read their text.

    ``named``: files that ``data.domains`` names; to name one there is to mean it as it stands.

    Raises:
        ConfigError: for the first ending of :data:`KINDS` that is found.
    """
    for pattern in patterns:
        files = [path for path in expand([pattern], "data.paths") if path not in named]
        for ending, kind in KINDS.items():
            rows = [path for path in files if path.name.lower().endswith(ending)]
            if rows:
                raise ConfigError(_what_to_type(pattern, ending, kind, rows, len(files)))


def _what_to_type(
    pattern: str, ending: str, kind: str, rows: Sequence[Path], num_files: int
) -> str:
    more = f" (and {len(rows) - 1} more like it)" if len(rows) > 1 else ""
    suffix = rows[0].name[-len(ending) :]
    their = pattern
    if Path(pattern).is_dir():
        their = f"{pattern.rstrip('/')}/**/*{suffix}"
    elif len(rows) < num_files:
        their = str(rows[0]) if len(rows) == 1 else f"{rows[0].parent}/*{suffix}"
    source = f'{{kind: {kind}, paths: ["{their}"], {COLUMNS[kind]}: text}}'
    rest = "" if len(rows) == num_files else "; the other files are a source of kind: text there"
    domain = ending.removeprefix(".")
    raw = (  # neither Parquet nor gzip is text
        f". Raw on purpose: 'data.domains={{{domain}: [\"{their}\"]}}'"
        if domain in ("jsonl", "ndjson")
        else ""
    )
    return (
        f"data.paths: {rows[0]}{more} holds rows with text in them, which data=text would read "
        f"brackets and all. Read their text with data=mixture 'data.sources={{mine: {source}}}', "
        f"where text is the name of their {COLUMNS[kind]}{rest}{raw}"
    )
