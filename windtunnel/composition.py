"""YAML and overrides -> a plain mapping -> the verb's dataclass. The only file that knows Hydra.

Hydra composes; everything after is ours: strict frozen dataclasses (`model.typed.build`), and one
line for whatever is wrong. A verb's primary YAML is ``conf/<verb>.yaml``; a group is a folder of
``conf/``. The user's own folders (``--config-dir DIR``, ``./conf``) stand in front of the shipped
one, so a file of the same name there wins and new names are added.

One addition to Hydra's rules: where a verb's YAML has a plain value of the same name as a group
(the ``sweep`` of ``status`` is the name of a sweep on disk, the ``sweep`` of ``sweep`` is a group),
the override sets the value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, ClassVar, TypeVar

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from model.errors import ConfigError
from model.typed import build

T = TypeVar("T")

_PACKAGE = Path(__file__).resolve().parent
CONF_DIR = next(
    (folder for folder in (_PACKAGE / "conf", _PACKAGE.parent / "conf") if folder.is_dir()),
    _PACKAGE / "conf",
)
"""The shipped YAML: inside the package in a wheel, beside it in a checkout."""

# What Hydra, OmegaConf and PyYAML raise for a bad override or a bad file.
_COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


@dataclass(frozen=True, kw_only=True)
class Group:
    """A choice a verb offers: ``name=option``."""

    name: str
    options: tuple[str, ...]
    default: str | None
    """None where one must be chosen."""


def load(verb: str, cls: type[T], overrides: Sequence[str], dirs: Sequence[Path]) -> T:
    """The verb's config, composed and built; ConfigError names whatever is wrong."""
    config = compose(verb, overrides, dirs)
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        mapping = OmegaConf.to_container(config, resolve=True)
    except _COMPOSE_ERRORS as error:
        raise ConfigError(_one_line(error)) from None
    if missing:
        raise ConfigError(f"{missing[0]}: missing; give it a value: {missing[0]}=...")
    assert isinstance(mapping, dict)
    return build(cls, {str(key): value for key, value in mapping.items()})


def composed_yaml(verb: str, overrides: Sequence[str], dirs: Sequence[Path]) -> str:
    """The composed YAML as text, with a comment on where it came from."""
    config = compose(verb, overrides, dirs)
    sources = ", ".join(str(folder) for folder in dirs)
    return f"# windtunnel {' '.join([verb, *overrides])}\n# from {sources}\n" + OmegaConf.to_yaml(
        config
    )


def config_dirs(extra: Sequence[Path] = ()) -> tuple[Path, ...]:
    """Folders searched, first wins: ``extra``, ``./conf`` if it holds YAML of ours, the shipped."""
    for folder in extra:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder")
    local = Path("conf")
    if _holds_our_yaml(local):
        extra = [*extra, local]
    return tuple(dict.fromkeys(folder.resolve() for folder in [*extra, CONF_DIR]))


def compose(verb: str, overrides: Sequence[str], dirs: Sequence[Path]) -> DictConfig:
    """What Hydra makes of the primary YAML and the overrides; ConfigError if it can't."""
    parsed = [_parse_override(text) for text in overrides]
    primary = _read_primary(verb, dirs)
    plain = [override for override in parsed if _is_plain_value(override, primary, dirs)]
    rest = [override for override in parsed if override not in plain]
    _check_groups(verb, primary, [o for o in rest if _chooses_option(o, dirs)], dirs)
    lines = [_line(override, primary) for override in rest]
    try:
        config = _compose(verb, lines, dirs)
    except _COMPOSE_ERRORS as error:
        raise ConfigError(_diagnose(verb, rest, primary, dirs) or _one_line(error)) from None
    for override in plain:
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


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
            about = _first_comment(_find(f"{group.name}/{option}", dirs))
            lines.append(
                f"    {option + mark:<16} {shorten(about, 79, placeholder=' ...')}".rstrip()
            )
    lines += ["", f"All values: windtunnel {verb} --cfg. Folders searched for YAML, first wins:"]
    lines += [f"  {folder}" for folder in dirs]
    return "\n".join(lines)


