"""Over which processes a run is spread: ``spread.json`` beside its ``spec.json``.

Not part of the spec: the numbers do not depend on it, and a run that was begun on two processes may
go on over four. Absent for a run that one process trains.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from model.config import require, require_positive
from model.training.distributed.config import ParallelConfig
from model.typed import build, to_plain
from sweeps.files import read_json, write_json

NAME = "spread.json"
NODE_COMMAND_VARIABLE = "WINDTUNNEL_NODE_COMMAND"
"""Environment variable, a JSON list: what starts a command once on each node of this job."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Processes, and the machines they are on."""

    parallel: ParallelConfig
    nodes: int = 1

    def __post_init__(self) -> None:
        require_positive(nodes=self.nodes)
        require(
            self.parallel.world_size % self.nodes == 0,
            f"nodes ({self.nodes}) must divide the {self.parallel.world_size} processes",
        )

    @property
    def ranks_per_node(self) -> int:
        """Processes on each machine."""
        return self.parallel.world_size // self.nodes


def read_spread(run_dir: Path) -> Spread | None:
    """How the run is spread; None for one process."""
    try:
        mapping = read_json(run_dir / NAME)
    except FileNotFoundError:
        return None
    return build(Spread, mapping, where=str(run_dir / NAME))


def node_command() -> tuple[str, ...]:
    """What the scheduler that started this process says starts a command on each of its nodes."""
    return tuple(json.loads(os.environ.get(NODE_COMMAND_VARIABLE, "[]")))


def set_spread(run_dir: Path, spread: Spread | None) -> None:
    """Say how the run's next attempt is spread; None: one process trains it."""
    if spread is None:
        (run_dir / NAME).unlink(missing_ok=True)
    else:
        write_json(run_dir / NAME, to_plain(spread))
