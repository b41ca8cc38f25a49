"""What to type where a promoted variant has too few repeated seeds: the sweep again, with more.

The words are those a sweep was trained by, which its records keep, and they are named only if they
still plan this very sweep: nothing that was measured is then trained again.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

from analysis.records import RunRecord
from model.errors import ConfigError
from model.typed import to_plain
from sweeps import grid
from sweeps.plan import SEED, SweepConfig, variants_of
from windtunnel import composition
from windtunnel.cli import parse
from windtunnel.commands import sweep as sweep_command
from windtunnel.finished import FinishedSweep
from windtunnel.next_step import as_option
from windtunnel.quoting import under
from windtunnel.yaml_folders import config_dirs

NOT_OF_THE_SWEEP = ("root", "dry_run", "retry", "redo", "budget", "design", "next")
"""Words that say what one command was to do, or that are given anew; all others are kept."""
MOST_COMMANDS = 3
"""So many different ones are tried, those most runs were trained by first."""


def how_to_repeat(sweep: FinishedSweep, variant: Mapping[str, Any], runs: int) -> str:
    """A sentence with the commands that give ``variant`` so many repeated runs, and then pass."""
    config = sweep.plan.config
    assert config is not None, "a promotion is of a ladder"
    changes = _changes(config, variant, runs)
    root = under(sweep.root)
    fit = f"windtunnel fit sweep={sweep.plan.name}"
    fit += f" {as_option('variant', variant)}{root}" if variant else root
    if not changes:
        return (
            "The sweep has enough of them in its plan: run what is left of it, then "
            f"`{fit}`, and promote again"
        )
    then = f"then `{fit}`, and promote again"
    words = _words(sweep, config, changes)
    if words is None:
        said = shlex.join(_as_words(changes))
        where = "to the command that made the sweep"
        return f"To train only what is missing, add `{said}` {where}; {then}"
    return f"To train only what is missing: `windtunnel sweep {words}{root}`; {then}"


def _changes(config: SweepConfig, variant: Mapping[str, Any], runs: int) -> dict[str, Any]:
    """Dotted paths of the sweep that need other values."""
    ladder, found = config.ladder, dict[str, Any]()
    if len(ladder.noise_seeds) < runs:
        # Its place first: without seeds it lies idle, and may lie outside the ladder.
        if ladder.noise_size >= ladder.num_sizes:
            found["ladder.noise_size"] = ladder.num_sizes - 1
        if ladder.noise_budget >= ladder.num_budgets:
            found["ladder.noise_budget"] = ladder.num_budgets - 1
        grid_seeds = {ladder.seed, *config.axes.get(SEED, ()), *config.zipped.get(SEED, ())}
        further = (seed for seed in count() if seed not in grid_seeds | {*ladder.noise_seeds})
        missing = runs - len(ladder.noise_seeds)
        found["ladder.noise_seeds"] = [*ladder.noise_seeds, *islice(further, missing)]
    first = variants_of(config)[0]
    is_baseline = all(first.get(path) == value for path, value in variant.items() if path != SEED)
    if not is_baseline and ladder.noise_of == "baseline":
        found["ladder.noise_of"] = "every_variant"
    return found


def _as_words(changes: Mapping[str, Any]) -> list[str]:
    return [
        f"{path}={value if isinstance(value, str) else json.dumps(value, separators=(',', ':'))}"
        for path, value in changes.items()
    ]


def _words(sweep: FinishedSweep, config: SweepConfig, changes: Mapping[str, Any]) -> str | None:
    """What follows `windtunnel sweep` to plan this sweep with the changes; None if nobody knows."""
    wanted = grid.replaced(config, changes)
    changed = _as_words(changes)
    for typed in _typed(sweep.records, sweep.plan.name):
        kept = [word for word in typed if _key(word) not in {*NOT_OF_THE_SWEEP, *changes}]
        words = [*kept, *changed]
        if _plans(words, wanted, sweep.root):
            return shlex.join(words)
    return None


def _typed(records: Iterable[RunRecord], name: str) -> Iterator[list[str]]:
    """What may have made the sweep: what its runs were trained by, and its name alone."""
    commands = Counter(
        tuple(map(str, command))
        for record in records
        if "sweep" in (command := record.provenance.get("command") or ())
    )
    for command, _ in commands.most_common(MOST_COMMANDS):
        yield list(command[command.index("sweep") + 1 :])
    yield [f"sweep={name}"]


def _key(word: str) -> str:
    """The dotted path of an override, or of ``budget.hours`` the mapping it is in."""
    path = word.lstrip("+~").partition("=")[0]
    top = path.partition(".")[0]
    return top if top in NOT_OF_THE_SWEEP else path


def _plans(words: Sequence[str], wanted: SweepConfig, root: Path) -> bool:
    """Whether the command line takes the words here, and they mean ``wanted``."""
    try:
        arguments = parse(words)
        overrides = [*arguments.overrides, *shlex.split(under(root))]
        dirs = config_dirs(arguments.config_dirs)
        found = composition.load("sweep", sweep_command.Config, overrides, dirs)
        found_config = sweep_command.sweep_config(found)
    except ConfigError:
        return False
    # Threads, device and folders belong to a command, not to what its runs measure.
    return to_plain(replace(found_config, runtime=wanted.runtime)) == to_plain(wanted)
