"""The source of a user's own module: found by name, hashed, kept, and loaded from what was kept.

    data_dir/own/<hash>/my_ffn.py        as it was when the runs were planned

A run imports that copy and nothing else, so an edit of the file while a sweep runs makes other
runs and disturbs none, and a run can be resumed when the file is long gone. Python is imported by
name only because the user named it; nothing is evaluated from text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from model.errors import ConfigError
from model.files import whole_folder, write_file
from model.own.parts import OwnPart

OURS = ("model", "sweeps", "analysis", "windtunnel")
"""Packages a user's module may import without their becoming part of its source: what of them
decides a run's numbers is its ``numerics`` version."""


@dataclass(frozen=True)
class Source:
    """One named class and the files it is made of."""

    name: str
    """``package.module:Class``."""
    root: Path
    """The folder that the import starts from."""
    files: tuple[str, ...]
    """Relative to ``root``: the module, and what it imports from there, at any depth."""
    hash: str


def find_source(name: str, where: str) -> Source:
    """The source of ``package.module:Class``, in the folder of work first, then on Python's path.

    ``where``: the option that named it, for messages.

    Raises:
        ConfigError: no such file, a name that is taken, or a file that is no Python.
    """
    module, colon, class_name = name.partition(":")
    parts = module.split(".")
    if not colon or not class_name.isidentifier() or not all(map(str.isidentifier, parts)):
        raise ConfigError(f"{where}: {name!r} is not of the form package.module:Class")
    if parts[0] in OURS:
        raise ConfigError(
            f"{where}: {name!r}: {parts[0]} is a package of Wind Tunnel itself; give yours "
            "another name"
        )
    roots = _roots()
    for root in roots:
        found = _file_of(root, parts)
        if found is not None:
            files = tuple(sorted(_with_imported(root, found, parts, where)))
            return Source(name=name, root=root, files=files, hash=_hash(root, files))
    raise ConfigError(
        f"{where}: no module {module} in {roots[0]} or on Python's path; the file "
        f"{'/'.join(parts)}.py must lie in the folder you work in, or be installed"
    )


def keep_source(source: Source, data_dir: Path) -> None:
    """Copy its files to where the runs import them from; there already: left alone."""
    folder = kept_dir(data_dir, source.hash)
    if folder.exists():
        return
    try:
        with whole_folder(folder) as fresh:
            for file in source.files:
                (fresh / file).parent.mkdir(parents=True, exist_ok=True)
                write_file(fresh / file, (source.root / file).read_bytes())
            if _hash(fresh, source.files) != source.hash:
                raise ConfigError(f"{source.name}: its source changed while it was read; try again")
    except (OSError, ConfigError):
        if not folder.exists():  # another process may have been quicker
            raise


def kept_dir(data_dir: Path, source_hash: str) -> Path:
    """Where a source is kept."""
    return (data_dir / "own" / source_hash).absolute()


def load_own(own: Iterable[OwnPart], data_dir: Path) -> None:
    """Have :func:`class_of` know the classes of ``own``.

    A source that is not kept (any more) is looked for by its name again.

    Raises:
        ConfigError: it is gone, or is not the one the run was planned with.
    """
    for part in own:
        if (part.name, part.source) in _LOADED:
            continue
        where = f"own.{part.kind}"
        if not kept_dir(data_dir, part.source).exists():
            found = find_source(part.name, where)
            if found.hash != part.source:
                raise ConfigError(
                    f"{where}: the source of {part.name} has changed since the run was planned "
                    f"(now {found.hash}, then {part.source}) and the one kept in {data_dir}/own is "
                    "gone; restore the file, or plan again"
                )
            keep_source(found, data_dir)
        load_class(part.name, part.source, data_dir, where)


def load_class(name: str, source_hash: str, data_dir: Path, where: str) -> type:
    """Import a class from its kept source.

    Raises:
        ConfigError: the module can't be imported, or has no such class.
    """
    key = (name, source_hash)
    if key in _LOADED:
        return _LOADED[key]
    folder = kept_dir(data_dir, source_hash)
    module_name, _, class_name = name.partition(":")
    _make_importable(folder, where, name)
    try:
        module = importlib.import_module(module_name)
    except ConfigError:
        raise
    except Exception as error:  # whatever the user's module does when it is imported
        raise ConfigError(
            f"{where}: {module_name} can't be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        classes = [n for n, v in vars(module).items() if isinstance(v, type)]
        raise ConfigError(
            f"{where}: {module_name} has no class {class_name}; it has {', '.join(classes)}"
        )
    _LOADED[key] = found
    return found


def class_of(part: OwnPart) -> type:
    """The loaded class.

    Raises:
        ConfigError: nobody loaded it.
    """
    found = _LOADED.get((part.name, part.source))
    if found is None:
        raise ConfigError(
            f"own.{part.kind}: {part.name} is not loaded; call model.own.source.load_own first"
        )
    return found


_LOADED: dict[tuple[str, str], type] = {}
"""By name and hash: what ``sys.modules`` is for modules, for sources."""
_ON_PATH: list[str] = []
"""Kept folders that were put on Python's path; the last one is there."""


def _make_importable(folder: Path, where: str, name: str) -> None:
    """Put ``folder`` first on the path, and forget modules of other kept sources by these names."""
    if _ON_PATH and _ON_PATH[-1] == str(folder):
        return
    tops = {path.stem for path in folder.iterdir()}
    for loaded, module in list(sys.modules.items()):
        if loaded.partition(".")[0] not in tops:
            continue
        places = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
        if not any(place.startswith(kept) for place in places for kept in _ON_PATH):
            raise ConfigError(
                f"{where}: {name}: there is a module {loaded.partition('.')[0]} already "
                f"({places[-1] or 'built in'}); give yours another name"
            )
        del sys.modules[loaded]
    sys.path[:] = [str(folder), *(path for path in sys.path if path not in _ON_PATH)]
    _ON_PATH.append(str(folder))
    importlib.invalidate_caches()


def _roots() -> list[Path]:
    """Where a module is looked for, the folder of work first."""
    return [Path.cwd(), *(Path(path) for path in sys.path if path and path not in _ON_PATH)]


def _file_of(root: Path, parts: list[str]) -> Path | None:
    base = root.joinpath(*parts)
    for path in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _with_imported(root: Path, first: Path, parts: list[str], where: str) -> set[str]:
    """The file, the packages above it, and what they import from ``root``."""
    # In a folder of installed packages only the module's own package belongs to it.
    only = parts[0] if root.name in ("site-packages", "dist-packages") else None
    waiting, found = [first, *_packages(root, parts)], set()
    while waiting:
        path = waiting.pop()
        relative = path.relative_to(root)
        if str(relative) in found:
            continue
        found.add(str(relative))
        for name in _imports(path, relative, where):
            words = name.split(".")
            if words[0] in OURS or (only and words[0] != only):
                continue
            beside = _file_of(root, words)
            if beside is not None:
                waiting += [beside, *_packages(root, words)]
    return found


def _packages(root: Path, parts: list[str]) -> Iterator[Path]:
    """The ``__init__.py`` that are run on the way to a module."""
    for depth in range(1, len(parts)):
        path = root.joinpath(*parts[:depth], "__init__.py")
        if path.is_file():
            yield path


def _imports(path: Path, relative: Path, where: str) -> Iterator[str]:
    """Dotted names that a file may import, wherever in it that stands."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: {path} is no Python: {error}") from None
    package = list(relative.parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            if base:
                yield base
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _hash(root: Path, files: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
