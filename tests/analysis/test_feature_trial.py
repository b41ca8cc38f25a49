"""Feature trials: a known gap comes back with honest intervals, at equal compute, far ahead too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from analysis.cell_line import cell_line
from analysis.feature_trial import Trial, percent, run_trial
from analysis.line import Line
from analysis.plots_leverage import leverage_of_trials
from analysis.plots_trial import feature_trial
from analysis.records import DomainLoss, RunRecord
from analysis.results import FitError
from model.errors import ConfigError
from model.typed import build, to_plain

TARGETS = {"near": 1e15, "1T": 6.46e24}
EXPONENT = 0.08
PAIR_SD = 0.002
DRAWS = 1500

Pairs = list[tuple[RunRecord, RunRecord]]


def record(*, rung: str, flops_per_token: float, tokens: int, loss: float) -> RunRecord:
    """What a trial reads of a run; the rest is filled."""
    names = (
        *("total_params", "active_params", "active_non_embedding_params", "batch_tokens", "steps"),
        *("sequence_length", "num_layers", "hidden_size", "num_experts", "experts_per_token"),
        *("num_shared_experts", "expert_width"),
    )
    counts: dict[str, Any] = dict.fromkeys(names, 1)
    return RunRecord(
        run_id=f"{rung}-{tokens}",
        status="done",
        rung=rung,
        seed=0,
        protocol={},
        protocol_fingerprint="",
        convention="ling-1",
        flops_per_token=flops_per_token,
        train_flops=flops_per_token * tokens,
        other_flops_per_token={},
        tokens=tokens,
        peak_lr=1e-3,
        activation_ratio=0.1,
        granularity=8.0,
        loss_nats=loss,
        bits_per_byte=loss,
        train_loss_nats=loss,
        by_domain={},
        load_by_layer=(),
        wall_s=1.0,
        tokens_per_s=1.0,
        **counts,
    )


@pytest.fixture
def pairs() -> Callable[..., Pairs]:
    """Runs of four sizes and three budgets, C from 1e12 to 1.5e14; the baseline is 5·C^-0.08."""

    def draw(gap: float, per_decade: float = 0.0, seed: int = 0, sd: float = PAIR_SD) -> Pairs:
        rng = np.random.default_rng(seed)
        found = []
        for size in range(4):
            for budget in range(3):
                per_token, tokens = 1e6 * 2.0**size, 10**6 * 4**budget
                flops = per_token * tokens
                loss = 5 * flops**-EXPONENT * np.exp(0.01 * rng.standard_normal())
                change = gap + per_decade * (np.log10(flops) - 13) + sd * rng.standard_normal()
                base = record(
                    rung=f"r{size}", flops_per_token=per_token, tokens=tokens, loss=float(loss)
                )
                found.append((base, replace(base, loss_nats=float(loss * np.exp(change)))))
        return found

    return draw


def trial(pairs: Pairs, unpaired: int = 0) -> Trial:
    sides = ({"recipe.shape.qk_norm": "True"}, {"recipe.shape.qk_norm": "False"})
    return run_trial("drawn", *sides, pairs, TARGETS, unpaired=unpaired)


def test_a_feature_that_helps_is_worth_the_compute_it_saves(pairs: Callable[..., Pairs]) -> None:
    """A gap of -4% at an exponent of 0.08 is exp(0.04 / 0.08) = 1.65 times the compute."""
    found = trial(pairs(-0.04))
    assert found.mean.contains(-0.04)
    assert found.mean.high < 0
    assert found.helps > 0.999
    assert "WITHIN_NOISE" not in [warning.status for warning in found.warnings]
    assert "helps at these sizes" in found.verdict
    near, far = found.targets
    assert near.gap.contains(-0.04)
    assert near.leverage is not None
    assert near.leverage.low is not None
    assert near.leverage.high is not None
    assert 1 < near.leverage.low <= np.exp(0.5) <= near.leverage.high
    assert far.leverage is None, "so far out no law of these runs is evidence"
    assert found.leverage is not None
    assert found.leverage.largest.gap_nats.high < 0
    assert far.gap.width > 3 * near.gap.width, "further out it knows less"
    assert [near.is_far, far.is_far] == [False, True]
    assert "TOO_FAR" in [warning.status for warning in found.warnings]
    assert [rung.pairs for rung in found.rungs] == [3, 3, 3, 3]
    assert sum(rung.gap.contains(-0.04) for rung in found.rungs) >= 3, "each has its own chance"


def test_a_feature_that_changes_nothing_is_called_so(pairs: Callable[..., Pairs]) -> None:
    found = trial(pairs(0.0, seed=1))
    assert "no difference seen" in found.verdict
    assert {"WITHIN_NOISE", "TREND_OPEN"} <= {warning.status for warning in found.warnings}
    assert 0.03 < found.helps < 0.97


def test_a_gap_that_closes_is_seen_to_close(pairs: Callable[..., Pairs]) -> None:
    found = trial(pairs(-0.02, per_decade=0.01))
    assert found.trend.contains(0.01)
    assert found.trend.low > 0
    assert "TREND_OPEN" not in [warning.status for warning in found.warnings]
    near, far = found.targets
    assert near.gap.contains(0.0)
    assert far.helps < 0.05, "at 1T the same line speaks against it"


def test_a_gap_that_bends_is_called_bent(pairs: Callable[..., Pairs]) -> None:
    """It shrinks over two decades and grows again: no straight line says what comes next."""

    def bent(base: RunRecord, other: RunRecord) -> tuple[RunRecord, RunRecord]:
        more = 0.01 * (np.log10(base.train_flops) - 13) ** 2
        return base, replace(other, loss_nats=other.heldout_nats * float(np.exp(more)))

    straight = pairs(-0.02, per_decade=0.005)
    statuses = [
        {warning.status for warning in trial(each).warnings}
        for each in (straight, [bent(*pair) for pair in straight])
    ]
    assert ["BENT" in found for found in statuses] == [False, True]


def test_cells_that_differ_by_more_than_their_seeds_are_named(pairs: Callable[..., Pairs]) -> None:
    """Four seeds of twelve cells; what a cell has of its own is in all four."""
    own = 0.01 * np.random.default_rng(0).standard_normal(12)
    for spread, is_said in ((0.0, False), (1.0, True)):
        found = []
        for seed in range(4):
            for (base, other), cell in zip(pairs(-0.02, seed=seed), own, strict=True):
                loss = other.heldout_nats * float(np.exp(spread * cell))
                found.append((replace(base, seed=seed), replace(other, seed=seed, loss_nats=loss)))
        for num_cells in (12, 6):
            judged = trial([pair for row, pair in enumerate(found) if row % 12 < num_cells])
            said = [warning.sentence for warning in judged.warnings if warning.status == "UNEVEN"]
            assert len(said) == is_said
            assert judged.leverage is not None
            of_leverage = ["too few for the leverage" in sentence for sentence in said]
            assert of_leverage == [num_cells == 6] * is_said


def test_a_straight_line_is_called_bent_once_in_twenty() -> None:
    rng, x = np.random.default_rng(0), np.array([0.0, 0.0, 1.0, 2.0, 2.0, 3.5, 4.0, 5.0])
    called = np.array([Line(x, rng.standard_normal(8)).bend_chance() < 0.05 for _ in range(2000)])
    assert 0.04 < called.mean() < 0.06
    assert Line(x[:4], [0.1, 0.2, 0.4, 0.5]).bend_chance() < 1.0
    assert Line(np.array([1.0, 1.0, 2.0, 2.0]), [0.1, 0.2, 0.4, 0.5]).bend_chance() == 1.0


def test_ninety_percent_intervals_cover_ninety_percent(
    pairs: Callable[..., Pairs], monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_asked(*_: object) -> None:
        raise FitError("leverages have their own tests, and take 0.1 s a trial")

    monkeypatch.setattr("analysis.feature_trial.LeverageMeter", not_asked)
    inside = np.zeros(3)
    for seed in range(300):
        found = trial(pairs(-0.01, per_decade=0.002, seed=seed))
        near = found.targets[0]
        inside += [
            found.mean.contains(-0.01 + 0.002 * _middle(found)),
            found.trend.contains(0.002),
            near.gap.contains(-0.01 + 0.002 * 2),
        ]
    assert ((inside / 300 > 0.85) & (inside / 300 < 0.95)).all(), inside / 300


def test_the_noise_of_both_sides_is_in_the_interval_whichever_is_the_noisier(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Twelve cells, one of them with three more seeds on both sides (`noise_of=every_variant`), the
    sides' noises apart by a factor of 3: sqrt(1 + 9) against sqrt(1 + 1) is 2.236."""

    def not_asked(*_: object) -> None:
        raise FitError("leverages have their own tests, and take 0.1 s a trial")

    monkeypatch.setattr("analysis.feature_trial.LeverageMeter", not_asked)
    cells = [(size, budget) for size in range(4) for budget in range(3)] + [(1, 1)] * 3
    width = {}
    for sides_sd in ((0.004, 0.004), (0.004, 0.012), (0.012, 0.004)):
        rng = np.random.default_rng(3)
        inside, widths = np.zeros(3), []
        for _ in range(400):
            drawn = []
            for size, budget in cells:
                per_token, tokens = 1e6 * 2.0**size, 10**6 * 4**budget
                law = 5 * (per_token * tokens) ** -EXPONENT
                base, other = law * np.exp(sides_sd * rng.standard_normal(2))
                made = record(
                    rung=f"r{size}", flops_per_token=per_token, tokens=tokens, loss=float(base)
                )
                drawn.append((made, replace(made, loss_nats=float(0.98 * other))))
            found = trial(drawn)
            truth = float(np.log(0.98))
            near = found.targets[0].gap
            inside += [found.mean.contains(truth), found.trend.contains(0), near.contains(truth)]
            widths.append(found.mean.width)
        assert ((inside > 0.86 * 400) & (inside < 0.94 * 400)).all(), (sides_sd, inside / 400)
        width[sides_sd] = np.mean(widths)
    alike = width[0.004, 0.004]
    assert width[0.004, 0.012] == pytest.approx(5**0.5 * alike, rel=0.05)
    assert width[0.012, 0.004] == pytest.approx(5**0.5 * alike, rel=0.05)


