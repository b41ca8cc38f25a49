"""`windtunnel fit`: sweeps, folders and tables in, one screen and fit.json out, one-line errors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.allocation import optimum
from analysis.fitting import fit_surface
from analysis.law_study import LawStudy
from analysis.laws import LossSurface
from analysis.optima_study import OptimaStudy
from analysis.points import points_from_records
from analysis.records import RecordSet, RunRecord
from analysis.study import Study
from model.accounting import CONVENTION, flops_per_token
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.described import described
from sweeps.events import SweepResult
from sweeps.plan import Plan, PlannedRun
from sweeps.plan_file import read_plan
from sweeps.store import Store
from windtunnel import cli
from windtunnel.commands import sweep as sweep_command
from windtunnel.runs_to_fit import _of_sweep

Capture = pytest.CaptureFixture[str]
LAW = LossSurface(E=1.8, A=60.0, B=80.0, alpha=0.35, beta=0.37)
QUICK = ["fit.replicates=100", "fit.starts=300"]


def record_of(run: PlannedRun, loss: float) -> RunRecord:
    """What a worker would have measured."""
    return RunRecord(
        **described(run.spec),
        status="done",
        loss_nats=loss,
        bits_per_byte=loss / np.log(2),
        train_loss_nats=loss,
        by_domain={},
        load_by_layer=(),
        wall_s=1.0,
        tokens_per_s=1.0,
    )


@pytest.fixture(scope="module")
def planned_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the plan of the smoke sweep, its corpus, and no run."""
    root = tmp_path_factory.mktemp("tunnel")
    patch = pytest.MonkeyPatch()
    patch.setattr(sweep_command, "run_sweep", lambda plan, store, *a, **k: SweepResult())
    cli.main(["sweep", "sweep=smoke", f"root={root}"])
    patch.undo()
    return root


@pytest.fixture
def measured(planned_root: Path, tmp_path: Path) -> tuple[Path, Plan]:
    """The same with a record for every run, drawn from LAW with the noise of 0.2%."""
    plan_path = Store(planned_root).plan_path("smoke")
    store = Store(tmp_path)
    store.plan_path("smoke").parent.mkdir(parents=True)
    store.plan_path("smoke").write_bytes(plan_path.read_bytes())
    plan = read_plan(plan_path)
    rng = np.random.default_rng(0)
    for run in plan.runs:
        size = flops_per_token(run.spec.model, run.spec.train.sequence_length).house
        loss = float(LAW(size, run.spec.train.tokens)) * np.exp(0.002 * rng.standard_normal())
        write(store, record_of(run, float(loss)))
    return tmp_path, plan


def write(store: Store, record: RunRecord) -> None:
    folder = store.run_dir(record.run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "record.json").write_text(json.dumps(to_plain(record)), encoding="utf-8")


def fit(root: Path, *words: str) -> int:
    return cli.main(["fit", f"root={root}", *QUICK, *words])


def error_of(capsys: Capture) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def test_a_sweep_gives_one_screen_and_a_study(measured: tuple[Path, Plan], capsys: Capture) -> None:
    root, plan = measured
    assert fit(root, "sweep=smoke") == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines()[:-1])) <= 100
    assert f"Fit of smoke: {len(plan.runs)} points" in text
    study = Study.load(root / "sweeps/smoke/fit.json")
    assert set(study.points.label) == {run.run_id for run in plan.runs}
    assert study.convention == CONVENTION
    assert study.protocol["data"]["kind"] == plan.runs[0].spec.corpus.kind
    assert study.points.size_variable == "flops_per_token"
    flops = study.points.array("flops")
    np.testing.assert_allclose(flops, study.points.array("size") * study.points.array("tokens"))
    assert study.noise is not None
    assert 0 < study.noise.sd < 0.01


def test_other_size_variables(measured: tuple[Path, Plan]) -> None:
    root, _ = measured
    assert fit(root, "sweep=smoke", "size=active_params", f"out={root}/other.json") == 0
    study = Study.load(root / "other.json")
    assert study.points.size_variable == "active_params"
    law = study.surface.law
    assert isinstance(law, LossSurface)
    assert law.flops_per_size_token > 1