def verb_groups(verb: str, dirs: Sequence[Path]) -> Iterator[Group]:
    """Groups in the verb's defaults list, each followed by those nested in its options."""
    yield from _groups_of(_read_primary(verb, dirs), "", dirs)


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
        options = _options(group, dirs)
        chosen = None if default in (None, "???") else str(default)
        yield Group(name=group, options=options, default=chosen)
        nested = [found for o in options for found in _groups_in_option(group, o, dirs)]
        yield from {found.name: found for found in reversed(nested)}.values()


def _groups_in_option(group: str, option: str, dirs: Sequence[Path]) -> Iterator[Group]:
    path = _find(f"{group}/{option}", dirs)
    assert path is not None
    mapping = _read_yaml(path)
    if "@package _global_" not in path.read_text(encoding="utf-8").split("\n", 1)[0]:
        yield from _groups_of(mapping, group, dirs)


class _FoldersInFront(SearchPathPlugin):
    """Hydra's own search path only adds folders behind; a plugin may put them in front."""

    folders: ClassVar[Sequence[Path]] = ()

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed(self.folders):
            search_path.prepend("windtunnel", f"file://{folder}")


Plugins.instance().register(_FoldersInFront)


def _compose(verb: str, lines: Sequence[str], dirs: Sequence[Path]) -> DictConfig:
    _FoldersInFront.folders = dirs[:-1]
    with initialize_config_dir(config_dir=str(dirs[-1]), version_base="1.3"):
        return hydra_compose(verb, overrides=list(lines))


def _line(override: Override, primary: Mapping[str, Any]) -> str:
    """The override as Hydra gets it. A whole mapping, and a key within a mapping that the YAML
    leaves empty (``axes: {}``), may bring new keys; the dataclass refuses wrong ones later."""
    inside = primary.get(override.key_or_group.partition(".")[0]) == {}
    is_new = override.type is OverrideType.CHANGE and (inside or isinstance(override.value(), dict))
    return f"++{override.input_line}" if is_new else str(override.input_line)


def _parse_override(text: str) -> Override:
    example = "write key=value or group=option, lists as key=[a,b], and quote odd characters"
    try:
        override = OverridesParser.create().parse_override(text)
    except _COMPOSE_ERRORS:
        raise ConfigError(f"{text}: not an override; {example}") from None
    if not override.key_or_group:
        raise ConfigError(f"{text}: not an override; {example}")
    if override.is_sweep_override():
        raise ConfigError(f"{text}: one value is needed; a list is written [a,b]")
    if override.is_hydra_override():
        raise ConfigError(f"{text}: Hydra's own settings are not used here; see --config-dir")
    return override


def _is_plain_value(override: Override, primary: Mapping[str, Any], dirs: Sequence[Path]) -> bool:
    key = override.key_or_group
    return override.type is OverrideType.CHANGE and _is_group(key, dirs) and key in primary


def _chooses_option(override: Override, dirs: Sequence[Path]) -> bool:
    is_option = not isinstance(override.value(), dict) and not override.is_delete()
    return is_option and ("/" in override.key_or_group or _is_group(override.key_or_group, dirs))


def _check_groups(
    verb: str, primary: Mapping[str, Any], chosen: Sequence[Override], dirs: Sequence[Path]
) -> None:
    """The verb has every group, the group has the chosen option, no mandatory group is left out."""
    names = [group.name for group in verb_groups(verb, dirs)]
    for override in chosen:
        group, value = override.key_or_group, override.value()
        if group not in names:
            raise ConfigError(
                f"{override.input_line}: `windtunnel {verb}` has no group {group}"
                f"{_hint(_close(group, names))} Groups: {', '.join(names) or 'none'}"
            )
        options = _options(group, dirs)
        for option in value if isinstance(value, list) else [value]:
            if option not in options:
                raise ConfigError(
                    f"{override.input_line}: no such option{_hint(_close(str(option), options))} "
                    f"Options: {', '.join(options)}"
                )
    for entry in primary.get("defaults", []):
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            if option == "???" and group not in [override.key_or_group for override in chosen]:
                raise ConfigError(
                    f"{group}: missing; choose one: windtunnel {verb} {group}=... "
                    f"({', '.join(_options(group, dirs))})"
                )


