"""The next command of a finished sweep, as it would be typed."""

import shlex
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from sweeps.plan import SEED
from sweeps.plan_file import skim_plan
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import compare, fit
from windtunnel.commands.status import known_plan
from windtunnel.composition import load
from windtunnel.next_step import LEARNING_RATE, after_training, as_option
from windtunnel.quoting import DEFAULT_ROOT, under
from windtunnel.yaml_folders import CONF_DIR, config_dirs

SIX_CELLS = ("ladder.sizes=2", "ladder.budgets=3", "ladder.noise_seeds=[]")
FIVE_RUNS = ("ladder.sizes=2", "ladder.budgets=2", "ladder.noise_seeds=[1]")


def advice(
    known_sweep: ModuleType, root: Path, *words: str, ladder: tuple[str, ...] = SIX_CELLS
) -> str:
    told = after_training(known_sweep.make(root, "name=s", *ladder, *words), DEFAULT_ROOT)
    skimmed = skim_plan(Store(root).plan_path("s"))
    assert told == after_training(skimmed, DEFAULT_ROOT), "a status skims its plan"
    return told


@pytest.mark.parametrize("folder", ["plain-1.x", "Grü\"ße o'the lab"])
def test_the_command_is_for_the_root_that_was_worked_in(
    folder: str, tmp_path: Path, known_sweep: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    made, root = tmp_path / "made", tmp_path / folder
    known_sweep.finish_all(made, known_sweep.make(made, "name=s", *SIX_CELLS))
    made.rename(root)
    (word,) = shlex.split(under(root))
    assert cli.main(["status", "sweep=s", word]) == 0
    told = shlex.split(capsys.readouterr().out.partition("Next: windtunnel ")[2])
    assert told == ["fit", "sweep=s", word]
    assert load("fit", fit.Config, told[1:], config_dirs(())).root == root
    assert cli.main(["status", "sweep=smoke", word]) == 2
    told = shlex.split(capsys.readouterr().err.partition("To train it: windtunnel ")[2])
    assert told == ["sweep", "sweep=smoke", word]


def test_the_root_that_every_command_takes_anyway_is_not_named() -> None:
    roots = {yaml.safe_load(path.read_text()).get("root") for path in CONF_DIR.glob("*.yaml")}
    assert {Path(root) for root in roots if root} == {DEFAULT_ROOT}
    assert under(DEFAULT_ROOT) == ""


NORM, CLIP, RULE = "recipe.shape.qk_norm", "recipe.training.clip_norm", "balance.rule"
FIT = "windtunnel fit sweep=s"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], FIT),
        ([f"axes.{SEED}=[0,1]"], FIT),
        ([f"axes.{LEARNING_RATE}=[1,2]"], f"{FIT} law=learning_rate"),
        (
            [f"axes.{NORM}=[true,false]"],
            f"windtunnel compare sweep=s, or {FIT} variant='{{{NORM}: false}}'",
        ),
        (
            [f"axes.{NORM}=[true,false]", f"axes.{SEED}=[0,1]", f"axes.{CLIP}=[0.5]"],
            f"windtunnel compare sweep=s, or {FIT} variant='{{{NORM}: false, {CLIP}: 0.5}}'",
        ),
        (
            [f"axes.{NORM}=[true,false]", f"axes.{CLIP}=[1.0,0.5]"],
            f"windtunnel compare sweep=s variant='{{{NORM}: false}}', or "
            f"{FIT} variant='{{{NORM}: false, {CLIP}: 0.5}}'",
        ),
        (
            [f"zipped.{NORM}=[true,false]", f"zipped.{CLIP}=[1.0,0.5]", f"axes.{SEED}=[0,1]"],
            f"windtunnel compare sweep=s, or {FIT} variant='{{{NORM}: false, {CLIP}: 0.5}}'",
        ),
        (
            [
                f"zipped.{NORM}=[true,false]",
                f"zipped.{CLIP}=[1.0,0.5]",
                "axes.balance.rule=[sign,none]",
            ],
            f"windtunnel compare sweep=s variant='{{{RULE}: none}}', or "
            f"{FIT} variant='{{{RULE}: none, {NORM}: false, {CLIP}: 0.5}}'",
        ),
    ],
)
def test_the_command_fits_what_was_varied_and_compare_takes_it(
    words: list[str], expected: str, tmp_path: Path, known_sweep: ModuleType
) -> None:
    assert advice(known_sweep, tmp_path, *words) == expected
    told = shlex.split(expected.partition(", or ")[0])
    if told[1] == "compare":
        config = load("compare", compare.Config, [f"root={tmp_path}", *told[2:]], config_dirs(()))
        plan = known_plan(Store(tmp_path), "s")
        assert plan.config is not None
        variant, baseline = compare._sides(
            plan.config, config.variant, config.baseline, config.root
        )
        assert variant != baseline


@pytest.mark.parametrize("ladder", [FIVE_RUNS, SIX_CELLS])
def test_a_fit_is_proposed_only_where_it_is_not_refused(
    ladder: tuple[str, ...], tmp_path: Path, known_sweep: ModuleType
) -> None:
    root = tmp_path / "tunnel"
    known_sweep.finish_all(root, known_sweep.make(root, "name=s", *ladder))
    by_fit = cli.main(["fit", "sweep=s", f"root={root}", "fit.starts=50", "fit.replicates=100"])
    told = advice(known_sweep, tmp_path / "other", ladder=ladder)
    assert (by_fit, told) == ((0, FIT) if ladder is SIX_CELLS else (3, "windtunnel report sweep=s"))
    trial = advice(known_sweep, tmp_path / "trial", f"axes.{NORM}=[true,false]", ladder=ladder)
    assert (FIT in trial) is (by_fit == 0)
    assert trial.startswith("windtunnel compare sweep=s")


@pytest.mark.parametrize(
    "value",
    ["sigmoid", "a.b:C", None, True, 2048, 1e-3, "a b", "true", "1e3", "007", "null", "", "-"],
)
def test_an_option_comes_back_as_it_was_said(value):
    variant = {"recipe.modules.experts": value}
    (word,) = shlex.split(as_option("variant", variant))
    config = load("compare", compare.Config, ["sweep=s", word], config_dirs(()))
    assert config.variant == variant
