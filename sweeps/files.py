"""JSON files that are whole or absent, and the hash of what they say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.files import write_atomic


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Write plain values as readable JSON, atomically."""
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    write_atomic(path, text.encode(), durable=durable)


def read_json(path: Path) -> Any:
    """Read a JSON file; damage is an error that names the file."""
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); was it edited by hand?") from None


def content_hash(value: Any, digits: int) -> str:
    """Hex digits of the SHA-256 of plain values in canonical form."""
    return text_hash(canonical_text(value), digits)


def text_hash(text: str, digits: int) -> str:
    """Hex digits of the SHA-256 of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:digits]


def canonical_text(value: Any) -> str:
    """JSON with sorted keys, in which a whole number is the same written 1 or 1.0."""
    return _encode(_canonical(value))


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False).encode


def _canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value
