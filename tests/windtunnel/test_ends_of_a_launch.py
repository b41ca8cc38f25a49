"""What a launch and a run of one model say and return at their ends; nothing is trained."""

from __future__ import annotations

import io
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from model.errors import ConfigError
from sweeps.cost import SHIPPED, calibrated
from sweeps.events import SweepResult
from sweeps.measure import kept_under, planned_corpus
from sweeps.store import Store
from windtunnel import cli, composition, yaml_folders
from windtunnel.commands import launch as command
from windtunnel.commands import promote as promote_command
from windtunnel.commands import train
from windtunnel.launch import Launched
from windtunnel.ledger import ledger_of


@pytest.mark.parametrize(
    ("status", "was_over", "code"), [("done", False, 0), ("done", True, 0), ("diverged", False, 3)]
)
def test_a_launch_ends_with_the_code_of_its_run(
    finished: Any, status: str, was_over: bool, code: int
) -> None:
    (entry,) = ledger_of(finished.root).read().entries
    overridden = replace(entry, forecast=replace(entry.forecast, overrides={"repetitions": "why"}))
    record = replace(finished.outcome, status=status)
    screen = io.StringIO()
    console = Console(file=screen, width=200)
    launched = Launched(record=record, entry=overridden, was_over=was_over)
    assert command._conclude(launched, finished.promotion, console) == code
    said = screen.getvalue()
    assert f"{finished.promotion.id}: " in said
    assert "gate repetitions was overridden: why" in said
    assert ("Nothing was trained: run" in said) is was_over
    stopped = Launched(record=None, entry=entry, was_over=False)
    assert command._conclude(stopped, finished.promotion, console) == 1
    assert "the same command resumes" in screen.getvalue()


def test_a_second_stage_costs_what_is_left_of_its_steps(finished: Any) -> None:
    """A quarter is done: three quarters of the FLOPs and of the time beside the start."""
    store, promotion = Store(finished.root), finished.promotion
    corpus = planned_corpus(kept_under(promotion.spec, finished.root))
    whole = command.estimated_cost(promotion, store, corpus)
    assert whole.own_flops == promotion.train_flops
    steps = promotion.spec.train.num_steps
    later = replace(promotion, begun_from=SimpleNamespace(step=steps / 4))
    left = command.estimated_cost(later, store, corpus)
    assert left.own_flops == pytest.approx(0.75 * whole.own_flops)
    at_once = replace(promotion, begun_from=SimpleNamespace(step=steps))
    start_s = command.estimated_cost(at_once, store, corpus).wall_s
    assert left.wall_s == pytest.approx(start_s + 0.75 * (whole.wall_s - start_s))
    assert 0 < start_s < whole.wall_s
    unseen = replace(promotion, evidence=replace(promotion.evidence, run_ids=()))
    shipped = command.estimated_cost(unseen, store, corpus)
    assert shipped.own_flops == whole.own_flops
    assert shipped.wall_s != whole.wall_s, "the runs of the fit teach how long it takes"
    assert calibrated(SHIPPED, []) == SHIPPED


def test_a_path_with_brackets_is_printed_as_it_is(finished: Any, tmp_path: Path) -> None:
    root = tmp_path / "of [red]things[/red]"
    shutil.copytree(finished.root, root, symlinks=True)
    words = [f"root={finished.root}", "sweep=quickstart"]
    config = composition.load("promote", promote_command.Config, words, yaml_folders.config_dirs())
    screen = io.StringIO()
    console = Console(file=screen, width=400)
    assert promote_command.run(replace(config, root=root), console) == 0
    path = root / "promotions" / f"{finished.promotion.id}.yaml"
    assert f"Promoted before, on {finished.promotion.created_at}: {path} stands" in (
        screen.getvalue()
    )


def test_a_dry_run_of_one_model_changes_no_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of an earlier version are brought over before one is trained, and by that alone."""
    brought: list[Path] = []
    name = "windtunnel.commands.train"
    monkeypatch.setattr(f"{name}.bring_over", lambda store, console: brought.append(store.root))
    monkeypatch.setattr(f"{name}.run_sweep", lambda *args, **options: SweepResult(stopped="asked"))
    words = ["train", "model=tiny", "data=toy", "tokens=2e4", "device=cpu", f"root={tmp_path}"]
    assert cli.main([*words, "dry_run=true"]) == 0
    assert brought == []
    assert not (tmp_path / "runs").exists()
    assert cli.main(words) == 1
    assert brought == [tmp_path]


@pytest.mark.parametrize(("name", "config"), [("train", train.Config), ("launch", command.Config)])
def test_no_threads_at_all_are_refused(name: str, config: Any) -> None:
    with pytest.raises(ConfigError, match="threads must be positive, got 0"):
        composition.load(name, config, ["threads=0"], yaml_folders.config_dirs())
