"""Who else is told what the metrics file was told: the protocol, nobody, and one that may break."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

logger = logging.getLogger(__name__)

FAILURE = "mirror_failed.txt"
"""In the folder of a run whose mirror failed: what the run's log says of it."""


def mirror_failure(run_dir: Path) -> str:
    """Why the mirror of the run in ``run_dir`` gets no more of it; empty while it does."""
    with suppress(OSError):
        return (run_dir / FAILURE).read_text()
    return ""


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


class FragileMirror(ABC):
    """A mirror that may be down: its first failure is said once and ends it, never the run."""

    who: str
    """Its name in the warning."""
    advice = ""
    """What the warning ends with: what to do about it."""

    def __init__(self, run_id: str, run_dir: Path) -> None:
        """``run_dir``: where a failure is noted for whoever follows the run."""
        self.id = run_id
        self._failure = run_dir / FAILURE
        with suppress(OSError):
            self._failure.unlink(missing_ok=True)  # an earlier attempt's
        self._listens = True
        self._try("did not start", self._begin)

    def log(self, line: Mapping[str, Any]) -> None:
        """One line of the metrics file."""
        self._try("does not take a line", lambda: self._log(line))

    def summary(self, values: Mapping[str, Any]) -> None:
        """The run's results."""
        self._try("does not take the summary", lambda: self._summary(values))

    def close(self) -> None:
        """The run is over, for now or for good."""
        self._try("does not finish", self._close)

    def _try(self, what: str, act: Callable[[], None]) -> None:
        if not self._listens:
            return
        try:
            act()
        except Exception as error:
            self._listens = False
            told = (
                f"{self.who} {what} ({' '.join(str(error).split())}); the run continues, "
                f"metrics.jsonl has everything{self.advice}"
            )
            logger.warning(told)
            with suppress(OSError):
                self._failure.write_text(told)

    @abstractmethod
    def _begin(self) -> None: ...

    @abstractmethod
    def _log(self, line: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _summary(self, values: Mapping[str, Any]) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...


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
