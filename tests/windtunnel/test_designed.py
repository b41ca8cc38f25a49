"""`design=next`: cheap runs first, then those that tell most, within the budget, and an end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.allocation import optimum
from model.errors import ConfigError
from sweeps.events import SweepResult
from sweeps.plan import Plan, PlannedRun
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import sweep as command
from windtunnel.console import sci
from windtunnel.designed import FIRST_RUNS, DesignRules, _target, next_batch

RULES = DesignRules(ahead=10, tolerance=0.0, batches=4)


def cost(runs: tuple[PlannedRun, ...]) -> float:
    return sum(run.cost.train_flops for run in runs)


def finish(root: Path, runs: tuple[PlannedRun, ...], known_sweep: ModuleType) -> None:
    for run in runs:
        known_sweep.finish(root, run.spec, known_sweep.measured(run.spec))


def test_the_cheapest_come_first_then_what_the_law_asks_for(
    tmp_path: Path, known_sweep: ModuleType
) -> None:
    plan, store = known_sweep.make(tmp_path), Store(tmp_path)
    budget = 0.25 * plan.train_flops
    first = next_batch(plan, store, RULES, budget)
    assert len(first.runs) == FIRST_RUNS
    cheapest = sorted(run.cost.train_flops for run in plan.runs)[:FIRST_RUNS]
    assert [run.cost.train_flops for run in first.runs] == cheapest
    finish(tmp_path, first.runs, known_sweep)
    left = budget - cost(first.runs)
    second = next_batch(plan, store, RULES, left)
    assert 0 < cost(second.runs) <= left
    assert all(run not in first.runs for run in second.runs)
    assert "half width of the forecast" in second.why
    wide = DesignRules(ahead=10, tolerance=0.9, batches=4)
    assert "within the tolerance" in next_batch(plan, store, wide, left).why
    fine = DesignRules(ahead=10, tolerance=1e-5, batches=4)
    assert "no run reaches it" in next_batch(plan, store, fine, left).why
    assert next_batch(plan, store, RULES, 1.0).why == "the budget is spent"
    finish(tmp_path, tuple(r for r in plan.runs if r not in first.runs), known_sweep)
    assert next_batch(plan, store, RULES, left).why == "every run of the grid is made"


def test_a_budget_is_spent_in_the_parts_it_was_cut_into(
    tmp_path: Path,
    known_sweep: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each choice by the law spends a quarter of the whole, but for the last, or ends."""
    parts: list[float] = []

    def drive(plan: Plan, store: Store, *args: object, **options: object) -> SweepResult:
        parts.append(cost(plan.runs))
        finish(tmp_path, plan.runs, known_sweep)
        return SweepResult(finished=tuple(run.run_id for run in plan.runs))

    monkeypatch.setattr(command, "run_sweep", drive)
    plan = known_sweep.make(tmp_path)
    budget = 0.6 * plan.train_flops
    words = ["sweep", *known_sweep.OVERRIDES, f"root={tmp_path}", "design=next"]
    words += [f"budget.train_flops={budget}", "next.tolerance=0", "next.batches=4"]
    assert cli.main(words) == 0
    first, *chosen, last = parts
    assert first + sum(chosen) + last <= budget
    assert len(chosen) >= 1
    assert all(part >= budget / 4 for part in chosen)
    assert f"{sci(sum(parts))} of the grid's {sci(plan.train_flops)}" in capsys.readouterr().out


def test_what_cannot_be_paid_is_passed_over(tmp_path: Path, known_sweep: ModuleType) -> None:
    """Of the cheapest ten those whose sum stays within the budget, to the last FLOP."""
    plan, store = known_sweep.make(tmp_path), Store(tmp_path)
    costs = sorted(run.cost.train_flops for run in plan.runs)
    for count in (1, 3, FIRST_RUNS):
        enough = sum(costs[:count])
        found = next_batch(plan, store, RULES, enough)
        assert [run.cost.train_flops for run in found.runs] == costs[:count]
        assert found.why == f"the {count} cheapest, to have {FIRST_RUNS} for a first law"
        less = next_batch(plan, store, RULES, enough * (1 - 1e-12))
        assert len(less.runs) == count - 1
    assert next_batch(plan, store, RULES, costs[0] / 2).why == "the budget is spent"
    assert FIRST_RUNS == 10, "twice the five of the surface"


def test_the_target_is_the_optimum_or_both_grow_alike(finished: Any) -> None:
    fit, points = finished.study.surface, finished.study.points
    best = optimum(fit, 3e13)
    size, tokens = _target(fit, points, 3e13)
    assert size == pytest.approx(best.size.value)
    assert size * tokens == pytest.approx(3e13)
    without = replace(fit, law=replace(fit.law, A=0.0))
    size, tokens = _target(without, points, 16 * max(points.size) * max(points.tokens))
    assert size == pytest.approx(4 * max(points.size))
    assert tokens == pytest.approx(4 * max(points.tokens))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"ahead": 0.99}, "ahead must be >= 1, got 0.99"),
        ({"tolerance": 1.0}, "0 to 1, got 1.0"),
        ({"tolerance": -0.1}, "0 to 1, got -0.1"),
        ({"batches": 0}, "batches must be positive, got 0"),
        ({"ahead": 1, "tolerance": 0.0, "batches": 1}, ""),
    ],
)
def test_rules_that_make_no_sense_are_refused(changed: dict[str, Any], said: str) -> None:
    if said:
        with pytest.raises(ConfigError, match=said):
            replace(RULES, **changed)
    else:
        replace(RULES, **changed)


def test_runs_that_are_no_single_choices_are_refused(
    tmp_path: Path, known_sweep: ModuleType
) -> None:
    plan = known_sweep.make(tmp_path, "axes.ladder.seed=[0,5]", "ladder.sizes=2")
    with pytest.raises(ConfigError, match="design=next chooses single runs"):
        next_batch(plan, Store(tmp_path), RULES, 1e20)


def test_the_command_spends_its_budget_and_says_why_it_ends(
    tmp_path: Path,
    known_sweep: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made: list[PlannedRun] = []

    def drive(plan: Plan, store: Store, *args: object, **options: object) -> SweepResult:
        made.extend(plan.runs)
        finish(tmp_path, plan.runs, known_sweep)
        return SweepResult(finished=tuple(run.run_id for run in plan.runs))

    monkeypatch.setattr(command, "run_sweep", drive)
    whole = known_sweep.make(tmp_path)
    budget = 0.2 * whole.train_flops
    words = ["sweep", *known_sweep.OVERRIDES, f"root={tmp_path}", "design=next"]
    words += [f"budget.train_flops={budget}", "next.tolerance=0"]
    assert cli.main([*words, "dry_run=true"]) == 0
    assert f"the {FIRST_RUNS} cheapest" in capsys.readouterr().out
    assert made == []
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "The design ends: the budget is spent" in text
    assert FIRST_RUNS < len(made) < len(whole.runs)
    assert cost(tuple(made)) <= budget
    assert len({run.run_id for run in made}) == len(made), "no run twice"
