"""Writes docs/reference.md from the commands' docstrings, their YAML and the config dataclasses.

python docs/make_reference.py            # write it
python docs/make_reference.py --check    # exit 1 if it is out of date
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference.md"
DATACLASSES = (
    "model/config.py",
    "model/training/config.py",
    "model/training/corpora.py",
    "sweeps/ladder.py",
    "sweeps/recipe.py",
    "sweeps/executors/config.py",
    "analysis/settings.py",
)
LAWS = "analysis/catalogue.py"


def reference() -> str:
    """The whole page."""
    parts = [
        "# Reference\n",
        "Made from the code by `python docs/make_reference.py`: edit docstrings and YAML.\n",
        "## Commands\n",
    ]
    parts += [_command(verb) for verb in _verbs()]
    parts += ["## Options of the groups\n", *_groups(), "## What the values mean\n"]
    parts += [
        _fields(cls, path) for path in DATACLASSES for cls in _classes(path) if _has_fields(cls)
    ]
    parts += ["## Laws\n", "By the name that `windtunnel fit law=...` takes.\n", *_laws()]
    return "\n".join(parts)


def _verbs() -> tuple[str, ...]:
    for node in _tree("windtunnel/cli.py").body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "VERBS":
            return tuple(ast.literal_eval(node.value))
    raise SystemExit("windtunnel/cli.py: no VERBS")


def _command(verb: str) -> str:
    doc = ast.get_docstring(_tree(f"windtunnel/commands/{verb}.py")) or ""
    yaml = (ROOT / "conf" / f"{verb}.yaml").read_text(encoding="utf-8").rstrip()
    return f"### windtunnel {verb}\n\n```text\n{doc}\n```\n\n```yaml\n{yaml}\n```\n"


def _groups() -> Iterator[str]:
    folders = {path.parent for path in (ROOT / "conf").rglob("*.yaml")} - {ROOT / "conf"}
    for folder in sorted(folders):
        rows = [
            f"| `{path.stem}` | {_first_comment(path)} |" for path in sorted(folder.glob("*.yaml"))
        ]
        name = folder.relative_to(ROOT / "conf")
        yield f"### {name}\n\n| option | |\n|---|---|\n" + "\n".join(rows) + "\n"


def _first_comment(path: Path) -> str:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    return _cell(" ".join(lines))


def _fields(cls: ast.ClassDef, path: str) -> str:
    rows = []
    for index, node in enumerate(cls.body):
        if not isinstance(node, ast.AnnAssign) or "ClassVar" in ast.unparse(node.annotation):
            continue
        after = cls.body[index + 1] if index + 1 < len(cls.body) else None
        doc = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            doc = " ".join(str(after.value.value).split())
        default = "" if node.value is None else f"`{ast.unparse(_default(node.value))}`"
        kind = ast.unparse(node.annotation)
        rows.append(
            f"| `{ast.unparse(node.target)}` | `{_cell(kind)}` | {_cell(default)} | {_cell(doc)} |"
        )
    about = " ".join((ast.get_docstring(cls) or "").split())
    table = "| field | type | default | |\n|---|---|---|---|\n" + "\n".join(rows)
    return f"### {cls.name}\n\n{about} (`{path}`)\n\n{table}\n"


def _default(value: ast.expr) -> ast.expr:
    """The default within ``field(default=..., metadata=...)``; any other value as it is."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "field":
        return next((word.value for word in value.keywords if word.arg == "default"), value)
    return value


def _laws() -> Iterator[str]:
    """In the catalogue's order: what each says, the variables it needs, its class."""
    chosen = next(
        node.value
        for node in _tree(LAWS).body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "LAWS"
    )
    assert isinstance(chosen, ast.Dict)
    paths = [f"analysis/{path.name}" for path in sorted((ROOT / "analysis").glob("*.py"))]
    classes = {cls.name: (cls, path) for path in paths for cls in _classes(path)}
    for word, name in zip(chosen.keys, chosen.values, strict=True):
        cls, path = classes[ast.unparse(name)]
        variables = ", ".join(f"`{name}`" for name in _constant(cls, "VARIABLES"))
        text = f"{ast.get_docstring(cls)}\n\nVariables: {variables}. (`{cls.name}` in `{path}`)"
        yield f"### {ast.literal_eval(word)}\n\n{text}\n"


def _classes(path: str) -> Iterator[ast.ClassDef]:
    return (
        node
        for node in _tree(path).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )


def _has_fields(cls: ast.ClassDef) -> bool:
    return any(isinstance(node, ast.AnnAssign) for node in cls.body)


def _constant(cls: ast.ClassDef, name: str) -> tuple[str, ...]:
    value = next(
        node.value
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name
    )
    found: tuple[str, ...] = ast.literal_eval(value)
    return found


def _tree(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text(encoding="utf-8"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    made = reference()
    if "--check" in sys.argv:
        sys.exit(0 if PAGE.exists() and PAGE.read_text(encoding="utf-8") == made else 1)
    PAGE.write_text(made, encoding="utf-8")