def _diagnose(
    verb: str, overrides: Sequence[Override], primary: Mapping[str, Any], dirs: Sequence[Path]
) -> str | None:
    """Which value override Hydra stumbled over and what is allowed there; None if it is none."""
    good = [str(o.input_line) for o in overrides if _chooses_option(o, dirs)]
    if not _composes(verb, good, dirs):
        return None
    for override in overrides:
        line = _line(override, primary)
        if not _composes(verb, [*good, line], dirs):
            groups = [group.name for group in verb_groups(verb, dirs)]
            return _explain_value(override, _compose(verb, good, dirs), groups)
        good.append(line)
    return None


def _composes(verb: str, lines: Sequence[str], dirs: Sequence[Path]) -> bool:
    try:
        _compose(verb, lines, dirs)
    except _COMPOSE_ERRORS:
        return False
    return True


def _explain_value(override: Override, config: DictConfig, groups: Sequence[str]) -> str:
    key = override.key_or_group
    mapping: Any = OmegaConf.to_container(config, resolve=False)
    parent, here = "", mapping
    for name in key.split("."):
        path = f"{parent}.{name}".lstrip(".")
        if name not in here:
            same_name = [group for group in groups if group.endswith(f"/{name}")]
            same_name += [leaf for leaf in _paths(mapping) if leaf.endswith(f".{name}")]
            close = [f"{parent}.{match}".lstrip(".") for match in _close(name, here)]
            return f"{path}: unknown field{_hint(same_name or close)} Allowed: {', '.join(here)}"
        parent, here = path, here[name]
        if not isinstance(here, dict):
            break
    return f"{override.input_line}: {parent} is a value, not a mapping"


def _paths(mapping: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        path = f"{within}.{key}".lstrip(".")
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, path)


def _close(word: str, options: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(options), n=1)


def _hint(names: Sequence[str]) -> str:
    return f"; did you mean {names[0]}?" if names else "."


def _options(group: str, dirs: Sequence[Path]) -> tuple[str, ...]:
    names = {path.stem for folder in dirs for path in (folder / group).glob("*.yaml")}
    return tuple(sorted(names))


def _is_group(key: str, dirs: Sequence[Path]) -> bool:
    return any((folder / key).is_dir() for folder in dirs)


def _holds_our_yaml(folder: Path) -> bool:
    files = (path.relative_to(folder) for path in folder.rglob("*.yaml"))
    ours = {path.relative_to(CONF_DIR) for path in CONF_DIR.glob("*.yaml")}
    return any(
        path in ours or (len(path.parts) > 1 and (CONF_DIR / path.parent).is_dir())
        for path in files
    )


def _find(name: str, dirs: Sequence[Path]) -> Path | None:
    return next((p for folder in dirs if (p := folder / f"{name}.yaml").is_file()), None)


def _read_primary(verb: str, dirs: Sequence[Path]) -> dict[str, Any]:
    path = _find(verb, dirs)
    if path is None:
        raise ConfigError(f"{verb}.yaml: not found in {', '.join(map(str, dirs))}")
    return _read_yaml(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        mapping = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from None
    if not isinstance(mapping, dict):
        raise ConfigError(f"{path}: expected a mapping of names to values")
    return mapping


def _first_comment(path: Path | None) -> str:
    """The first comment of a YAML that is no Hydra directive: what `--help` says of an option."""
    lines = path.read_text(encoding="utf-8").splitlines() if path else []
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


def _one_line(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {(error.msg or str(error)).splitlines()[0]}"
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())
