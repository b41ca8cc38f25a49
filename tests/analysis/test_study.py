"""The bundle: one JSON round trip, one screen, the hold-out, what is refused."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.allocation import exponents, log_optimal_size, optimum
from analysis.budgets import budget_ranks
from analysis.exclusion import Exclusion
from analysis.health import holdout_warnings
from analysis.holdout import HeldOutPoint
from analysis.laws import LossSurface
from analysis.noise import noise_floor
from analysis.points import Points, make_points, take
from analysis.settings import FitSettings
from analysis.study import Study, make_study
from analysis.summary_lines import judged_lines
from model.errors import ConfigError

Draw = Callable[..., Points]
QUICK = FitSettings(replicates=200, starts=500, holdout_budgets=3)


@pytest.fixture(scope="module")
def study(ladder_points: Draw) -> Study:
    return make_study(
        "quickstart",
        ladder_points(noise_sd=0.003),
        (Exclusion(label="run-99", reason="diverged: loss 9.1 at step 40"),),
        QUICK,
        protocol={"data": {"fingerprint": "abc"}},
        protocol_fingerprints=("p1",),
        convention="ling-1",
        source={"sweep": "quickstart"},
    )


def test_json_reads_back_into_the_same_object(study: Study, tmp_path: Path) -> None:
    assert Study.from_json(study.to_json()) == study
    path = tmp_path / "deep" / "fit.json"
    study.save(path)
    assert Study.load(path) == study
    assert [file.name for file in path.parent.iterdir()] == ["fit.json"]


def test_a_study_read_back_predicts_the_same(study: Study) -> None:
    again = Study.from_json(study.to_json())
    assert again.surface.predict(1e8, 1e8) == study.surface.predict(1e8, 1e8)
    assert again.compute_law.predict(1e16) == study.compute_law.predict(1e16)


def test_broken_files_are_named(study: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; run `windtunnel fit`"):
        Study.load(tmp_path / "fit.json")
    with pytest.raises(ConfigError, match="not JSON"):
        Study.from_json("{")
    with pytest.raises(ConfigError, match="fit schema 99"):
        Study.from_json(study.to_json().replace('"schema_version":2', '"schema_version":99', 1))


def test_summary_is_one_screen(study: Study) -> None:
    text = study.summary()
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= 45
    for word in ("alpha", "90% interval", "1 diverged: loss 9.1 at step 40 (run-99)", "hold-out",
                 "seeds differ by", "N* =", "optima", "huber on log-loss"):  # fmt: skip
        assert word in text, word
    far = " ".join(study.summary(flops=1e18).split())
    assert "C = 1e+18" in far
    assert "(the hold-outs) the law's form was not tried here" in far
    assert "what published tables needed up to 500 times" in far
    largest = study.surface.largest_compute
    further = " ".join(study.summary(flops=np.e**4 * largest).split())
    assert "the interval holds ±5.2% for it (in quadrature)" in further
    assert "500 times" not in further
    older = replace(study, surface=replace(study.surface, form_rate=0.0))
    assert "takes the law's form for granted" in " ".join(older.summary(flops=1e18).split())
    near = study.summary(flops=1.01 * study.surface.largest_compute)
    assert "untested" not in near, "no further out than the hold-outs"


def test_of_many_rows_to_be_forecast_the_furthest_are_shown(study: Study) -> None:
    """In a table's order the row a reader wants most, the largest run, may come last."""
    largest = study.surface.largest_compute
    places = [(times * largest) ** 0.5 for times in range(1, 15)]
    tests = tuple(
        HeldOutPoint(
            label=f"row {index}", size=place, tokens=place, flops=place**2, measured=1.0,
            forecast=study.surface.predict(place, place),
        )
        for index, place in enumerate(places)
    )  # fmt: skip
    lines = " ".join(" ".join(judged_lines(tests)).split())
    assert lines.index("row 13:") < lines.index("row 12:") < lines.index("row 2:")
    assert "row 1:" not in lines
    assert "0 of 14 measured losses inside" in lines
    assert lines.endswith("14 below their forecast; the 12 furthest out are shown")
    assert list(judged_lines(tests[:12]))[-1].endswith("12 below their forecast")


def test_hold_out_leaves_the_largest_budgets_out(study: Study) -> None:
    assert [holdout.budgets for holdout in study.holdouts] == [1, 2, 3]
    assert [len(holdout.points) for holdout in study.holdouts] == [1, 3, 6]
    largest = max(study.points.flops)
    assert study.holdouts[0].points[0].flops == largest
    for holdout in study.holdouts:
        held = {point.label for point in holdout.points}
        seen = [
            f for f, x in zip(study.points.flops, study.points.label, strict=True) if x not in held
        ]
        for point in holdout.points:
            assert point.forecast.extrapolation_ratio == pytest.approx(point.flops / max(seen))
        assert holdout.mean_abs_error < 0.02


