"""A grid is data: a tuple of plain mappings from dotted paths to values.

Combinators make grids out of grids; :func:`replaced` lays one mapping over a frozen dataclass.
Nothing is evaluated and nothing runs: a string stays a string.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from model.errors import ConfigError
from model.typed import build, to_plain
from sweeps.files import canonical_text

T = TypeVar("T")

Overrides = dict[str, Any]
Grid = tuple[Overrides, ...]


def axis(path: str, values: Sequence[Any]) -> Grid:
    """One dotted path, its values in turn."""
    if not values:
        raise ConfigError(f"{path}: give it at least one value, the list is empty")
    return tuple({path: value} for value in values)


def product(*grids: Grid) -> Grid:
    """Every combination; the last grid varies fastest. No grids give one empty mapping."""
    return tuple(_merged(parts) for parts in itertools.product(*grids))


def zipped(*grids: Grid) -> Grid:
    """First with first, second with second; all grids must be equally long."""
    if len({len(grid) for grid in grids}) > 1:
        lengths = ", ".join(f"{' '.join(grid[0])}: {len(grid)}" for grid in grids)
        raise ConfigError(f"zipped lists must be equally long ({lengths})")
    return tuple(_merged(parts) for parts in zip(*grids, strict=True))


def chain(*grids: Grid) -> Grid:
    """One grid after the other, each mapping once: a repeated one keeps its first place."""
    unique: dict[str, Overrides] = {}
    for mapping in itertools.chain(*grids):
        unique.setdefault(canonical_text(mapping), mapping)
    return tuple(unique.values())


def replaced(config: T, overrides: Mapping[str, Any]) -> T:
    """``config`` with each dotted path set to its value, checked as strictly as YAML is.

    Raises:
        ConfigError: the path does not exist (the message lists what does) or the value is refused.
    """
    for path, value in overrides.items():
        config = cast(T, _replaced_at(config, path.split("."), value, path, done=""))
    return config


def _replaced_at(node: Any, parts: list[str], value: Any, path: str, done: str) -> Any:
    name, rest = parts[0], parts[1:]
    names = _names(node, path, done)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        where = f"{done} has no" if done else "there is no"
        raise ConfigError(f"{path}: {where} {name!r}{hint}; allowed: {', '.join(sorted(names))}")
    here = f"{done}.{name}" if done else name
    if isinstance(node, Mapping):
        old = node[name]
        return {**node, name: _replaced_at(old, rest, value, path, here) if rest else value}
    if rest:
        child = _replaced_at(getattr(node, name), rest, value, path, here)
        if dataclasses.is_dataclass(child):
            return dataclasses.replace(node, **{name: child})
        value = child
    # The parent is rebuilt from plain values, so the new one is converted and checked like YAML.
    return build(type(node), {**to_plain(node), name: to_plain(value)}, where=done)


def _names(node: Any, path: str, done: str) -> list[str]:
    if dataclasses.is_dataclass(node):
        return [f.name for f in dataclasses.fields(node) if f.init]
    if isinstance(node, Mapping):
        return list(node)
    raise ConfigError(f"{path}: {done} is the single value {node!r}, nothing lies below it")


def _merged(parts: tuple[Overrides, ...]) -> Overrides:
    merged: Overrides = {}
    for part in parts:
        both = merged.keys() & part.keys()
        if both:
            raise ConfigError(f"{min(both)}: varied twice in one grid; keep one of the lists")
        merged.update(part)
    return merged