@pytest.mark.parametrize("own", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize("seeds", [(2,) * 4, (2,) * 6, (5,) * 9, (1, 1, 1, 1, 4, 4)])
def test_intervals_hold_whatever_the_cells_have_of_their_own(
    seeds: tuple[int, ...], own: float
) -> None:
    """The trend in the middle and ten times beyond, seeds 1 apart. With every run counted alike all
    but the first of ``own`` are red."""
    rng = np.random.default_rng(5)
    cell_N = np.repeat(np.arange(len(seeds)), seeds)
    x_N = np.linspace(0.0, 5.0, len(seeds))[cell_N]
    inside = np.zeros(2)
    for _ in range(DRAWS):
        of_cell = own * rng.standard_normal(len(seeds))
        line = cell_line(x_N, of_cell[cell_N] + rng.standard_normal(len(x_N)), cell_N).line
        inside += [line.interval(x, 0.9).contains(0.0) for x in (line.middle, 7.3)]
    assert ((inside > 0.86 * DRAWS) & (inside < 0.96 * DRAWS)).all(), inside / DRAWS


def test_without_repeats_the_trend_is_the_plain_line() -> None:
    rng, x = np.random.default_rng(0), np.array([0.0, 1.0, 2.0, 3.5, 4.0])
    y, cells = rng.standard_normal(5), np.arange(5)
    assert cell_line(x, y, cells).line.interval(6.0, 0.9) == Line(x, y).interval(6.0, 0.9)
    alike = cell_line(np.tile(x, 2), np.tile(y, 2), np.tile(cells, 2)).line.interval(6.0, 0.9)
    assert alike.width == pytest.approx(Line(x, y).interval(6.0, 0.9).width)


def test_the_mean_of_some_runs_is_as_sure_as_the_means_it_is_made_of() -> None:
    """Cells of 1, 1, 3 and 3 seeds weigh 1, 1, 3/2 and 3/2. The mean of the first run and of the
    third cell's is (v0 + 3·v2) / 4, of variance (1/1 + 9/(3/2)) / 16."""
    seeds = (1, 1, 3, 3)
    cell_N = np.repeat(np.arange(4), seeds)
    found = cell_line(
        np.repeat([0.0, 1.0, 2.0, 4.0], seeds), np.random.default_rng(0).standard_normal(8), cell_N
    )
    assert found.weight_U == pytest.approx([1.0, 1.0, 1.5, 1.5])
    assert found.mean_sd([0, 2, 3, 4]) == pytest.approx(found.line.noise_sd * np.sqrt(7) / 4)
    assert found.mean_sd([1]) == pytest.approx(found.line.noise_sd)


def test_a_line_of_two_points_or_of_one_place_is_refused() -> None:
    with pytest.raises(FitError, match="2 points leaves nothing to know its noise by"):
        Line(np.array([0.0, 1.0]), [0.0, 1.0])
    with pytest.raises(FitError, match="all 3 points lie at x = 2"):
        Line(np.full(3, 2.0), [0.0, 1.0, 2.0])


def test_a_gap_is_told_in_percent_of_the_loss_and_never_below_minus_hundred() -> None:
    assert percent(np.log(0.9)) == "-10.00%"
    assert percent(np.log(1.2)) == "+20.00%"
    assert percent(-3.0) == "-95.02%", "-300 hundredths of a logarithm"
    assert percent(2e-6) == "+2.0e-04%"


def _middle(found: Trial) -> float:
    return float(np.mean([np.log10(pair.flops) for pair in found.pairs]) - 13)


def test_gaps_are_at_equal_compute(pairs: Callable[..., Pairs]) -> None:
    """A variant that takes 10% more compute must gain what the baseline would gain by it."""
    dearer = [
        (base, replace(other, train_flops=1.1 * other.train_flops))
        for base, other in pairs(0.0, sd=1e-5)
    ]
    found = trial(dearer)
    assert found.mean.value == pytest.approx(found.exponent * np.log(1.1), abs=1e-4)
    assert "DEARER" in [warning.status for warning in found.warnings]


def test_each_domain_has_the_gap_of_its_own_losses(pairs: Callable[..., Pairs]) -> None:
    """Code loses 3% and prose gains 1%, each at the compute that its own losses ask for."""

    def of_domains(loss: float, *factors: float) -> dict[str, DomainLoss]:
        return {
            name: DomainLoss(loss_nats=scale * loss * factor, bits_per_byte=1.0, tokens=1)
            for name, scale, factor in zip(("code", "prose"), (0.5, 1.5), factors, strict=False)
        }

    exact = [
        (
            replace(base, by_domain=of_domains(base.heldout_nats, 1.0, 1.0)),
            replace(other, by_domain=of_domains(base.heldout_nats, 1.03, 0.99)),
        )
        for base, other in pairs(0.0, sd=0.0)
    ]
    found = {gap.domain: gap.gap.value for gap in trial(exact).domains}
    assert found == pytest.approx({"code": np.log(1.03), "prose": np.log(0.99)})
    dearer = [(base, replace(other, train_flops=1.1 * other.train_flops)) for base, other in exact]
    judged = trial(dearer)
    found = {gap.domain: gap.gap.value for gap in judged.domains}
    beside = judged.exponent * np.log(1.1)
    assert found == pytest.approx({"code": np.log(1.03) + beside, "prose": np.log(0.99) + beside})
    (base, other), *rest = exact
    missing = replace(other, by_domain=of_domains(other.heldout_nats, 1.0))
    assert trial([(base, missing), *rest]).domains == (), "one domain is the whole"


def test_too_little_to_judge_by_is_said(pairs: Callable[..., Pairs]) -> None:
    some = pairs(0.0)
    with pytest.raises(FitError, match="3 pairs"):
        trial(some[:3])
    with pytest.raises(FitError, match="one compute"):
        trial([some[0]] * 5)
    for level in (0.0, 1.0):
        with pytest.raises(ConfigError, match="level must be between 0 and 1"):
            run_trial("drawn", {}, {}, some, TARGETS, level=level)
    alone = trial(some, unpaired=2)
    assert "2 runs have no finished partner" in [w.sentence for w in alone.warnings]
    sides = ({"x": "1"}, {"x": "2"})
    part = run_trial("drawn", *sides, some, TARGETS, unpaired=3, unpaired_seeds=2)
    (said,) = [w.sentence for w in part.warnings if w.status == "UNPAIRED"]
    assert said.startswith("3 runs have no finished partner; 2 of them repeat a cell on one side")


def test_why_there_is_no_leverage_is_said_beside_the_gap(pairs: Callable[..., Pairs]) -> None:
    found = trial(pairs(-0.04)[:5])
    assert found.leverage is None
    assert found.mean.contains(-0.04)
    (why,) = [w.sentence for w in found.warnings if w.status == "NO_LEVERAGE"]
    assert "5 runs of the baseline are too few" in why
    drawing = leverage_of_trials([found])
    assert drawing.figure is None
    assert "5 runs of the baseline are too few" in drawing.missing


def test_what_is_not_reached_is_said_drawn_and_kept_without_a_number(
    pairs: Callable[..., Pairs],
) -> None:
    """Half the loss is below anything that this baseline will come to."""
    found = trial(pairs(-0.7))
    assert found.leverage is not None
    assert found.leverage.largest.high is None
    assert "NOT_REACHED" in [warning.status for warning in found.warnings]
    assert build(Trial, json.loads(json.dumps(to_plain(found), allow_nan=False))) == found
    drawing = leverage_of_trials([found, trial(pairs(-0.01))])
    assert drawing.figure is not None
    assert drawing.data["leverage_high"].isna().any()
    assert drawing.data["trial"].nunique() == 1, "one feature, asked twice"


def test_the_trial_reads_back_and_is_drawn(pairs: Callable[..., Pairs]) -> None:
    found = trial(pairs(-0.02))
    assert build(Trial, to_plain(found)) == found
    drawing = feature_trial(found)
    assert drawing.figure is not None
    assert set(drawing.data["series"]) == {"pair", "trend", "rung mean"}
    assert len(drawing.data) == 12 + 2 + 4
