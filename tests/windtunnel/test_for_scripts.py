"""``json=true``: one object on standard output and nothing else, documented, no interval lost."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from math import log
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.study import Study
from model.accounting import count_params, flops_per_token
from windtunnel import cli
from windtunnel.commands import doctor
from windtunnel.commands.model import Config as ModelCommand
from windtunnel.composition import load
from windtunnel.for_scripts import VERSIONS, write_answer
from windtunnel.ledger import ledger_of
from windtunnel.yaml_folders import config_dirs

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "scripts.md"
QUICK = ("fit.starts=200", "fit.replicates=100")
BY_NAME = {
    *("counts", "params_by_group", "flops_per_token_by_convention", "by_kind", "measured"),
    *("coefficients", "ranges", "fits", "planes", "at", "failed_gates", "baseline", "variant"),
}
"""Mappings whose keys are names and no fields of ours."""
WHOLE = {"parallel", "at", "failed_gates", "baseline", "variant", "measured", "counts"}
"""Of these what stands below the names is no field either."""
ESTIMATE = {"value", "low", "high", "level", "extrapolation_ratio"}
Capture = pytest.CaptureFixture[str]


def answer_of(capsys: Capture, *words: str, code: int = 0) -> Any:
    capsys.readouterr()
    assert cli.main([*words, "json=true"]) == code
    shown = capsys.readouterr()
    assert shown.err == ""
    (line,) = shown.out.splitlines()
    found = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert found["schema"] == f"{words[0]}/{VERSIONS[words[0]]}"
    return found


def fields(found: Any, names_below: bool = False) -> Iterator[str]:
    """Every field's name in an answer, at any depth."""
    if isinstance(found, list):
        for item in found:
            yield from fields(item)
    if isinstance(found, dict):
        for name, value in found.items():
            if not names_below:
                yield name
            if name not in WHOLE or names_below:
                yield from fields(value, names_below=not names_below and name in BY_NAME)


def intervals(found: Any) -> Iterator[dict[str, Any]]:
    if isinstance(found, list):
        for item in found:
            yield from intervals(item)
    if isinstance(found, dict):
        if "value" in found:
            yield found
        for item in found.values():
            yield from intervals(item)


def documented(verb: str) -> set[str]:
    (section,) = re.findall(
        rf"^## {verb}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.DOTALL | re.MULTILINE
    )
    return set(re.findall(r"`([a-z][a-z_]+)`", section)) | {"schema"}


