"""YAML and overrides -> a plain mapping -> the verb's dataclass. The only file that knows Hydra.

Hydra composes; everything after is ours: strict frozen dataclasses (`model.typed.build`), and one
line for whatever is wrong.

One addition to Hydra's rules: where a verb's YAML has a plain value of the same name as a group
(the ``sweep`` of ``status`` is the name of a sweep on disk, the ``sweep`` of ``sweep`` is a group),
the override sets the value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, TypeVar, get_args, get_origin, get_type_hints

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
from windtunnel.quoting import quoted, under
from windtunnel.yaml_folders import (
    is_group,
    options_of,
    read_option,
    read_primary,
    verb_groups,
    yaml_problem,
)

T = TypeVar("T")

SENTENCES = ("override.", "trained.source=", "source=", "diverged=")
"""Overrides that begin so have a person's sentences as values, with commas and all."""

# What Hydra, OmegaConf and PyYAML raise for a bad override or a bad file.
_COMPOSE_ERRORS = (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError)


def load(verb: str, cls: type[T], overrides: Sequence[str], dirs: Sequence[Path]) -> T:
    """The verb's config, composed and built; ConfigError names whatever is wrong."""
    config = compose(verb, overrides, dirs, open_to=free_mappings(cls))
    try:
        missing = sorted(OmegaConf.missing_keys(config))
        mapping = OmegaConf.to_container(config, resolve=True)
    except _COMPOSE_ERRORS as error:
        raise ConfigError(_one_line(error)) from None
    if missing:
        raise ConfigError(_what_is_missing(verb, missing[0], mapping))
    assert isinstance(mapping, dict)
    return build(cls, {str(key): value for key, value in mapping.items()})


def _what_is_missing(verb: str, key: str, mapping: Any) -> str:
    """What to give, and where to look: the sweeps there are, or the examples of `--help`."""
    asked = f"{key}: missing; give it a value: {key}=..."
    if key != "sweep" or "root" not in mapping:
        return f"{asked} (examples: windtunnel {verb} --help)"
    from sweeps.store import Store  # here: a help would import it for nothing
    from windtunnel.root import require_folder

    root = Path(mapping["root"])
    require_folder(root)
    names = [path.parent.name for path in Store(root).plan_paths()]
    first = f"none yet; start one: windtunnel sweep sweep=quickstart{under(root)}"
    return f"{asked} Sweeps under {root.absolute()}: {', '.join(names) or first}"


def composed_yaml(verb: str, cls: type, overrides: Sequence[str], dirs: Sequence[Path]) -> str:
    """The composed YAML as text, with a comment on where it came from."""
    config = compose(verb, overrides, dirs, open_to=free_mappings(cls))
    sources = ", ".join(str(folder) for folder in dirs)
    return f"# windtunnel {' '.join([verb, *overrides])}\n# from {sources}\n" + OmegaConf.to_yaml(
        config
    )


def free_mappings(cls: type) -> frozenset[str]:
    """Fields of a verb's config whose keys are the user's own: ``targets: dict[str, float]``.

    One whose values may be null is none: its YAML lists the keys there are (``override``).
    """
    return frozenset(
        name
        for name, hint in get_type_hints(cls).items()
        if get_origin(hint) is dict and NoneType not in get_args(get_args(hint)[1])
    )


def compose(
    verb: str, overrides: Sequence[str], dirs: Sequence[Path], *, open_to: Collection[str] = ()
) -> DictConfig:
    """What Hydra makes of the primary YAML and the overrides; ConfigError if it can't.

    ``open_to``: mappings of the primary YAML that take new keys besides those that stand there.
    """
    primary = read_primary(verb, dirs)
    parsed = [_parse_override(text, _meant(verb, text, primary, dirs)) for text in overrides]
    plain = [override for override in parsed if _is_plain_value(override, primary, dirs)]
    rest = [override for override in parsed if override not in plain]
    _check_groups(verb, primary, [o for o in rest if _chooses_option(o, dirs)], dirs)
    lines = [_line(override, primary, open_to) for override in rest]
    try:
        config = _compose(verb, lines, dirs)
    except _COMPOSE_ERRORS as error:
        raise ConfigError(
            _diagnose(verb, rest, primary, dirs, open_to) or _one_line(error)
        ) from None
    for override in plain:
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


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


def _line(override: Override, primary: Mapping[str, Any], open_to: Collection[str]) -> str:
    """The override as Hydra gets it. A whole mapping, and a key within a mapping that the YAML
    leaves empty (``axes: {}``) or that is the user's own, may bring new keys; the dataclass refuses
    wrong ones later."""
    first, *below = override.key_or_group.split(".")
    inside: Any = primary
    for part in override.key_or_group.split("."):
        inside = inside.get(part) if inside else inside  # an empty mapping is open below, too
    is_new = override.type is OverrideType.CHANGE and (
        inside == {} or isinstance(override.value(), dict) or (bool(below) and first in open_to)
    )
    return f"++{override.input_line}" if is_new else str(override.input_line)


def _meant(verb: str, word: str, primary: Mapping[str, Any], dirs: Sequence[Path]) -> str:
    """What a word without a sign of equality may have been meant for; empty for others."""
    if "=" in word or word.startswith("~"):
        return ""
    if word == "help":
        return f"windtunnel {verb} --help"
    named = [f"{group.name}={word}" for group in verb_groups(verb, dirs) if word in group.options]
    # A verb that looks at a sweep or a promotion has its name as a plain value.
    named += [f"{key}={word}" for key in ("sweep", "promotion") if key in primary]
    return named[0] if named else ""


