"""Who else is told what the metrics file was told: the protocol, and nobody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Mirror(Protocol):
    """Someone else who is told what the metrics file was told."""

    id: str
    """Names the run there; kept in the checkpoint, so that a resumed run goes on under it."""

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of the metrics file."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's results."""

    def close(self) -> None:
        """The run is over, for now or for good."""


class NoMirror:
    """Nobody else."""

    id = ""

    def log(self, line: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """One level: domains and layers become part of the name, ``max_vio/layer2``."""
    values: dict[str, Any] = {}
    layers = line.get("layers", ())
    for key, value in line.items():
        if key in ("kind", "step", "layers"):
            continue
        if isinstance(value, Mapping):
            values |= {f"{key}/{inner}": item for inner, item in flat(value).items()}
        elif isinstance(value, list | tuple):
            numbers = [v for v in value if isinstance(v, int | float)]  # matrices stay in the file
            values |= {f"{key}/layer{n}": v for n, v in zip(layers, numbers, strict=False)}
        else:
            values[key] = value
    return values