@pytest.fixture(scope="module")
def trial(known_sweep: ModuleType, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a finished trial of one feature."""
    root = tmp_path_factory.mktemp("trial") / "tunnel"
    shutil.copytree(finished.root / "data", root / "data")
    axes = ("axes.recipe.shape.qk_norm=[true,false]", "axes.ladder.seed=[0,1]")
    ladder = ("ladder.sizes=3", "ladder.budgets=2", "ladder.noise_seeds=[]")
    plan = known_sweep.make(root, *ladder, *axes)
    known_sweep.finish_all(root, plan)
    return root


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[doctor.Finding]:
    """A machine that nothing is wrong with; measuring one takes a minute."""
    found = [
        doctor.Finding(name="CPU", found="2 cores", measured={"usable_cores": 2}),
        doctor.Finding(name="disk", found="1GB", advice="free some"),
    ]
    monkeypatch.setattr(doctor, "examine", lambda config: iter(found))
    return found


def grid_of_rates(folder: Path) -> tuple[str, ...]:
    """A table of sizes, tokens and learning rates by known laws, and how it is read."""
    rows = [
        f"{n:g},{d:g},{rate:g},{int(n > 5e6)},{loss * (1 + 0.01 * log(rate / best) ** 2)}"
        for n in (1e6, 2e6, 4e6, 8e6)
        for d in (1e8, 2e8, 4e8)
        for loss in [1 + 400 * n**-0.4 + 300 * d**-0.35]
        for best in [1.1e-2 * (n / 1e6) ** -0.3]
        for rate in (2.5e-3, 5e-3, 1e-2, 2e-2)
    ]
    path = folder / "rates.csv"
    path.write_text("\n".join(["N,D,peak_lr,big,L", *rows]))
    columns = ("columns.params=N", "columns.tokens=D", "columns.loss=L")
    return (f"records={path}", *columns, f"out={folder / 'fit.json'}", *QUICK)


def answers(verb: str, capsys: Capture, root: Path, trial: Path, tmp_path: Path) -> list[Any]:
    """What the command says in each of its ways."""
    at = f"root={root}"
    own = {
        "status": [("sweep=quickstart", at), (at,)],
        "fit": [
            ("sweep=quickstart", at, *QUICK, "at.size=1e7", "at.tokens=1e9"),
            (*grid_of_rates(tmp_path), at, "test.big=1", "figures=true"),
            (*grid_of_rates(tmp_path), at, "law=learning_rate", "at.params=1e7", "at.tokens=1e9"),
            (*grid_of_rates(tmp_path), at, "law=isoflop", "at.flops=1e16"),
            (*grid_of_rates(tmp_path), at, "law=tokens", "at.tokens=1e9"),
        ],
        "compare": [("sweep=quickstart", f"root={trial}", "variant={recipe.shape.qk_norm: false}")],
        "ledger": [(at,)],
        "model": [("model=tiny",)],
        "machine": [
            ("parallel=ling_1t",),
            ("model=ling_mini", "hardware=h200", "gpus=1", "parallel=one_gpu"),
        ],
        "doctor": [(at,)],
    }
    return [answer_of(capsys, verb, *words) for words in own[verb]]


@pytest.mark.parametrize("verb", VERSIONS)
def test_every_field_is_documented_and_every_estimate_has_its_interval(
    verb: str,
    finished: Any,
    trial: Path,
    examined: object,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    root = shutil.copytree(finished.root, tmp_path / "tunnel", symlinks=True)
    found = answers(verb, capsys, root, trial, tmp_path)
    told = {name for one in found for name in fields(one)} - ESTIMATE
    assert told - documented(verb) == set()
    for one in intervals(found):
        assert {"value", "low", "high", "level"} <= set(one) <= ESTIMATE
        assert one["value"] is None or one["low"] <= one["value"] <= one["high"]


def test_the_laws_are_those_of_the_file(finished: Any, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "fit.json"
    words = ("fit", "sweep=quickstart", f"root={finished.root}", f"out={out}", *QUICK)
    found = answer_of(capsys, *words, "fit.level=0.8", "at.size=1e7", "at.tokens=1e9")
    study = Study.load(Path(found["written"]))
    assert Path(found["written"]) == out
    for name, estimate in study.surface.coefficients.items():
        told = found["fits"]["loss"]["coefficients"][name]
        assert told == {"value": estimate.value, "low": estimate.low, "high": estimate.high} | {
            "level": 0.8
        }
    (asked,) = study.forecasts
    (told,) = found["forecasts"]
    assert told["forecast"]["low"] == asked.forecast.low
    assert told["forecast"]["extrapolation_ratio"] == asked.forecast.extrapolation_ratio
    told_of = {(one["status"], one["sentence"]) for one in found["fits"]["loss"]["warnings"]}
    assert told_of == {(one.status, one.sentence) for one in study.surface.warnings}


def test_the_ledger_is_told_as_it_stands(finished: Any, tmp_path: Path, capsys: Capture) -> None:
    root = shutil.copytree(finished.root, tmp_path / "tunnel", symlinks=True)
    (told,) = answer_of(capsys, "ledger", f"root={root}")["forecasts"]
    (entry,) = ledger_of(root).read().entries
    assert told["forecast_nats"]["high"] == entry.forecast.forecast.high
    assert told["outcome"]["loss_nats"] == finished.outcome.loss_nats
    assert told["is_evidence"] is True
    path = root / "ledger.jsonl"
    path.write_text(path.read_text().replace('"train_flops": ', '"train_flops": 1'))
    damaged = answer_of(capsys, "ledger", f"root={root}", code=2)
    assert damaged["is_damaged"]
    assert "altered" in damaged["problems"][0]
    assert damaged["forecasts"][0]["is_evidence"] is False


def test_a_forecast_closed_by_a_script(tmp_path: Path, capsys: Capture) -> None:
    words = ("fit", *grid_of_rates(tmp_path), f"root={tmp_path}")
    name = answer_of(capsys, *words, "at.params=1e7", "at.tokens=8e8", "register=true")[
        "registered"
    ]
    close = ("ledger", f"root={tmp_path}", f"close={name}", "loss_nats=1.9", "source=x")
    first, again = answer_of(capsys, *close), answer_of(capsys, *close)
    assert first["closed"]["outcome"]["stated_by"] == "x"
    assert (first["was_closed_before"], again["was_closed_before"]) == (False, True)
    assert set(fields(first)) - ESTIMATE <= documented("ledger")


def test_the_trial_is_that_of_its_file(trial: Path, capsys: Capture) -> None:
    found = answer_of(capsys, "compare", "sweep=quickstart", f"root={trial}", VARIANT)
    kept = json.loads(Path(found["written"]).read_text())
    assert found["gap_log_loss"] == kept["mean"]
    assert [one["gap_log_loss"] for one in found["targets"]] == [
        one["gap"] for one in kept["targets"]
    ]
    assert found["num_pairs"] == len(kept["pairs"])


VARIANT = "variant={recipe.shape.qk_norm: false}"


def test_a_count_is_not_rounded(capsys: Capture) -> None:
    found = answer_of(capsys, "model", "model=ling_mini")
    config = load("model", ModelCommand, ["model=ling_mini"], config_dirs())
    assert found["total_params"] == count_params(config.model).total
    assert found["train_flops"] == flops_per_token(config.model, 4096).house * config.tokens
    assert sum(layer["params"] for layer in found["layers"]) + sum(
        found["params_by_group"][name] for name in ("embedding", "output")
    ) == pytest.approx(found["total_params"], rel=1e-6)


def test_what_ails_a_machine_is_the_exit_code_too(
    examined: list[doctor.Finding], capsys: Capture
) -> None:
    assert answer_of(capsys, "doctor")["can_run"] is True
    examined.append(doctor.Finding(name="torch", found="missing", advice="install", fatal=True))
    found = answer_of(capsys, "doctor", code=2)
    assert found["can_run"] is False
    assert found["findings"][0]["measured"] == {"usable_cores": 2}


def test_a_number_that_is_none_is_null(capsys: Capture) -> None:
    write_answer("model", {"a": float("inf"), "b": [float("nan"), 1.0]})
    assert json.loads(capsys.readouterr().out) == {"schema": "model/1", "a": None, "b": [None, 1]}


def test_a_process_prints_nothing_else_and_a_mistake_stays_on_stderr(tmp_path: Path) -> None:
    def process(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "windtunnel.cli", *words, "json=true"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    told = process("doctor", "measure_s=0.01", f"root={tmp_path}")
    assert told.stderr == ""
    assert json.loads(told.stdout)["findings"]
    wrong = process("compare", "sweep=none", f"root={tmp_path}")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "no such sweep" in wrong.stderr