def test_some_of_the_points_keep_every_column(ladder_points: Draw) -> None:
    points = replace(
        ladder_points(),
        size_variable="active_params",
        extra={"peak_lr": tuple(np.arange(23.0).tolist())},
        words={"set": tuple("abc"[row % 3] for row in range(23))},
    )
    assert take(points, range(len(points))) == points
    some = take(points, [7, 2])
    assert (some.label, some.size_variable) == (("run-7", "run-2"), "active_params")
    assert (some.extra, some.words) == ({"peak_lr": (7.0, 2.0)}, {"set": ("b", "c")})
    for name in ("size", "tokens", "loss", "flops", "cell", "budget"):
        column = getattr(points, name)
        assert getattr(some, name) == (column[7], column[2]), name


def test_hold_out_does_not_see_what_it_forecasts(ladder_points: Draw) -> None:
    """A largest run that is far off is a miss, and the warning says so."""
    points = ladder_points(noise_sd=0.002)
    loss = points.array("loss")
    loss[points.array("flops").argmax()] *= 1.1
    bent = make_points(
        size_variable=points.size_variable, label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=loss, flops=points.array("flops"),
    )  # fmt: skip
    study = make_study("x", bent, (), QUICK)
    first = study.holdouts[0]
    assert first.mean_abs_error == pytest.approx(0.09, abs=0.02)
    assert first.num_inside == 0
    assert any(w.status == "HOLDOUT_MISSED" for w in study.surface.warnings)


def test_one_budget_or_one_size_is_refused(ladder_points: Draw) -> None:
    points = ladder_points()
    iso = [i for i, f in enumerate(points.flops) if f == np.median(points.flops)]
    with pytest.raises(ConfigError, match=f"one budget only: all {len(iso)} runs used"):
        make_study("x", take(points, iso), (), QUICK)
    with pytest.raises(ConfigError, match="one size only: all 4 runs have 1e"):
        make_study("x", take(points, [0, 1, 2, 3]), (), QUICK)
    tokens = [i for i, d in enumerate(points.tokens) if d == points.tokens[0]]
    with pytest.raises(ConfigError, match="one token count only"):
        make_study("x", take(points, tokens), (), QUICK)


def test_noise_floor_pools_the_repeated_cells(ladder_points: Draw) -> None:
    points = ladder_points(noise_sd=0.01, seeds=400)
    noise = noise_floor(points)
    assert noise is not None
    assert (noise.degrees_of_freedom, noise.cells) == (400, 1)
    assert noise.sd == pytest.approx(0.01, rel=0.1)
    assert noise_floor(ladder_points(seeds=0)) is None


def test_runs_of_one_compute_are_a_cell_where_nothing_else_is_known() -> None:
    flops, loss = np.array([1e18, 1e18, 4e18]), np.array([3.0, 3.1, 2.8])
    points = make_points(size_variable="N", label=["a", "b", "c"], loss=loss, flops=flops)
    assert points.cell[0] == points.cell[1] != points.cell[2]
    noise = noise_floor(points)
    assert noise is not None
    assert (noise.cells, noise.degrees_of_freedom) == (1, 1)
    assert noise.sd == pytest.approx(np.log(3.1 / 3.0) / 2**0.5)


def test_budgets_are_groups_or_octaves() -> None:
    ladder = np.outer(2.0 ** np.arange(5), 2.0 ** np.arange(4)).ravel()
    assert max(budget_ranks(ladder)) == 7
    rough = ladder * np.exp(np.random.default_rng(0).uniform(-0.05, 0.05, 20))
    assert budget_ranks(rough) == budget_ranks(ladder)
    iso = np.repeat([1e18, 3e18, 1e19], 4)
    assert budget_ranks(iso) == (0,) * 4 + (1,) * 4 + (2,) * 4
    near = np.array([1.0, 1.1, 1.3 * 1.1, 1.3**2 * 1.1, 1.0])  # just over 1.2 times the one before
    assert budget_ranks(near) == (0, 0, 1, 2, 0)
    continuum = np.geomspace(1.0, 1000.0, 300)
    assert 9 <= max(budget_ranks(continuum)) <= 10
    assert budget_ranks(continuum)[-1] == max(budget_ranks(continuum))
    # One budget far above runs at will: octaves count from 1.2 times it, 76.8, so one ends at 1.2.
    assert budget_ranks(np.array([1.0, 1.1, 1.15, 1.3, 1.4, 1.6, 64.0])) == (0, 0, 0, 1, 1, 1, 2)


def test_optimum_has_intervals_around_the_truth(study: Study, truth: LossSurface) -> None:
    flops = 10 * max(study.points.flops)
    best, true = optimum(study.surface, flops), truth.optimum(flops)
    assert best.size.low < true.size < best.size.high
    assert best.tokens.low < true.tokens < best.tokens.high
    assert best.size.value * best.tokens.value == pytest.approx(flops)
    assert best.loss.contains(true.loss)
    size, tokens = exponents(study.surface)
    assert size.low < truth.optimal_size().b < size.high
    assert size.value + tokens.value == pytest.approx(1.0)
    with pytest.raises(
        ConfigError, match="an optimum needs the hoffmann law, this fit is of the compute law"
    ):
        optimum(study.compute_law, flops)


