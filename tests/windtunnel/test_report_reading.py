"""What a critical reader of the report meets: few runs, a diverged one, ends that are limits."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from analysis.catalogue import cut_ends
from analysis.laws import LEAST_RUNS
from analysis.plots import draw_all
from analysis.results import Interval
from windtunnel.report.content import Content, gather
from windtunnel.report.numbers import prose, signed
from windtunnel.report.page import render


def content_of(root: Path) -> Content:
    return gather("quickstart", root, made_at="2026-11-23", version="0")


def read(content: Content) -> str:
    """The page's words in their order, without tags, styles and scripts."""
    page = render(content, draw_all(content.evidence))
    bare = re.sub(r"<(script|style|svg).*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", bare)).split())


@pytest.mark.parametrize(("finished_runs", "is_enough"), [(1, False), (LEAST_RUNS, True)])
def test_a_fit_is_advised_only_when_there_are_runs_enough_for_it(
    finished_runs: int, is_enough: bool, tmp_path: Path, known_sweep: ModuleType
) -> None:
    plan = known_sweep.make(tmp_path)
    for run in plan.runs[:finished_runs]:
        known_sweep.finish(tmp_path, run.spec, known_sweep.measured(run.spec))
    text = read(content_of(tmp_path))
    assert ("There is no answer yet: first fit the law with" in text) is is_enough
    assert ("1 run done, and a law takes 6; the sweep is still to be finished." in text) is (
        not is_enough
    )
    assert ("largest run over the smallest" in text) is is_enough
    assert ("The grey line is a power law" in text) is is_enough
    assert ("1 point for the 2 parameters of the power law" in text) is not is_enough
    assert "see the law and the forecast move" not in text, "there is no law"


def test_a_promoted_run_that_diverged_says_why_and_is_no_measured_loss(
    tmp_path: Path, known_sweep: ModuleType
) -> None:
    plan = known_sweep.make(tmp_path)
    known_sweep.finish_all(tmp_path, plan)
    known_sweep.fit(tmp_path, plan)
    promotion = known_sweep.promote(tmp_path)
    record = replace(
        known_sweep.measured(promotion.spec),
        status="diverged",
        loss_nats=None,
        bits_per_byte=None,
        reason="step 900: the gradient is not finite",
    )
    known_sweep.launch(tmp_path, promotion, record)
    text = read(content_of(tmp_path))
    assert (
        "The run diverged, so the forecast is counted as missed. Step 900: the gradient is not "
        "finite." in text
    )
    assert "0 of 1 outcomes inside the interval, 1 run diverged; 0.9 were to be expected" in text
    assert "measured losses inside" not in text
    assert "The run diverged and has no final loss." in text
    assert "Nothing has been measured yet" not in text
    assert "The bar across is the forecast of the promoted run with its interval." in text


def test_the_diamond_is_explained_where_there_is_one(finished: Any) -> None:
    assert "the diamond what it measured" in read(content_of(finished.root))


def test_an_end_that_is_the_laws_own_limit_is_marked_as_on_the_screen(finished: Any) -> None:
    content = content_of(finished.root)
    study = content.study
    assert study is not None
    law = study.surface.law
    assert cut_ends(law, "alpha", 0.01, 3.0) == "lower and upper end: as far as the law allows"
    assert cut_ends(law, "alpha", 0.02, 3.0) == "upper end: as far as the law allows"
    assert cut_ends(law, "A", 2.9, 1e16) == ""
    assert "as far as the law allows" not in read(content)
    cut = {**study.surface.coefficients, "E": Interval(value=1.1, low=0, high=1.2, level=0.9)}
    surface = replace(study.surface, coefficients=cut)
    evidence = replace(content.evidence, study=replace(study, surface=surface))
    text = read(replace(content, evidence=evidence))
    assert "E 1.1 0 to 1.2 lower end: as far as the law allows A " in text


def test_powers_are_raised_and_commands_stay_as_they_are_typed() -> None:
    text = "y = 6.8·C^-0.034 & 5.77e+05..1.32e-06, `fit at.flops=1e+18 x^2`, w16l2e32k4-d37.9k"
    assert str(prose(text)) == (
        "y = 6.8·C<sup>-0.034</sup> &amp; 5.77·10<sup>5</sup>..1.32·10<sup>-6</sup>, "
        "<code>fit at.flops=1e+18 x^2</code>, w16l2e32k4-d37.9k"
    )
    assert str(prose("L = E + A/N^alpha")) == "L = E + A/N<sup>alpha</sup>"


@pytest.mark.parametrize(
    ("nats", "shown"), [(0.00111, "+0.0011"), (-0.00014, "-0.0001"), (-2e-6, "0"), (0.0, "0")]
)
def test_a_cost_of_nothing_has_no_sign(nats: float, shown: str) -> None:
    assert signed(nats) == shown
