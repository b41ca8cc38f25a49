"""README and docs name commands and options that exist: each composes as it would be typed."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from model.errors import ConfigError
from windtunnel import cli, composition, yaml_folders

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
CONF = yaml_folders.CONF_DIR
NEEDED = {
    **dict.fromkeys(("sweep", "compare", "promote", "report"), ("sweep=quickstart",)),
    "convert": ("source=x", "target=y"),
    "launch": ("promotion=latest",),
}
"""What a command can't do without, where the text leaves it out."""
KINDS = {"tracker", "executor", "processes"}
"""Groups whose options have fields of their own."""
MADE = {"sparse", "share", "squared"}
"""Sweeps that the reader writes."""


def spans(page: Path) -> Iterator[str]:
    """Code within sentences, in the README indented lines of it, and commands that no test runs."""
    shown = re.compile(r"^```(.*?)^```$", re.DOTALL | re.MULTILINE)
    for block in shown.findall(page.read_text()):
        if block.startswith("text\n"):
            yield from re.findall(r"^windtunnel .*$", block.replace("\\\n", " "), re.MULTILINE)
    text = shown.sub("", page.read_text())
    yield from re.findall(r"`([^`\n]+(?:\n[^`\n]+)?)`", text)
    yield from re.findall(r"^    (windtunnel (?!  ).*)$", text, re.MULTILINE)


def words_of(span: str) -> list[str]:
    try:
        words = shlex.split(span.replace("\n", " "), comments=True)
    except ValueError:  # half of a quotation: prose
        return []
    return [word for word in words if not word.endswith("...") and not word.startswith("--")]


@cache
def keys(verb: str) -> frozenset[str]:
    """First parts of what ``verb`` takes."""
    top = yaml.safe_load((CONF / f"{verb}.yaml").read_text())
    groups = {group.name for group in yaml_folders.verb_groups(verb, (CONF,))}
    return frozenset(top) | groups


def problem(verb: str, words: list[str]) -> str:
    """Why ``verb`` does not take them."""
    given = {word.partition("=")[0] for word in words}
    needed = [word for word in NEEDED.get(verb, ()) if word.partition("=")[0] not in given]
    config = importlib.import_module(f"windtunnel.commands.{verb}").Config
    try:
        composition.load(verb, config, [*needed, *words], (CONF,))
    except ConfigError as error:
        return str(error)
    return ""


def choices(group: str) -> list[list[str]]:
    """What may have to be chosen first: ``tracker.mode`` is of ``tracker=wandb`` alone."""
    options = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    return [[], *([f"{group}={option}"] for option in options if group in KINDS)]


def is_option(word: str) -> bool:
    return bool(re.match(r"[a-z_]+(\.[A-Za-z_0-9]+)*=(?!\.\.\.|\[\.\.\.|NAME|[A-Z]+\b)\S", word))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_and_option_that_is_named_exists(page: Path) -> None:
    if page.stem == "reference":
        return  # made from the code
    wrong = []
    for span in dict.fromkeys(spans(page)):
        match words_of(span):
            case ["windtunnel", verb, *words] if verb in cli.VERBS:
                if words and not any(word == f"sweep={name}" for word in words for name in MADE):
                    wrong += [f"{span}: {said}" for said in [problem(verb, words)] if said]
            case ["windtunnel", verb, *_]:
                wrong.append(f"{span}: no such command as {verb}")
            case [*words] if words and all(map(is_option, words)):
                first = words[0].split("=")[0].split(".")[0]
                tries = (
                    problem(verb, [*choice, *words])
                    for verb in cli.VERBS
                    if first in keys(verb)
                    for choice in choices(first)
                )
                if all(tries):  # or no command has such a key
                    wrong.append(f"{span}: no command takes it")
    assert not wrong
