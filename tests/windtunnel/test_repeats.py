"""A refusal for want of repeated seeds names the command that adds them, and them alone."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.records import RunRecord
from sweeps import grid
from sweeps.plan import Plan, SweepConfig
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands.status import known_plan
from windtunnel.finished import load_sweep
from windtunnel.promotion import Promotions
from windtunnel.quoting import under
from windtunnel.repeats import _changes, how_to_repeat

OPTIMIZER = "recipe.training.optimizer"
MUON = {OPTIMIZER: "muon"}
TRIED = f"axes.{OPTIMIZER}=[adamw,muon]"
QUICK = ("fit.starts=50", "fit.replicates=100")


def commands(said: str) -> list[list[str]]:
    """The words after `windtunnel` of each command between backticks."""
    found = [shlex.split(command) for command in re.findall(r"`(windtunnel [^`]+)`", said)]
    return [words[1:] for words in found]


def fit(root: Path, *words: str) -> None:
    assert cli.main(["fit", *words, *shlex.split(under(root)), *QUICK]) == 0


def kept_files(root: Path, plan: Plan) -> dict[Path, bytes]:
    """Each file of each run, which nothing may touch once it is measured."""
    folders = [Store(root).run_dir(run.run_id) for run in plan.runs]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in files}


def noise_gate(root: Path) -> tuple[bool, str]:
    (gate,) = [g for g in Promotions(root).find("latest").gates if g.name == "noise_floor"]
    return gate.passed, gate.sentence


def test_the_command_of_a_refusal_trains_the_missing_seeds_alone_and_the_gate_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Trained for real: a trial, its variant's promotion refused, what the refusal says to type."""
    root = tmp_path / "the lab"
    made = [
        *("sweep=smoke", "name=t", "data=synthetic", "data.tokens=60000", "executor=inline"),
        *("ladder.sizes=2", "ladder.budgets=3", "ladder.smallest_tokens=2048", TRIED),
        *("recipe.training.min_steps=8", *shlex.split(under(root))),
    ]
    monkeypatch.setattr(sys, "orig_argv", ["python", "windtunnel", "sweep", *made])
    assert cli.main(["sweep", *made]) == 0
    before = known_plan(Store(root), "t")
    files = kept_files(root, before)
    fit(root, "sweep=t", f"variant={{{OPTIMIZER}: muon}}")
    promote = ["promote", "sweep=t", *shlex.split(under(root))]
    capsys.readouterr()
    assert cli.main(promote) == 0
    passed, said = noise_gate(root)
    assert not passed
    assert f"noise_floor: {said}" in capsys.readouterr().out.splitlines(), "whole, to be copied"
    assert cli.main(["launch", "promotion=latest", *shlex.split(under(root))]) == 4
    refused = capsys.readouterr().err
    broken = [command for command in re.findall(r"`[^`]+`", said) if command not in refused]
    assert not broken, "by a line's end"
    again, then = commands(said)
    assert set(again) == {"sweep", *made, "ladder.noise_of=every_variant"}

    assert cli.main(again) == 0
    after = known_plan(Store(root), "t")
    new = {run.run_id for run in after.runs} - {run.run_id for run in before.runs}
    added = [run for run in after.runs if run.run_id in new]
    assert {run.run_id for run in before.runs} <= {run.run_id for run in after.runs}
    assert [(r.spec.role, r.variant, r.spec.train.seed) for r in added] == [
        ("noise", MUON, 1),
        ("noise", MUON, 2),
    ]
    assert kept_files(root, before) == files
    assert cli.main([*then, *QUICK]) == 0
    assert cli.main(promote) == 0
    passed, said = noise_gate(root)
    assert passed, said
    assert "2 repeated runs" in said
    assert not commands(said)

    capsys.readouterr()
    assert cli.main(["sweep", *made, "dry_run=true"]) == 0
    assert "2 finished runs of sweep t are no part of this plan" in capsys.readouterr().out


def drawn(
    known_sweep: ModuleType, root: Path, *words: str, typed: tuple[str, ...] = ()
) -> tuple[bool, str]:
    """A trial of known truth, its Muon side fitted: what would be said of its seeds."""

    def by_hand(record: RunRecord) -> RunRecord:
        command = {"command": ["/bin/python", "/bin/windtunnel", *typed]} if typed else {}
        return replace(record, provenance=record.provenance | command)

    plan = known_sweep.make(root, *words)
    known_sweep.finish_all(root, plan, by_hand)
    fit(root, "sweep=quickstart", f"variant={{{OPTIMIZER}: muon}}")
    sweep = load_sweep(root, "quickstart")
    return sweep.study.noise is None, how_to_repeat(sweep, sweep.study.source["variant"], 2)


def test_what_one_command_was_to_do_is_left_out(known_sweep: ModuleType, tmp_path: Path) -> None:
    """Above all `redo`, which would set a measured run aside."""
    once = ("redo=[a-run]", "retry=failed", "budget.hours=2", "root=elsewhere", "threads=2")
    typed = ("sweep", *known_sweep.OVERRIDES, TRIED, *once)
    is_unknown, said = drawn(known_sweep, tmp_path, TRIED, typed=typed)
    assert is_unknown
    again, then = commands(said)
    assert again == [
        *("sweep", *known_sweep.OVERRIDES, TRIED, "threads=2", "ladder.noise_of=every_variant"),
        f"root={tmp_path}",
    ]
    assert then[:2] == ["fit", "sweep=quickstart"]


def test_words_that_plan_another_sweep_are_not_named(
    known_sweep: ModuleType, tmp_path: Path
) -> None:
    """The runs may be another sweep's, and YAML may have changed since."""
    typed = ("sweep", *known_sweep.OVERRIDES, TRIED, "ladder.sizes=4")
    _, said = drawn(known_sweep, tmp_path, TRIED, typed=typed)
    assert "add `ladder.noise_of=every_variant` to the command that made the sweep" in said
    (then,) = commands(said)
    assert then[0] == "fit"


def test_seeds_that_are_planned_are_only_to_be_run(known_sweep: ModuleType, tmp_path: Path) -> None:
    is_unknown, said = drawn(known_sweep, tmp_path, TRIED, "ladder.noise_of=every_variant")
    assert not is_unknown
    assert "run what is left of it" in said


@pytest.mark.parametrize(
    ("ladder", "variant", "runs", "expected"),
    [
        ({}, MUON, 2, {"ladder.noise_of": "every_variant"}),
        ({}, {OPTIMIZER: "adamw"}, 3, {}),
        ({}, {}, 5, {"ladder.noise_seeds": [1, 2, 3, 4, 6]}),
        (
            {"noise_seeds": (), "sizes": 1, "budgets": 1},
            MUON,
            2,
            {
                "ladder.noise_size": 0,
                "ladder.noise_budget": 0,
                "ladder.noise_seeds": [1, 2],
                "ladder.noise_of": "every_variant",
            },
        ),
    ],
)
def test_no_more_is_changed_than_is_missing(
    known_sweep: ModuleType,
    tmp_path: Path,
    ladder: Mapping[str, Any],
    variant: Mapping[str, Any],
    runs: int,
    expected: Mapping[str, Any],
) -> None:
    """The quickstart has three seeds, 1 to 3; here the grid's own seeds are 0 and 5."""
    config = known_sweep.make(tmp_path, TRIED, "axes.ladder.seed=[0,5]").config
    assert isinstance(config, SweepConfig)
    config = replace(config, ladder=replace(config.ladder, **ladder))
    changes = _changes(config, variant, runs)
    assert changes == expected
    assert _changes(grid.replaced(config, changes), variant, runs) == {}