def test_runs_without_a_record_are_counted_with_their_state(
    measured: tuple[Path, Plan], capsys: Capture
) -> None:
    root, plan = measured
    store = Store(root)
    lost, diverged = plan.runs[0].run_id, plan.runs[1].run_id
    (store.run_dir(lost) / "record.json").unlink()
    bad = replace(record_of(plan.runs[1], 9.0), status="diverged", reason="loss 9 at step 3")
    write(store, bad)
    assert fit(root, "sweep=smoke") == 0
    assert "2 left out" in capsys.readouterr().out
    study = Study.load(root / "sweeps/smoke/fit.json")
    reasons = {e.label: e.reason for e in study.exclusions}
    assert reasons == {lost: "planned", diverged: "diverged: loss 9 at step 3"}
    # A long reason is shortened on the screen, and whole in the file that the screen names.
    long = f"no such file: /data/{'folder/' * 60}train.jsonl"
    write(store, replace(bad, reason=long))
    assert fit(root, "sweep=smoke") == 0
    said = capsys.readouterr().out
    told = " ".join(said.split())
    assert all(len(line) <= 100 for line in said.splitlines() if "written" not in line)
    assert "train.jsonl" in told
    assert "folder/" * 20 not in told.replace(" ", "")
    assert "shortened here; the file written below has all, whole, as exclusions" in told
    assert f"1 planned ({lost})" in told
    kept = Study.load(root / "sweeps/smoke/fit.json").exclusions
    assert f"diverged: {long}" in {e.reason for e in kept}


def test_mixed_protocols_are_refused_by_name(measured: tuple[Path, Plan], capsys: Capture) -> None:
    root, plan = measured
    record = record_of(plan.runs[2], 3.0)
    other = replace(
        record, protocol={**record.protocol, "precision": "fp8"}, protocol_fingerprint="other"
    )
    write(Store(root), other)
    assert fit(root, "sweep=smoke") == 2
    message = error_of(capsys)
    assert "precision" in message
    assert plan.runs[2].run_id in message
    assert fit(root, "sweep=smoke", "allow=[precision]") == 0
    study = Study.load(root / "sweeps/smoke/fit.json")
    assert len(study.protocol_fingerprints) == 2


def test_a_sweep_whose_runs_all_failed(planned_root: Path, tmp_path: Path, capsys: Capture) -> None:
    store = Store(tmp_path)
    store.plan_path("smoke").parent.mkdir(parents=True)
    store.plan_path("smoke").write_bytes(Store(planned_root).plan_path("smoke").read_bytes())
    assert fit(tmp_path, "sweep=smoke") == 2
    assert "none of its 11 runs can be fitted" in error_of(capsys)


def test_a_folder_of_runs(measured: tuple[Path, Plan], capsys: Capture) -> None:
    root, plan = measured
    assert fit(root, f"records={root}/runs") == 0
    assert f"{len(plan.runs)} points" in capsys.readouterr().out
    assert (root / "fits/runs/fit.json").exists()


def test_nothing_or_both_named(measured: tuple[Path, Plan], capsys: Capture) -> None:
    root, _ = measured
    assert fit(root) == 2
    assert f"Sweeps under {root}: smoke" in error_of(capsys)
    assert fit(root, "sweep=smoke", "records=x.csv") == 2
    assert "one of the two" in error_of(capsys)
    assert fit(root, "sweep=smok") == 2
    assert "no such sweep" in error_of(capsys)


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Path]:
    """A CSV of 40 runs from LAW; keyword arguments replace a column's first cell."""

    def make(rows: int = 40, **cells: object) -> Path:
        rng = np.random.default_rng(2)
        size = np.repeat(1e6 * 2.0 ** np.arange(8), 5)[:rows]
        tokens = np.tile(1e6 * 2.0 ** np.arange(5), 8)[:rows]
        loss = LAW(size, tokens) * np.exp(0.003 * rng.standard_normal(len(size)))
        lines = [
            [str(cells[k]) if i == 0 and k in cells else f"{v:.17g}" for k, v in row.items()]
            for i, row in enumerate(
                {"N": n, "D": d, "L": x} for n, d, x in zip(size, tokens, loss, strict=True)
            )
        ]
        path = tmp_path / "runs.csv"
        path.write_text("N,D,L\n" + "\n".join(",".join(line) for line in lines) + "\n")
        return path

    return make


COLUMNS = ["columns.params=N", "columns.tokens=D", "columns.loss=L"]