def _is_sentence(value: str) -> bool:
    """Whether a reason is plain words, and neither empty, null nor quoted already."""
    return value not in ("", "null") and value[0] not in "'\""


def _parse_override(text: str, meant: str = "") -> Override:
    example = "write key=value or group=option, lists as key=[a,b], and quote odd characters"
    if meant:
        example = f"did you mean {meant}? Otherwise {example}"
    key, equals, value = text.partition("=")
    if " " in value and not set(value) & set("[{'\""):  # a column's name, such as Params (B)
        example = f"a value with blanks is quoted twice: \"{key}='{value}'\""
    parent, dot, last = key.rpartition(".")
    if dot and value and last[:1].isdigit():  # Hydra's grammar has no such keys
        example = f"write {parent}='{{{last}: {value}}}'"
    if value.startswith("~/"):  # no shell expands it here, and Hydra's grammar refuses it
        value = str(Path(value).expanduser())
        text = f"{key}{equals}{value}"
    is_sign = len(value) == 1 and not value.isalnum()  # table.decimal=, as a shell leaves it
    if is_sign or (text.startswith(SENTENCES) and _is_sentence(value)):
        text = f"{key}{equals}{quoted(value)}"
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
    return override.type is OverrideType.CHANGE and is_group(key, dirs) and key in primary


def _chooses_option(override: Override, dirs: Sequence[Path]) -> bool:
    is_option = not isinstance(override.value(), dict) and not override.is_delete()
    return is_option and ("/" in override.key_or_group or is_group(override.key_or_group, dirs))


def _check_groups(
    verb: str, primary: Mapping[str, Any], chosen: Sequence[Override], dirs: Sequence[Path]
) -> None:
    """The verb has every group, the group has the chosen option, no mandatory group is left out."""
    names = [group.name for group in verb_groups(verb, dirs)]
    for override in chosen:
        group, value = override.key_or_group, override.value()
        if group not in names:
            values = [key for key in primary if key != "defaults"]
            raise ConfigError(
                f"{override.input_line}: `windtunnel {verb}` has no group {group}"
                f"{_hint(_close(group, names))} Groups: {', '.join(names) or 'none'}; "
                f"values: {', '.join(values)}"
            )
        options = options_of(group, dirs)
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
                    f"({', '.join(options_of(group, dirs))})"
                )


def _diagnose(
    verb: str,
    overrides: Sequence[Override],
    primary: Mapping[str, Any],
    dirs: Sequence[Path],
    open_to: Collection[str],
) -> str | None:
    """Which value override Hydra stumbled over and what is allowed there; None if it is none."""
    good = [str(o.input_line) for o in overrides if _chooses_option(o, dirs)]
    if not _composes(verb, good, dirs):
        return None
    for override in overrides:
        line = _line(override, primary, open_to)
        if not _composes(verb, [*good, line], dirs):
            return _explain_value(override, _compose(verb, good, dirs), verb, dirs)
        good.append(line)
    return None


def _composes(verb: str, lines: Sequence[str], dirs: Sequence[Path]) -> bool:
    try:
        _compose(verb, lines, dirs)
    except _COMPOSE_ERRORS:
        return False
    return True


def _explain_value(override: Override, config: DictConfig, verb: str, dirs: Sequence[Path]) -> str:
    key = override.key_or_group
    groups = [group.name for group in verb_groups(verb, dirs)]
    mapping: Any = OmegaConf.to_container(config, resolve=False)
    parent, here = "", mapping
    for name in key.split("."):
        path = f"{parent}.{name}".lstrip(".")
        if name not in here:
            same_name = [group for group in groups if group.endswith(f"/{name}")]
            same_name += [leaf for leaf in _paths(mapping) if leaf.endswith(f".{name}")]
            close = [f"{parent}.{match}".lstrip(".") for match in _close(name, here)]
            group = parent.replace(".", "/")
            elsewhere = _in_other_options(group, name, dirs) if group in groups else []
            hint = _hint(same_name or elsewhere or close)
            return f"{path}: unknown field{hint} Allowed: {', '.join(here)}"
        parent, here = path, here[name]
        if not isinstance(here, dict):
            break
    return f"{override.input_line}: {parent} is a value, not a mapping"


def _in_other_options(group: str, name: str, dirs: Sequence[Path]) -> list[str]:
    """Fields of that name that come with another option of the group; two at most."""
    within = group.replace("/", ".")
    found = [
        f"{path} with {group}={option}"
        for option in options_of(group, dirs)
        for path in _paths(read_option(group, option, dirs), within)
        if path.endswith(f".{name}")
    ]
    return found[:2]


def _paths(mapping: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for key, value in mapping.items():
        path = f"{within}.{key}".lstrip(".")
        yield path
        if isinstance(value, Mapping):
            yield from _paths(value, path)


def _close(word: str, options: Iterable[str]) -> list[str]:
    return difflib.get_close_matches(word, list(options), n=1, cutoff=0.7)


def _hint(names: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else "."


def _one_line(error: Exception) -> str:
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        said = (error.msg or str(error)).splitlines()[0]
        if unset := re.search(r"Environment variable '(.+)' not found", said):
            name = unset[1]
            return (
                f"{error.full_key}: asks for the environment variable {name}, which is not set; "
                f"set it (export {name}=...), or give a default: ${{oc.env:{name},DEFAULT}}"
            )
        # "GrammarParseError raised while ...": the name of a class says nothing to a person.
        said = re.sub(r"^\w+ raised while resolving interpolation: ", "cannot be resolved: ", said)
        return f"{error.full_key}: {said}"
    return yaml_problem(error)
