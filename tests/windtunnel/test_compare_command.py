"""`windtunnel compare`: runs are paired across a sweep's axes, and what can't be is said."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from analysis.feature_trial import Ahead, Trial
from analysis.plots_leverage import leverage_compute
from analysis.results import FitError, Prediction
from model.errors import ConfigError
from model.typed import build
from sweeps.grid import replaced
from sweeps.store import Store
from windtunnel import composition, yaml_folders
from windtunnel.commands import compare
from windtunnel.commands.status import known_plan
from windtunnel.report.content import Content, gather
from windtunnel.trials import read_trial, trial_evidence

AXES = (
    "ladder.sizes=3",
    "ladder.budgets=2",
    "ladder.noise_seeds=[]",
    "axes.recipe.shape.qk_norm=[true,false]",
    "axes.ladder.seed=[0,1]",
)
VARIANT = "variant={recipe.shape.qk_norm: false}"


def run(root: Path, *words: str, width: int = 100) -> str:
    dirs = yaml_folders.config_dirs()
    words = (f"root={root}", "sweep=quickstart", *words)
    config = composition.load("compare", compare.Config, words, dirs)
    out = io.StringIO()
    assert compare.run(config, Console(file=out, width=width)) == 0
    return out.getvalue()


@pytest.fixture
def root(tmp_path: Path, known_sweep: ModuleType) -> Path:
    """A sweep with and without QK-norm, two seeds; without it every loss is 3% higher."""
    plan = known_sweep.make(tmp_path, *AXES)
    for planned in plan.runs:
        made = known_sweep.measured(planned.spec, noise_sd=0.0005)
        if planned.variant["recipe.shape.qk_norm"] is False:
            made = replace(made, loss_nats=1.03 * made.loss_nats)
        known_sweep.finish(tmp_path, planned.spec, made)
    return tmp_path


def test_a_trial_is_printed_and_kept(root: Path) -> None:
    text = run(root, VARIANT)
    assert "12 pairs" in text
    assert "it hurts at these sizes" in text
    assert "if the trend went on" in text, "a laptop says nothing of 1T"
    assert "and the leverage 0." in " ".join(text.split())
    printed, _, written = text.partition("Written: ")
    assert max(map(len, printed.splitlines())) <= 100
    assert "trial.json" in written.splitlines()[0], "a path is never broken"
    folder = root / "sweeps/quickstart/trials/qk_norm-False"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".csv", ".png", ".svg", ".pdf"}
    trial = build(Trial, json.loads((folder / "trial.json").read_text()))
    assert trial.mean.contains(0.0296)
    assert trial.leverage is not None
    assert trial.leverage.largest.high is not None
    assert trial.leverage.largest.high < 1, "3% more loss is worth less compute"
    stems = {path.stem for path in folder.iterdir()}
    assert stems == {"trial", "feature_trial", "leverage_compute"}
    assert [target.name for target in trial.targets] == ["16B", "100B", "1T"]


def test_a_baselines_repeated_seeds_have_partners_where_every_variant_is_repeated(
    tmp_path: Path, known_sweep: ModuleType
) -> None:
    """Four cells, and two more seeds of one: on one side alone, then on both."""
    axis, seeds = AXES[3], "ladder.noise_seeds=[1,2]"
    words = ("ladder.sizes=2", "ladder.budgets=2", seeds, axis)
    known_sweep.finish_all(tmp_path, known_sweep.make(tmp_path, *words))
    text = " ".join(run(tmp_path).split())
    assert "4 pairs of runs" in text
    assert "2 runs have no finished partner; they repeat a cell on one side alone" in text
    added = known_sweep.make(tmp_path, *words, "ladder.noise_of=every_variant")
    for planned in added.runs:
        if planned.spec.role == "noise" and planned.variant["recipe.shape.qk_norm"] is False:
            known_sweep.finish(tmp_path, planned.spec, known_sweep.measured(planned.spec))
    text = " ".join(run(tmp_path).split())
    assert "6 pairs of runs" in text
    assert "no finished partner" not in text


def test_no_number_is_cut_on_a_terminal_of_eighty_columns(root: Path) -> None:
    wide, narrow = (run(root, VARIANT, width=width) for width in (100, 80))
    assert [word for word in narrow.split() if "─" not in word] == [
        word for word in wide.split() if "─" not in word
    ]


def test_a_promotion_is_held_against_the_trials_of_its_features(root: Path) -> None:
    """Without QK-norm every loss is 3% higher: who leaves it out is told, who has it may pass."""
    config = known_plan(Store(root), "quickstart").config
    assert config is not None
    assert trial_evidence(root, config) == (), "none was made yet"
    run(root, VARIANT)
    (kept,) = trial_evidence(root, replaced(config, {"recipe.shape.qk_norm": True}))
    assert (kept.takes, kept.contradicts(0.0025)) == ("baseline", False)
    (without,) = trial_evidence(root, replaced(config, {"recipe.shape.qk_norm": False}))
    assert without.takes == "variant"
    assert without.contradicts(0.0025)
    assert without.gap.contains(0.0296)
    assert "recipe.shape.qk_norm=False against True +" in without.sentence
    broken = next((root / "sweeps").glob("*/trials/*/trial.json"))
    broken.write_text("{}")
    with pytest.raises(ConfigError, match=r"trial\.json"):
        trial_evidence(root, config)


def test_a_trial_of_the_version_before_still_speaks_of_a_promotion(root: Path) -> None:
    """Schema 1 had a multiplier of compute at the targets, and no leverage."""
    config = known_plan(Store(root), "quickstart").config
    assert config is not None
    run(root, VARIANT)
    (path,) = (root / "sweeps").glob("*/trials/*/trial.json")
    now = trial_evidence(root, config)
    kept = json.loads(path.read_text())
    kept["schema_version"] = 1
    del kept["leverage"]
    for target in kept["targets"]:
        del target["leverage"]
        target["multiplier"] = {"value": 0.7, "low": 0.6, "high": 0.8, "level": 0.9}
    path.write_text(json.dumps(kept))
    assert trial_evidence(root, config) == now
    assert read_trial(path).leverage is None


def test_the_report_shows_the_leverage_of_a_sweeps_trials(root: Path) -> None:
    def gathered() -> Content:
        return gather("quickstart", root, made_at="", version="1")

    assert "windtunnel compare" in leverage_compute(gathered().evidence).missing
    run(root, VARIANT)
    assert leverage_compute(gathered().evidence).figure is not None
    (path,) = (root / "sweeps").glob("*/trials/*/trial.json")
    path.write_text("{}")
    content = gathered()
    assert content.evidence.trials == ()
    assert any("trial.json" in problem for problem in content.problems)


def test_what_cannot_be_compared_is_named(root: Path, known_sweep: ModuleType) -> None:
    assert run(root) == run(root, VARIANT), "seeds are paired, so one axis is left"
    known_sweep.make(root, *AXES, "axes.recipe.training.clip_norm=[1.0,0.5]", "name=both")
    with pytest.raises(ConfigError, match="has several axes"):
        run(root, "sweep=both")
    with pytest.raises(ConfigError, match=r"not in sweep=quickstart\. Its axes"):
        run(root, "variant={recipe.shape.qk_norm: 3}")
    with pytest.raises(ConfigError, match="is the baseline itself"):
        run(root, "variant={recipe.shape.qk_norm: true}")
    plan = known_sweep.make(root, *AXES, "name=open")
    with pytest.raises(ConfigError, match="give both the same axes"):
        run(root, VARIANT, "baseline={ladder.seed: 0}")
    assert plan.runs
    known_sweep.make(root, "name=plain", "ladder.sizes=2")
    with pytest.raises(ConfigError, match="sweep=plain varies nothing"):
        run(root, "sweep=plain")


def test_values_that_move_together_are_one_feature(tmp_path: Path, known_sweep: ModuleType) -> None:
    zipped = ("zipped.recipe.training.clip_norm=[1.0,0.5]", "zipped.balance.rule=[none,sign]")
    plan = known_sweep.make(tmp_path, "ladder.sizes=2", "ladder.budgets=2", *zipped)
    known_sweep.finish_all(tmp_path, plan)
    whole = "variant={balance.rule: sign, recipe.training.clip_norm: 0.5}"
    assert "4 pairs" in run(tmp_path)
    # The order in which its paths are named is the sentence's; the folder's name has it too.
    by_one = run(tmp_path, "variant={balance.rule: sign}", f"out={tmp_path}/trial")
    assert by_one.splitlines()[2:] == run(tmp_path, whole, f"out={tmp_path}/trial").splitlines()[2:]


def test_a_trial_of_many_values_fits_a_folders_name() -> None:
    many = {f"recipe.shape.some_part_{n}": f"of this value {n}" for n in range(20)}
    slugs = {compare._slug(many), compare._slug({**many, "recipe.shape.some_part_19": "other"})}
    assert len(slugs) == 2
    assert max(map(len, slugs)) < 120


def test_unfinished_runs_are_counted_not_guessed(tmp_path: Path, known_sweep: ModuleType) -> None:
    plan = known_sweep.make(tmp_path, *AXES)
    with pytest.raises(FitError, match="0 pairs of finished runs"):
        run(tmp_path, VARIANT)
    without = [r for r in plan.runs if r.variant["recipe.shape.qk_norm"] is False]
    for planned in plan.runs:
        if planned not in without[:2]:
            made = known_sweep.measured(planned.spec)
            known_sweep.finish(tmp_path, planned.spec, made)
    assert "2 runs have no finished partner" in " ".join(run(tmp_path, VARIANT).split())


def test_a_row_of_what_lies_ahead_says_where_it_is_no_evidence() -> None:
    """A gap is a logarithm: -0.0101 of it are 1 % less loss."""
    gap = Prediction(
        value=-0.01005034, low=-0.02020271, high=0.0, level=0.9, extrapolation_ratio=40.0
    )
    ahead = Ahead(name="1T", flops=1.2e25, gap=gap, leverage=None, helps=0.97, is_far=True)
    shown = ["1T", "far", "1.20e25", "-1.00%", "-2.00% to +0.00%", "-", "-", "97%"]
    assert compare._ahead(ahead) == shown
    near = compare._ahead(replace(ahead, name="16B", is_far=False))
    assert near == ["16B", "", *shown[2:]]


def test_a_target_of_no_compute_is_refused() -> None:
    given = {"root": Path(), "sweep": "s", "variant": {}, "baseline": {}, "out": None}
    with pytest.raises(ConfigError, match=r"targets\.16B must be positive FLOPs, got 0"):
        compare.Config(**given, targets={"16B": 0.0}, level=0.9)  # type: ignore[arg-type]
    compare.Config(**given, targets={"16B": 1e-9}, level=0.9)  # type: ignore[arg-type]
