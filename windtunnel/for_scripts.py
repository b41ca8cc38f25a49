"""A command's answer as a script reads it: with ``json=true`` one JSON object, and nothing else.

Every command that answers something has the same option, and all their answers are written here.
``schema`` names the command and the version of its fields: new ones may be added under one version,
none is renamed, taken away or given another meaning. Fields are listed in docs/howto/scripts.md.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.typed import to_plain
from windtunnel.streams import write_out

VERSIONS = {
    "status": 1,
    "fit": 1,
    "compare": 1,
    "ledger": 1,
    "model": 1,
    "machine": 1,
    "doctor": 1,
}


@dataclass(frozen=True, kw_only=True)
class ForScripts:
    """The option of every command that answers something."""

    json: bool = False
    """One JSON object in place of the screen."""


def write_answer(verb: str, answer: Mapping[str, Any]) -> None:
    """Write the one line there is on standard output; dataclasses in it become objects.

    A number that is none (infinite, undefined) is null: JSON has no word for it.
    """
    schema = f"{verb}/{VERSIONS[verb]}"
    line = json.dumps(_finite(to_plain({"schema": schema, **answer})), allow_nan=False)
    write_out(f"{line}\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
