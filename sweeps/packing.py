"""Which runs of a plan one worker trains together, as one stacked model, and how it is told.

Runs of one shape that differ in seed, optimizer or balance rate do the same operations on different
numbers (:mod:`model.training.packed`). The driver hands them to one worker: the run whose folder
the worker is given lists the others in its ``pack.json``, so that every executor starts a pack like
a single run, and a requeued one finds its company again.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from model.errors import ConfigError
from model.training.alike import common_part, why_alone
from model.typed import build, to_plain
from sweeps.files import read_json, write_json
from sweeps.spec import RunSpec

PACK = "pack.json"


@dataclass(frozen=True, kw_only=True)
class Company:
    """``pack.json``: the runs that are trained with the one in whose folder it lies."""

    runs: dict[str, int]
    """Run id to the newest attempt when the pack was made; the worker claims the next."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How many runs go together."""

    most: int | None = 1
    """At most so many; None: as many as were measured to pay, 1: each by itself."""
    device: Literal["cpu", "cuda"] = "cpu"
    """What the workers compute on."""

    def size_for(self, spec: RunSpec) -> int:
        """Most runs like ``spec`` that one worker is given."""
        return measured_to_pay(spec, self.device) if self.most is None else self.most

    def key(self, spec: RunSpec) -> Hashable | None:
        """Equal for runs that can go together; None for one that stays alone."""
        if self.most == 1 or spec.role == "trunk" or spec.trunk or spec.model.own:
            return None
        if spec.corpus.stages:  # a stack has one mixture and one sequence length to its end
            return None
        if why_alone(spec.train, spec.runtime) or self.size_for(spec) == 1:
            return None
        common = common_part(spec.train)
        return (spec.model, common, spec.corpus_fingerprint, spec.numerics, spec.runtime)


ALONE = Packing()


def measured_to_pay(spec: RunSpec, device: Literal["cpu", "cuda"]) -> int:
    """Runs in a stack from which more gain nothing, by ``benchmarks/packed.py``; 1: none pays.

    On a CPU a stack saves the starting of operations, no arithmetic. Of eight runs of 256 tokens a
    step each took 1.4 times less at width 16, 1.2 at 48, and at 80 a little more, where their
    weights leave the cache (LOG.md, 2026-11-26): worth it only where a step is little else. On a
    GPU a run by itself is played back as a CUDA graph, a stack is not and was not measured: none.
    """
    if device == "cpu":
        is_small = spec.model.hidden_size <= 16 and spec.train.batch_tokens <= 512
        return 8 if is_small else 1
    return 1


def device_of(wanted: Literal["auto", "cpu", "cuda"], *, has_gpus: bool) -> Literal["cpu", "cuda"]:
    """What workers will compute on, told without torch."""
    if wanted != "auto":
        return wanted
    return "cuda" if has_gpus or os.path.exists("/dev/nvidiactl") else "cpu"


def write_company(run_dir: Path, others: Iterable[tuple[str, int]]) -> None:
    """List the ``others``, (run id, newest attempt), or nobody."""
    runs = dict(others)
    if runs:
        write_json(run_dir / PACK, to_plain(Company(runs=runs)))
    else:
        (run_dir / PACK).unlink(missing_ok=True)


def read_company(run_dir: Path) -> Company:
    """Who is to be trained with the run; nobody where the list is missing or damaged."""
    try:
        return build(Company, read_json(run_dir / PACK), where=str(run_dir / PACK))
    except (FileNotFoundError, ConfigError):
        return Company(runs={})
