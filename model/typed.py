"""Strict plain mappings -> frozen dataclasses, and back.

One door for everything that comes from outside: a composed YAML, ``spec.json``, ``plan.json``,
``fit.json``. An unknown, missing or mistyped field raises :class:`ConfigError` with its dotted path
and what is allowed there; nothing is guessed. It stands at the bottom of the house because every
package reads files.

Supported field types: bool, int, float, str, Path, Literal, None, tuple[X, ...], tuple[X, Y],
dict[str, X], nested dataclasses, ``X | None``, and a union of dataclasses told apart by a
``kind: Literal[...]`` field.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import types
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from model.errors import ConfigError

T = TypeVar("T")


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str = "") -> T:
    """Build the dataclass ``cls`` from ``mapping``, refusing anything it does not declare.

    Args:
        cls: a dataclass type.
        mapping: plain values (str, numbers, lists, dicts, None), as YAML or JSON gives them.
        where: the dotted path of ``mapping`` itself, for messages.

    Raises:
        ConfigError: naming the dotted path, the value found and what is allowed.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{where or 'config'}: expected a mapping, got {_show(mapping)}")
    fields = _fields(cast(Any, cls))
    unknown = [key for key in mapping if key not in fields]
    if unknown:
        raise ConfigError(_unknown_message(where, str(unknown[0]), sorted(fields)))
    values: dict[str, Any] = {}
    for name, field in fields.items():
        if name not in mapping:
            if field.is_required:
                path = f"{where}.{name}" if where else name
                raise ConfigError(f"{path}: missing; give it a value ({_describe(field.hint)})")
            continue
        value = mapping[name]
        # Most values of most files are of the very type already.
        if type(value) in field.as_it_is and (type(value) is not float or math.isfinite(value)):
            values[name] = value
        else:
            path = f"{where}.{name}" if where else name
            if field.list_in and isinstance(value, list):
                raise ConfigError(
                    f"{path}: expected {_describe(int)}, got {_show(value)}; a list is given as "
                    f"{where}.{field.list_in}={_show(value).replace(' ', '')} {path}=null"
                )
            values[name] = _convert(field.hint, value, path)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from None


def build_union(union: Any, mapping: Mapping[str, Any], *, where: str = "") -> Any:
    """Build whichever dataclass of ``union`` the mapping's ``kind`` names."""
    return _convert(union, mapping, where or "config")


def to_plain(value: Any) -> Any:
    """The inverse of :func:`build`: dataclasses to nested dicts of JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls)


class _Field(NamedTuple):
    hint: Any
    is_required: bool
    as_it_is: frozenset[type]
    list_in: str
    """The field that takes a list in place of this count (``metadata={"list_in": ...}``)."""


@cache
def _fields(cls: type) -> dict[str, _Field]:
    hints = _hints(cls)
    return {
        field.name: _Field(
            hints[field.name],
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING,
            _as_it_is(hints[field.name]),
            field.metadata.get("list_in", ""),
        )
        for field in dataclasses.fields(cls)
        if field.init
    }


@cache
def _as_it_is(hint: Any) -> frozenset[type]:
    """Types whose values :func:`_convert` would return unchanged; of floats the finite ones."""
    if hint in (bool, int, float, str, type(None)):
        return frozenset({hint})
    if get_origin(hint) in (Union, types.UnionType) and len(get_args(hint)) == 2:
        one, other = get_args(hint)
        if type(None) in (one, other):
            return _as_it_is(one) | _as_it_is(other)
    return frozenset()


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    return get_origin(hint), get_args(hint)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, args = _parts(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(args, value, path)
    if origin is Literal:
        if value not in args or isinstance(value, bool) != any(
            isinstance(option, bool) for option in args if option == value
        ):
            raise ConfigError(f"{path}: {_show(value)} is not {_describe(hint)}")
        return value
    if origin is tuple:
        return _convert_tuple(args, value, path)
    if origin is dict or origin is Mapping or hint is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}: expected a mapping, got {_show(value)}")
        item_hint = args[1] if args else Any
        if item_hint is Any:
            return {str(k): v for k, v in value.items()}
        return {str(k): _convert(item_hint, v, f"{path}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint):
        return build(cast(type, hint), value, where=path)
    return _convert_scalar(hint, value, path)


def _convert_union(options: tuple[Any, ...], value: Any, path: str) -> Any:
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{path}: missing; null is not allowed here")
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], value, path)
    if all(dataclasses.is_dataclass(option) for option in rest):
        by_kind = {get_args(_hints(option)["kind"])[0]: option for option in rest}
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind not in by_kind:
            allowed = ", ".join(by_kind)
            raise ConfigError(f"{path}.kind: {_show(kind)} is not one of: {allowed}")
        return build(by_kind[kind], value, where=path)
    problems = []
    for option in rest:
        try:
            return _convert(option, value, path)
        except ConfigError as error:
            problems.append(str(error))
    raise ConfigError(problems[0])


def _convert_tuple(args: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise ConfigError(f"{path}: expected a list like [a,b], got {_show(value)}")
    if len(args) == 2 and args[1] is Ellipsis:
        found = set(map(type, value))
        if found <= _as_it_is(args[0]) and (float not in found or _are_finite(value)):
            return tuple(value)
        return tuple(_convert(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if len(value) != len(args):
        raise ConfigError(f"{path}: expected {len(args)} values, got {len(value)}")
    return tuple(
        _convert(hint, item, f"{path}[{i}]")
        for i, (hint, item) in enumerate(zip(args, value, strict=True))
    )


def _are_finite(values: Sequence[Any]) -> bool:
    return all(value is None or math.isfinite(value) for value in values)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is Any:
        return value
    if hint is bool and isinstance(value, bool):
        return value
    if hint is int and is_number:
        # YAML reads 1e9 as a float; a whole number of tokens may be written that way.
        if isinstance(value, int) or (math.isfinite(value) and value.is_integer()):
            return int(value)
        raise ConfigError(f"{path}: expected a whole number, got {_show(value)}")
    if hint is float and is_number:
        if not math.isfinite(value):
            raise ConfigError(f"{path}: expected a finite number, got {_show(value)}")
        return float(value)
    if hint is str and isinstance(value, str):
        return value
    if hint is Path and isinstance(value, (str, Path)):
        return Path(os.path.expanduser(value))  # no shell does it in root=~/runs
    if hint is object:
        return value
    raise ConfigError(f"{path}: expected {_describe(hint)}, got {_show(value)}")


def _describe(hint: Any) -> str:
    if get_origin(hint) is Literal:
        options = get_args(hint)
        # Signs (a comma, a point) are told apart by quotes, words need none.
        are_words = all(str(option)[:1].isalnum() for option in options)
        return "one of: " + ", ".join(map(str if are_words else repr, options))
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))


def _show(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}… ({type(value).__name__})" if len(text) > 60 else text


def _unknown_message(where: str, key: str, allowed: list[str]) -> str:
    path = f"{where}.{key}" if where else key
    close = difflib.get_close_matches(key, allowed, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"{path}: unknown field{hint} Allowed: {', '.join(allowed)}"