def test_any_table(table: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    path = table()
    assert fit(tmp_path, f"records={path}", *COLUMNS, "at_flops=1e18") == 0
    text = capsys.readouterr().out
    assert "C = 1e+18" in text
    study = Study.load(tmp_path / "fits/runs/fit.json")
    assert study.source["columns"]["params"] == "N"
    assert study.surface.coefficients["alpha"].contains(LAW.alpha)
    assert str(tmp_path / "fits/runs/fit.json") in text


def test_laws_beside_a_law_of_ones_own_choice(
    table: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    words = [*COLUMNS, "law=gadre", "laws=[hoffmann,gadre]"]
    assert fit(tmp_path, f"records={table()}", *words) == 0
    assert "Laws by hold-out error" in capsys.readouterr().out
    (path,) = (tmp_path / "fits").rglob("*.json")
    comparison = LawStudy.from_json(path.read_text()).comparison
    assert comparison is not None
    assert {score.name for score in comparison.scores} == {"hoffmann", "gadre"}


def test_laws_and_choices_beside_the_fit(
    table: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    words = [*COLUMNS, "laws=[hoffmann,gadre]", "sensitivity=true"]
    assert fit(tmp_path, f"records={table()}", *words) == 0
    text = capsys.readouterr().out
    assert "Laws by hold-out error" in text
    assert "use gadre:" in text or "use hoffmann:" in text
    assert "Other defensible choices at C =" in text
    assert "over runs              over seeds      profile likelihood" in text
    assert "over seeds: none, no seed was repeated" in text
    assert max(map(len, text.splitlines()[:-1])) <= 100
    study = Study.load(tmp_path / "fits/runs/fit.json")
    assert study.comparison is not None
    assert study.sensitivity is not None
    assert study.sensitivity.choices[0].group == "in use"


@pytest.mark.parametrize(
    ("cells", "words", "code", "message"),
    [
        ({}, ["columns.loss=Loss"], 2, "no column 'Loss'"),
        ({"L": "abc"}, [], 2, "is not a number in 1 of 40 rows: row 2 ('abc')"),
        ({"L": "-3"}, [], 2, "is not positive in 1 of 40 rows: row 2"),
        ({"N": "1"}, [], 2, "seems to hold two units: row 2 of 40"),
        ({}, ["fit.level=90"], 2, "fit: level must be between 0 and 1, got 90"),
        ({}, ["fit.loss=hubert"], 2, "fit.loss: 'hubert' is not one of: huber, lad, squares"),
        ({}, ["filter.N=7"], 2, "no row of"),
        ({}, ["variables.granularity=G"], 2, "variables.granularity: no column 'G'"),
        ({}, ["laws=[abnar]"], 2, "variables.activation_ratio=COLUMN"),
        ({}, ["law=abnar"], 2, "variables.activation_ratio=COLUMN"),
        ({}, ["law=kaplan"], 2, "law=kaplan: no such law. There are: hoffmann, gadre"),
        ({}, ["law=gadre", "at_flops=1e20"], 2, "at_flops is about the optimum of law=hoffmann"),
        ({}, ["law=isoflop", "laws=[gadre]"], 2, "test and laws are for the others"),
        ({}, ["law=gadre", "at.flops=1e20"], 2, "at.tokens_per_size: missing"),
        ({}, ["fit.held.A=1"], 2, "fit.held.A: the hoffmann law can hold E, alpha, beta"),
        ({}, ["test.N=7"], 2, "test.N=7: no row of"),
        ({}, ["table.drop_highest_losses=35"], 3, "5 points for the 5 parameters"),
    ],
)
def test_bad_tables_give_one_line(
    table: Callable[..., Path],
    cells: dict[str, str],
    words: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    capsys: Capture,
) -> None:
    path = table(**cells)
    assert fit(tmp_path, f"records={path}", *COLUMNS, *words) == code
    assert message in error_of(capsys)
    assert not (tmp_path / "fits").exists()


def test_one_budget_only(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "iso.csv"
    sizes = 1e7 * 2.0 ** np.arange(8)
    path.write_text(
        "N,D,L\n" + "\n".join(f"{n},{1e18 / n},{float(LAW(n, 1e18 / n))}" for n in sizes)
    )
    assert fit(tmp_path, f"records={path}", *COLUMNS) == 2
    assert "one budget only: all 8 runs" in error_of(capsys)


@pytest.mark.parametrize("law", ["hoffmann", "compute"])
def test_one_loss_only(law: str, tmp_path: Path, capsys: Capture) -> None:
    """It was fitted, to E = 3 (3 to 3), and its hold-outs missed by rounding."""
    path = tmp_path / "flat.csv"
    cells = [(n, d) for n in (1e6, 2e6, 4e6) for d in (2e7, 4e7, 8e7)]
    path.write_text("N,D,L\n" + "\n".join(f"{n},{d},3.0" for n, d in cells))
    assert fit(tmp_path, f"records={path}", *COLUMNS, f"law={law}") == 2
    assert "all 9 rows have a loss of 3" in error_of(capsys)


def test_any_law_and_any_place(table: Callable[..., Path], tmp_path: Path, capsys: Capture) -> None:
    words = [*COLUMNS, "law=gadre", "at.params=1e9", "at.tokens=2e10", "test.N=1.28e8", *QUICK]
    assert fit(tmp_path, f"records={table()}", *words) == 0
    text = capsys.readouterr().out
    assert "L = E + (a·m^eta + b·m^-eta)·C^-eta" in text
    assert "forecast    flops 1.2e+20, tokens_per_size 20:" in text
    assert "measured losses inside" in text
    study = LawStudy.from_json((tmp_path / "fits/runs/fit.json").read_text())
    assert study.forecasts[0].at == {"flops": 1.2e20, "tokens_per_size": 20.0}
    assert len(study.tests) == 5
    assert {e.reason for e in study.exclusions} == {"test: forecast, not fitted"}


@pytest.mark.parametrize(
    ("header", "row", "words", "law"),
    [
        ("C,L", lambda n, d: (6 * n * d, 1.6 + 95 * (6 * n * d) ** -0.094),
         ["columns.flops=C"], "compute"),
        ("N,L", lambda n, d: (n, 1.6 + 480 * n**-0.35), ["columns.params=N"], "size"),
        ("D,L", lambda n, d: (d, 1.6 + 2100 * d**-0.37), ["columns.tokens=D"], "tokens"),
    ],
)  # fmt: skip
def test_a_table_of_one_variable(
    header: str, row: Callable[[float, float], tuple[float, float]], words: list[str], law: str,
    tmp_path: Path, capsys: Capture,
) -> None:  # fmt: skip
    path = tmp_path / "one.csv"
    places = [(1e7 * 2**i, 2e8 * 2**i) for i in range(10)]
    path.write_text(f"{header}\n" + "\n".join(f"{x!r},{y!r}" for x, y in (row(*p) for p in places)))
    every = [f"records={path}", *words, "columns.loss=L", *QUICK]
    assert fit(tmp_path, *every) == 2
    assert f"alone fit law={law}" in error_of(capsys)
    assert fit(tmp_path, *every, f"law={law}") == 0
    study = LawStudy.from_json((tmp_path / "fits/one/fit.json").read_text())
    assert float(study.fit.law.parameters[0]) == pytest.approx(1.6, rel=1e-6)


def test_the_best_size_of_each_budget(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "iso.csv"
    rows = [
        (6 * c, n, float(LAW(n, c / n)))
        for c in (1e15, 1e16, 1e17)
        for n in (c**0.5 / 3) * 2.0 ** np.arange(-3, 4)
    ]
    path.write_text("C,N,L\n" + "\n".join(",".join(map(repr, map(float, r))) for r in rows))
    words = ["columns.flops=C", "columns.params=N", "columns.loss=L", "law=isoflop", *QUICK]
    assert fit(tmp_path, f"records={path}", *words, "at.flops=1e20") == 0
    text = capsys.readouterr().out
    assert text.count(" inside ") == 3
    assert "), parabola, 3 optima" in " ".join(text.split())
    assert "forecast    N*, parabola:" in text
    study = OptimaStudy.from_json((tmp_path / "fits/iso/fit.json").read_text())
    assert len(study.budgets) == 3


def test_a_count_without_the_embedding_is_named(
    table: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    path = table()
    header, *lines = path.read_text().splitlines()
    rest = "\n".join(f"{line},{float(line.split(',')[0]) * 0.7}" for line in lines)
    path.write_text(f"{header},non_emb_params\n{rest}\n")
    advice = "Note: N = N; the table has non_emb_params too."
    others = ["columns.tokens=D", "columns.loss=L", *QUICK]
    assert fit(tmp_path, f"records={path}", "columns.params=N", *others) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert advice in said
    assert "(columns.params=non_emb_params)" in said
    assert fit(tmp_path, f"records={path}", "columns.params=non_emb_params", *others) == 0
    assert "Note: N =" not in capsys.readouterr().out


def test_settings_in_which_repeats_differ_are_named(tmp_path: Path, capsys: Capture) -> None:
    """A grid of learning rates is no set of seeds; a measured column and the seed are passed by."""
    rng, path = np.random.default_rng(3), tmp_path / "rates.csv"
    lines = ["N,D,L,lr,wall_s,seed"]
    for size in 1e6 * 2.0 ** np.arange(4):
        for tokens in 2e7 * 2.0 ** np.arange(4):
            for index, rate in enumerate((1e-3, 2e-3, 4e-3)):
                loss = float(LAW(size, tokens)) * (1.01 + 0.01 * index)
                lines.append(f"{size},{tokens},{loss},{rate},{rng.uniform(1, 9)},{index}")
    path.write_text("\n".join(lines) + "\n")
    words = [f"records={path}", "columns.params=N", "columns.tokens=D", "columns.loss=L"]
    assert fit(tmp_path, *words) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "MIXED_REPEATS: runs of one size and token count differ in lr too" in said
    for best in ("filter.lr=0.001", "table.lowest_of_cells=true"):
        assert fit(tmp_path, *words, best) == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "MIXED_REPEATS" not in said
        assert "16 points, 32 left out" in said


def test_a_variant_of_a_sweep_that_varies_nothing_is_refused(
    measured: tuple[Path, Plan], capsys: Capture
) -> None:
    root, _ = measured
    assert fit(root, "sweep=smoke", "variant={recipe.shape.num_experts: 8}") == 2
    said = capsys.readouterr().err
    assert "sweep=smoke varies nothing" in said
    assert "leave out variant=" in said


def test_variants_are_fitted_together_by_a_law_of_what_they_vary_alone(
    measured: tuple[Path, Plan],
) -> None:
    root, plan = measured
    halves = tuple(
        replace(run, variant={"recipe.shape.granularity": 4 * (1 + row % 2)})
        for row, run in enumerate(plan.runs)
    )
    split, store = replace(plan, runs=halves), Store(root)
    with pytest.raises(ConfigError, match="holds 2 variants; a fit is of one") as caught:
        _of_sweep(split, store, {}, law="hoffmann")
    assert "Its axes: recipe.shape.granularity: [4, 8]" in str(caught.value)
    everything = _of_sweep(split, store, {}, law="krajewski").records
    one = _of_sweep(split, store, {"recipe.shape.granularity": 8}, law="hoffmann").records
    assert {record.run_id for record in one} == {run.run_id for run in halves[1::2]}
    assert len(everything) == len(halves)


def test_a_table_is_drawn_on_request_and_a_sweep_by_its_report(
    tmp_path: Path, capsys: Capture
) -> None:
    rows = [f"{n},{d},{LAW(n, d)}" for n in (1e6, 3e6, 9e6) for d in (1e7, 4e7, 1.6e8)]
    table = tmp_path / "runs.csv"
    table.write_text("\n".join(["N,D,L", *rows]))
    named = [f"records={table}", "columns.params=N", "columns.tokens=D", "columns.loss=L"]
    command = ["fit", *named, f"root={tmp_path}", "figures=true", *QUICK]
    assert cli.main(command) == 0
    folder = tmp_path / "fits" / "runs" / "fit_figures"
    assert str(folder) in capsys.readouterr().out
    names = {"loss_compute", "isoflop", "contours", "loss_tokens", "residuals"}
    kinds = ("png", "svg", "pdf", "csv")
    assert {path.name for path in folder.iterdir()} == {f"{n}.{k}" for n in names for k in kinds}
    assert cli.main(["fit", "sweep=mine", f"root={tmp_path}", "figures=true"]) == 2
    assert "windtunnel report sweep=mine" in capsys.readouterr().err
    assert cli.main([*command, "law=gadre"]) == 2
    assert "law=hoffmann" in capsys.readouterr().err


def test_a_sweep_s_other_sizes_are_choices_too(finished: Any, tmp_path: Path) -> None:
    """Each recommends what a fit of its own in that size does."""
    root = tmp_path / "tunnel"
    shutil.copytree(finished.root, root, symlinks=True)
    words = ["sweep=quickstart", f"root={root}", "sensitivity=true", "at_flops=2e12"]
    assert cli.main(["fit", *words, *QUICK]) == 0
    study = Study.load(root / "sweeps/quickstart/fit.json")
    assert study.sensitivity is not None
    assert study.sensitivity.flops == 2e12
    by_size = {c.name: c for c in study.sensitivity.choices if c.group == "size"}
    sizes = ("active_params", "active_non_embedding_params", "total_params")
    assert list(by_size) == [f"N = {size}" for size in sizes]
    records = RecordSet(records=tuple(finished.records), excluded=())
    for size in sizes:
        points, _ = points_from_records(records, size)
        best = optimum(fit_surface(points, study.settings), 2e12)
        chosen = by_size[f"N = {size}"]
        assert chosen.tokens == pytest.approx(best.tokens.value, rel=1e-3)
        assert chosen.flops_per_token == pytest.approx(2e12 / best.tokens.value, rel=1e-3)
    assert len({choice.tokens for choice in by_size.values()}) == 3
