"""Layers that went back from FP8 to bfloat16 are said where the sweep is shown."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from analysis.records import RunRecord
from sweeps.plan import Plan
from sweeps.plan_file import skim_plan
from sweeps.store import Store
from windtunnel import composition, yaml_folders
from windtunnel.commands import compare, status
from windtunnel.report.content import gather
from windtunnel.report.sentences import troubles

LAYERS = ("blocks.0.attention.qkv", "blocks.1.moe.experts.down", "blocks.1.moe.shared.down", "x")
AXES = ("axes.precision=[bf16,fp8]", "ladder.sizes=2", "ladder.budgets=2", "ladder.noise_seeds=[]")


def finished(root: Path, known_sweep: ModuleType, layers: tuple[str, ...]) -> Plan:
    """Two sizes, two budgets, in bfloat16 and in FP8; the first FP8 run lost ``layers``."""
    plan: Plan = known_sweep.make(root, *AXES)
    first = next(run.run_id for run in plan.runs if run.precision == "fp8")

    def change(record: RunRecord) -> RunRecord:
        if record.run_id != first or not layers:
            return record
        return replace(record, provenance={**record.provenance, "fp8_fallen": list(layers)})

    known_sweep.finish_all(root, plan, change)
    return plan


def shown(verb: ModuleType, root: Path, *words: str) -> str:
    name = verb.__name__.rpartition(".")[2]
    words = (f"root={root}", "sweep=quickstart", *words)
    config = composition.load(name, verb.Config, words, yaml_folders.config_dirs())
    out = io.StringIO()
    verb.run(config, Console(file=out, width=100))
    return " ".join(out.getvalue().split())


@pytest.mark.parametrize("layers", [LAYERS, LAYERS[:1], ()])
def test_they_are_named_on_every_screen(
    tmp_path: Path, known_sweep: ModuleType, layers: tuple[str, ...]
) -> None:
    finished(tmp_path, known_sweep, layers)
    content = gather("quickstart", tmp_path, made_at="", version="")
    said = (
        shown(status, tmp_path),
        " ".join(troubles(content)),
        shown(compare, tmp_path, "variant={precision: fp8}"),
    )
    count = {4: f"4 layers: {', '.join(LAYERS[:3])} and 1 more", 1: f"1 layer: {LAYERS[0]}"}
    for text in said[:2]:
        assert ("FP8: 1 of 4 finished runs went on in bfloat16" in text) == bool(layers)
        assert (count.get(len(layers), "never") in text) == bool(layers)
    assert ("FELL_BACK: 1 of the runs in FP8" in said[2]) == bool(layers)


def test_a_skimmed_plan_knows_its_precisions(tmp_path: Path, known_sweep: ModuleType) -> None:
    plan = known_sweep.make(tmp_path, *AXES)
    skimmed = skim_plan(Store(tmp_path).plan_path(plan.name))
    assert [run.precision for run in skimmed.runs] == [run.precision for run in plan.runs]
    assert not any("spec" in vars(run) for run in skimmed.runs), "no spec was built for it"
