"""The YAML there is: the folders searched, the groups a verb offers, their options, `--help`.

A verb's primary YAML is ``conf/<verb>.yaml``; a group is a folder of ``conf/``, an option a file in
it. The user's own folders stand in front of the shipped one, so a file of the same name there wins
and new names are added. This file only reads; `windtunnel.composition` composes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from textwrap import wrap
from typing import Any

import yaml

from model.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(
    (folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir()),
    _PACKAGE / "conf",
)
"""The shipped YAML: inside the package in a wheel, beside it in a checkout."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """A choice a verb offers: ``name=option``."""

    name: str
    options: tuple[str, ...]
    default: str | None
    """None where one must be chosen."""


def config_dirs(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Folders searched, first wins: ``extra``, ``./conf`` if it holds YAML of ours, the shipped."""
    for folder in extra:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
    local = Path("conf")
    if _holds_our_yaml(local):
        extra = [*extra, local]
    return tuple(dict.fromkeys(folder.resolve() for folder in [*extra, CONF_DIR]))


def verb_help(verb: str, docstring: str, dirs: Sequence[Path]) -> str:
    """The text of ``windtunnel VERB --help``."""
    lines = [f"usage: windtunnel {verb} [group=option] [key=value] [--config-dir DIR] [--cfg]"]
    lines += ["", docstring.strip()]
    groups = sorted(verb_groups(verb, dirs), key=lambda group: group.default is not None)
    if groups:
        lines += ["", "Groups (* is the default):"]
    for group in groups:
        lines.append(f"  {group.name}{'' if group.default else '  (choose one)'}")
        for option in group.options:
            mark = "*" if option == group.default else ""
            about = _first_sentence(find_yaml(f"{group.name}/{option}", dirs))
            lines += wrap(f"    {option + mark:<16} {about}", 100, subsequent_indent=" " * 21)
    lines += ["", f"All values: windtunnel {verb} --cfg. Folders searched for YAML, first wins:"]
    lines += [f"  {folder}" for folder in dirs]
    return "\n".join(lines)


def verb_groups(verb: str, dirs: Sequence[Path]) -> Iterator[Group]:
    """Groups in the verb's defaults list, each followed by those nested in its options."""
    yield from _groups_of(read_primary(verb, dirs), "", dirs)


def _groups_of(mapping: Mapping[str, Any], within: str, dirs: Sequence[Path]) -> Iterator[Group]:
    for entry in mapping.get("defaults", []):
        if not isinstance(entry, Mapping):
            continue  # `_self_` or a plain file: nothing to choose
        name, default = next(iter(entry.items()))
        if str(name).startswith("override "):
            continue  # an overlay's choice for a group that the primary YAML offers
        if "@" in str(name):
            continue  # a file put at another place: a value of this option, not a choice
        group = "/".join(filter(None, [within, str(name).removeprefix("optional ").lstrip("/")]))
        options = options_of(group, dirs)
        chosen = None if default in (None, "???") else str(default)
        yield Group(name=group, options=options, default=chosen)
        nested = [found for o in options for found in _groups_in_option(group, o, dirs)]
        yield from {found.name: found for found in reversed(nested)}.values()


def _groups_in_option(group: str, option: str, dirs: Sequence[Path]) -> Iterator[Group]:
    path = find_yaml(f"{group}/{option}", dirs)
    assert path is not None
    mapping = _read_yaml(path)
    if "@package _global_" not in path.read_text(encoding="utf-8").split("\n", 1)[0]:
        yield from _groups_of(mapping, group, dirs)


def options_of(group: str, dirs: Sequence[Path]) -> tuple[str, ...]:
    """The names of the group's files, over all folders."""
    names = {path.stem for folder in dirs for path in (folder / group).glob("*.yaml")}
    return tuple(sorted(names))


def read_option(group: str, option: str, dirs: Sequence[Path]) -> dict[str, Any]:
    """An option's YAML as it stands in the file."""
    path = find_yaml(f"{group}/{option}", dirs)
    return {} if path is None else _read_yaml(path)


def is_group(key: str, dirs: Sequence[Path]) -> bool:
    """Whether any folder has a group of that name."""
    return any((folder / key).is_dir() for folder in dirs)


def _holds_our_yaml(folder: Path) -> bool:
    files = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    ours = {path.relative_to(CONF_DIR) for path in CONF_DIR.glob("*.yaml")}
    return any(
        path in ours or (len(path.parts) > 1 and (CONF_DIR / path.parent).is_dir())
        for path in files
    )


def find_yaml(name: str, dirs: Sequence[Path]) -> Path | None:
    """The file that wins: ``group/option`` or a verb."""
    return next((p for folder in dirs if (p := folder / f"{name}.yaml").is_file()), None)


def read_primary(verb: str, dirs: Sequence[Path]) -> dict[str, Any]:
    """The verb's primary YAML as it stands in the file."""
    path = find_yaml(verb, dirs)
    if path is None:
        raise ConfigError(f"{verb}.yaml: not found in {', '.join(map(str, dirs))}")
    return _read_yaml(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {yaml_problem(error)}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a mapping of names to values")
    return mapping


def _first_sentence(path: Path | None) -> str:
    """Of the comment that a YAML begins with: what `--help` says of an option."""
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    lines = [line for line in lines if not line.startswith("# @package")]
    comment = takewhile(lambda line: line.startswith("#"), lines)
    text = " ".join(line[1:].strip() for line in comment)
    return re.split(r"(?<=[.?!])\s+(?=[A-Z\[])", text)[0]


def yaml_problem(error: Exception) -> str:
    """What is wrong with a YAML file, in one line, with its place."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
