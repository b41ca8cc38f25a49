"""How a study is kept: one JSON text, whole or not at all, read back into the same object."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import scipy

from model.errors import ConfigError
from model.typed import build, to_plain

T = TypeVar("T")


SCHEMA_VERSION = 2
"""Of ``fit.json``, whatever kind of study it holds."""


class Kept:
    """A frozen dataclass that is kept as ``fit.json``."""

    def to_json(self) -> str:
        """The text of ``fit.json``."""
        return json.dumps(to_plain(self), separators=(",", ":"), allow_nan=False) + "\n"

    def save(self, path: Path) -> None:
        """Write ``fit.json`` whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        try:
            with partial.open("w", encoding="utf-8") as file:
                file.write(self.to_json())
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def mapping_in(text: str, where: str) -> Any:
    """What the JSON text holds.

    Raises:
        ConfigError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error}); run `windtunnel fit` again") from None


def read_back(cls: type[T], text: str, where: str) -> T:
    """The study that :meth:`Kept.to_json` wrote.

    Raises:
        ConfigError: it is no JSON, of another version, or not this kind of study.
    """
    mapping = mapping_in(text, where)
    version = mapping.get("schema_version") if isinstance(mapping, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(
            f"{where}: fit schema {version!r}, this program reads {SCHEMA_VERSION}; run "
            "`windtunnel fit` again"
        )
    return build(cls, mapping, where=where)


def software_versions() -> dict[str, str]:
    """What a fit was made with."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
