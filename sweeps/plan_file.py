"""``plan.json``: every spec in full, so that it is enough to run, rerun or check the sweep."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from model.errors import ConfigError
from model.files import write_atomic
from model.garbage import collector_at_rest
from model.typed import build, to_plain
from sweeps.cost import RunCost
from sweeps.files import read_json
from sweeps.plan import Plan, PlannedRun
from sweeps.spec import SPEC_VERSION, RunSpec, run_id


def write_plan(plan: Plan, path: Path) -> None:
    """Write ``plan.json``; the folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = replace(plan, runs=())
    head = json.dumps({"spec_version": SPEC_VERSION, **to_plain(whole)}, indent=1)
    # A line a run: it can be searched, and is written and read several times faster.
    lines = [_line(run) for run in plan.runs]
    text = head.replace('"runs": []', '"runs": [\n' + ",\n".join(lines) + "\n ]", 1)
    write_atomic(path, text.encode() + b"\n")


@collector_at_rest()
def read_plan(path: Path) -> Plan:
    """Read a ``plan.json`` back, and check that every run id still follows from its spec."""
    plan = build(Plan, _read_mapping(path), where=str(path))
    for run in plan.runs:
        if run.run_id != run_id(run.spec):
            raise ConfigError(
                f"{path}: run {run.run_id} does not follow from its spec; it was edited or written "
                "by another version; plan the sweep again"
            )
    return plan


@collector_at_rest()
def skim_plan(path: Path) -> Plan:
    """The plan with its specs built only where they are asked for, unchecked.

    Enough for a status, which looks at all runs but asks for the specs of few.
    """
    head, _, rest = path.read_bytes().decode().partition('"runs": [\n')
    body, _, tail = rest.partition("\n ]")
    try:
        whole = _checked_version(json.loads(f'{head}"runs": []{tail}'), path)
        lines = [line.partition(_SPEC) for line in body.split(",\n")]
        plain = json.loads(f"[{'},'.join(head for head, _, _ in lines)}}}]")  # one parse for all
        runs = map(_SkimmedRun, plain, (spec for _, _, spec in lines))
        return replace(build(Plan, whole, where=str(path)), runs=tuple(runs))
    except ConfigError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a plan ({error}); plan the sweep again") from None


_SPEC = ', "spec": '


def _line(run: PlannedRun) -> str:
    """One run as JSON, its spec last, so that the rest can be read without it."""
    plain = to_plain(run)
    spec = plain.pop("spec")
    return f"{json.dumps(plain)[:-1]}{_SPEC}{json.dumps(spec, allow_nan=False)}}}"


class _SkimmedRun(PlannedRun):
    """A line whose spec is read when it is first asked for."""

    def __init__(self, plain: dict[str, Any], spec: str) -> None:
        self.__dict__.update(plain, cost=RunCost(**plain["cost"]), _spec=spec[:-1])

    @property
    def precision(self) -> str:
        """Read off the line: a status asks it of every run, and building specs takes seconds."""
        if "spec" in self.__dict__:
            return super().precision
        return str(self.__dict__["_spec"].partition('"precision": "')[2].partition('"')[0])

    def __getattr__(self, name: str) -> RunSpec:
        if name != "spec":
            raise AttributeError(name)
        plain = json.loads(self.__dict__["_spec"])
        self.__dict__["spec"] = spec = build(RunSpec, plain, where=f"{self.run_id}.spec")
        return spec


def _read_mapping(path: Path) -> dict[str, Any]:
    return _checked_version(read_json(path), path)


def _checked_version(mapping: Any, path: Path) -> dict[str, Any]:
    version = mapping.pop("spec_version", None) if isinstance(mapping, dict) else None
    if version != SPEC_VERSION:
        raise ConfigError(
            f"{path}: spec version {version}, this program reads {SPEC_VERSION}; plan the sweep "
            "again by the `windtunnel sweep` that made it: its runs are kept, under new ids"
        )
    return mapping