@pytest.mark.parametrize("per_size_token", [1.0, 6.0])
def test_at_an_optimum_the_tokens_are_as_uncertain_as_the_size(
    study: Study, per_size_token: float
) -> None:
    """The compute is given, so each replicate that has a larger model has as many tokens fewer."""
    law = replace(study.surface.law, flops_per_size_token=per_size_token)
    best = optimum(replace(study.surface, law=law), 10 * max(study.points.flops))
    assert best.size.value * best.tokens.value * per_size_token == pytest.approx(best.flops)
    assert best.size.low < best.size.value < best.size.high
    assert best.size.low * best.tokens.high * per_size_token == pytest.approx(best.flops)
    assert best.size.high * best.tokens.low * per_size_token == pytest.approx(best.flops)
    size, tokens = exponents(study.surface)
    assert (tokens.low, tokens.high) == (1 - size.high, 1 - size.low)


def test_replicates_have_the_optima_of_their_laws(study: Study) -> None:
    laws = [
        LossSurface(E=1.5, A=300.0, B=900.0, alpha=alpha, beta=beta, flops_per_size_token=6.0)
        for alpha, beta in ((0.3, 0.4), (0.5, 0.2))
    ]
    log_size_R, exponent_R = log_optimal_size(np.array([law.parameters for law in laws]))
    for law, log_size, exponent in zip(laws, log_size_R, exponent_R, strict=True):
        size = np.exp(log_size + exponent * np.log(1e20 / 6))
        assert size == pytest.approx(law.optimum(1e20).size)
    rows = np.array(study.surface.replicates)
    rows[: len(rows) // 4, 2] = 0.0  # B: more tokens would gain nothing
    fit = replace(study.surface, replicates=tuple(map(tuple, rows.tolist())))
    best = optimum(fit, 10 * max(study.points.flops))
    assert best.open_frac == pytest.approx(len(rows) // 4 / len(rows))


def test_an_optimum_that_does_not_exist_is_no_number(study: Study) -> None:
    law = replace(study.surface.law, B=0.0)
    with pytest.raises(ConfigError, match="no optimum"):
        optimum(replace(study.surface, law=law), 1e15)


ODD_LOSSES = {
    "all equal": lambda size, tokens: np.full_like(size, 2.0),
    "no size term": lambda size, tokens: 1.5 + 60 * tokens**-0.3,
    "no token term": lambda size, tokens: 1.5 + 50 * size**-0.3,
    "rising with size": lambda size, tokens: 2.0 + 1e-3 * size**0.3 + 60 * tokens**-0.3,
    "a straight line in log size": lambda size, tokens: 10 - 0.4 * np.log10(size),
    "noise alone": lambda size, tokens: np.exp(np.random.default_rng(1).uniform(-3, 3, len(size))),
}


@pytest.mark.parametrize("shape", ODD_LOSSES)
@pytest.mark.parametrize("loss", ["huber", "lad", "squares"])
def test_points_of_any_shape_end_in_a_study_with_warnings(
    shape: str, loss: str, ladder_points: Draw
) -> None:
    points = ladder_points(noise_sd=0.0)
    losses = ODD_LOSSES[shape](points.array("size"), points.array("tokens"))
    odd = make_points(
        size_variable="N", label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=losses, flops=points.array("flops"),
    )  # fmt: skip
    settings = FitSettings(replicates=100, starts=200, loss=loss)  # type: ignore[arg-type]
    study = make_study(shape, odd, (), settings)
    assert study.surface.warnings
    assert Study.from_json(study.to_json()) == study
    assert max(map(len, study.summary().splitlines())) <= 100


def test_without_a_size_term_the_compute_law_goes_through_the_best_runs(
    ladder_points: Draw,
) -> None:
    points = ladder_points(noise_sd=0.0)
    flat = make_points(
        size_variable="N", label=points.label, size=points.array("size"),
        tokens=points.array("tokens"), loss=ODD_LOSSES["no size term"](
            points.array("size"), points.array("tokens")), flops=points.array("flops"),
    )  # fmt: skip
    study = make_study("x", flat, (), QUICK)
    assert study.surface.coefficients["A"].value == 0
    assert "lowest loss of each budget" in study.compute_law.name
    assert isinstance(study.surface.law, LossSurface)
    with pytest.raises(ConfigError, match="loss falls with tokens alone"):
        study.surface.law.optimum(1e15)


def test_analysis_imports_quickly_and_without_torch() -> None:
    code = (
        "import sys, time; sys.modules['torch'] = None; began = time.process_time(); "
        "import analysis.study, analysis.tables, analysis.records; "
        "print(time.process_time() - began); "
        "assert not {'hydra', 'omegaconf', 'wandb', 'matplotlib'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 3.0, "1.5 s on a quiet machine"


def test_a_thousand_held_out_runs_are_judged_as_one(ladder_points: Callable[..., Points]) -> None:
    points = ladder_points(noise_sd=0.003, seeds=3)
    (holdout, *_) = make_study("many", points, (), QUICK).holdouts
    outside = [replace(point, measured=1.1 * point.forecast.high) for point in holdout.points]
    many = replace(holdout, points=tuple(outside * 1500))
    assert any(warning.status == "HOLDOUT_MISSED" for warning in holdout_warnings((many,)))
