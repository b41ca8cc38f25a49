"""How a study is kept: one JSON text, whole or not at all, read back into the same object."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy

from model.errors import ConfigError
from model.files import write_atomic
from model.typed import build, to_plain

SCHEMA_VERSION = 2
"""Of ``fit.json``, whatever kind of study it holds."""


class Kept:
    """A frozen dataclass that is kept as ``fit.json``."""

    def to_json(self) -> str:
        """The text of ``fit.json``."""
        return json.dumps(to_plain(self), separators=(",", ":"), allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str = "fit.json") -> Self:
        """The study written by :meth:`to_json`.

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

    def save(self, path: Path) -> None:
        """Write ``fit.json`` whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.to_json().encode())


def mapping_in(text: str, where: str) -> Any:
    """What the JSON text holds.

    Raises:
        ConfigError: it is no JSON.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error}); run `windtunnel fit` again") from None


def software_versions() -> dict[str, str]:
    """What a fit was made with."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
