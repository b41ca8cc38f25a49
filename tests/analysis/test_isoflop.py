"""IsoFLOP parabolas: exact ones found, edges and maxima named, their bias shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from analysis.isoflop import isoflop_laws, isoflop_loss, isoflop_optima
from analysis.laws import LossSurface
from analysis.points import Points, make_points
from analysis.results import FitError
from analysis.routed import RoutedLaw
from analysis.routed_fit import fit_routed
from analysis.settings import FitSettings
from model.errors import ConfigError

QUICK = FitSettings(replicates=100, starts=200, loss="squares")
BUDGETS = [1e15, 1e16, 1e17, 1e18]


def iso(shape: float = 1.0, shift: float = 0.0) -> Points:
    """A parabola in log size at each budget, its vertex at 0.1·C^0.5."""
    flops = np.repeat(BUDGETS, 7)
    vertex = 0.1 * flops**0.5
    size = vertex * 2.0 ** np.tile(np.arange(-3, 4) + shift, 4)
    loss = 3.0 + shape * 0.02 * np.log(size / vertex) ** 2 - 0.1 * np.log10(flops / 1e15)
    return make_points(
        size_variable="N",
        label=[str(i) for i in range(28)],
        size=size,
        tokens=flops / (6 * size),
        loss=loss,
        flops=flops,
    )


def test_exact_parabolas_give_exact_laws() -> None:
    optima = isoflop_optima(iso())
    assert [(o.status, o.num_runs) for o in optima] == [("inside", 7)] * 4
    size, tokens = isoflop_laws(optima, 6.0, QUICK)
    np.testing.assert_allclose(size.law.parameters, [0.1, 0.5], rtol=1e-6)
    np.testing.assert_allclose(tokens.law.parameters, [1 / 0.6, 0.5], rtol=1e-6)


def test_minima_above_the_irreducible_loss_are_a_power_of_compute() -> None:
    """The loss at the vertex falls by 0.1 a decade from 3.0, so of three decades 2.7 to 3.0."""
    optima = isoflop_optima(iso())
    assert [o.loss for o in optima] == pytest.approx([3.0, 2.9, 2.8, 2.7])
    curved = [replace(o, loss=1.7 + 40 * o.flops**-0.1) for o in optima]
    np.testing.assert_allclose(isoflop_loss(curved, 1.7, QUICK).law.parameters, [40.0, -0.1])
    with pytest.raises(FitError, match=r"below the irreducible loss 2\.75"):
        isoflop_loss(optima, 2.75, QUICK)


def test_a_parabola_that_opens_downward_is_no_optimum() -> None:
    optima = isoflop_optima(iso(shape=-1.0))
    assert {o.status for o in optima} == {"opens_downward"}
    with pytest.raises(FitError, match="0 of 4 budgets have their optimum inside"):
        isoflop_laws(optima, 6.0, QUICK)
    with pytest.raises(FitError, match="0 of 4 budgets have their optimum inside"):
        isoflop_loss(optima, 1.7, QUICK)


def test_a_vertex_outside_the_sizes_tried_is_a_bound() -> None:
    points = iso(shift=5.0)
    for optimum in isoflop_optima(points):
        assert optimum.status == "at_edge"
        sizes = [n for n, c in zip(points.size, points.flops, strict=True) if c == optimum.flops]
        assert optimum.size == pytest.approx(min(sizes))


def test_parabolas_are_biased_on_a_surface_without_noise() -> None:
    """Why the surface is the default (Czech et al., arXiv:2603.22339)."""
    law = LossSurface(E=1.8, A=480.0, B=21000.0, alpha=0.35, beta=0.5, flops_per_size_token=6.0)
    flops = np.repeat(10.0 ** np.arange(18, 23), 9)
    best = np.array([law.optimum(c).size for c in flops])
    size = best * 2.0 ** np.tile(np.arange(-2, 7) * 0.7, 5)
    tokens = flops / (6 * size)
    points = make_points(
        size_variable="N", label=[str(i) for i in range(45)], size=size, tokens=tokens,
        loss=law(size, tokens), flops=flops,
    )  # fmt: skip
    fitted, _ = isoflop_laws(isoflop_optima(points), 6.0, QUICK)
    assert float(fitted.law(1e22)) > 1.02 * law.optimum(1e22).size  # type: ignore[call-arg,arg-type]


def test_an_outlier_of_a_routed_law_is_named_with_what_it_moves() -> None:
    truth = RoutedLaw(a=-0.08, b=-0.2, c=0.006, d=2.6, E_start=2.0, E_max=300.0)
    size = np.repeat([1.5e7, 5.5e7, 1.3e8, 3.7e8, 1.3e9], 6)
    experts = np.tile([1.0, 8.0, 32.0, 64.0, 256.0, 512.0], 5)
    loss = truth(size, experts) * np.exp(0.002 * np.random.default_rng(0).standard_normal(30))
    labels = [f"run-{row}" for row in range(30)]
    settings = FitSettings(replicates=100)
    calm = fit_routed(size, experts, loss, settings, labels=labels)
    assert "OUTLIERS" not in {warning.status for warning in calm.warnings}
    for name in "abcd":
        interval = calm.coefficients[name]
        assert interval.low < interval.value < interval.high, name
        assert interval.contains(getattr(truth, name)), name
    loss[17] *= 1.2
    said = {
        warning.status: warning.sentence
        for warning in fit_routed(size, experts, loss, settings, labels=labels).warnings
    }
    named, without = said["OUTLIERS"].split("; without: ")
    assert "robust standard deviations: run-17 (" in named
    moved = {change.split()[0]: float(change.split()[-1]) for change in without.split(", ")}
    assert moved["a"] == pytest.approx(calm.law.parameters[0], rel=0.02)


def test_routed_law_comes_back_without_noise() -> None:
    truth = RoutedLaw(a=-0.08, b=-0.2, c=0.006, d=2.6, E_start=2.0, E_max=300.0)
    size = np.repeat([1.5e7, 5.5e7, 1.3e8, 3.7e8, 1.3e9], 6)
    experts = np.tile([1.0, 8.0, 32.0, 64.0, 256.0, 512.0], 5)
    fit = fit_routed(
        size.tolist(), experts.tolist(), truth(size, experts).tolist(), FitSettings(replicates=100)
    )
    np.testing.assert_allclose(fit.law.parameters, truth.parameters, rtol=1e-6)
    assert fit.ranges == {"size": (1.5e7, 1.3e9), "num_experts": (1.0, 512.0)}
    assert (fit.objective.residual, fit.objective.loss) == ("log", "squares")
    assert truth.inverse(float(truth(3e8, 32.0)), 32.0) == pytest.approx(3e8)
    with pytest.raises(ConfigError, match="does not fall with size"):
        RoutedLaw(a=0.08, b=0.0, c=0.0, d=0.0, E_start=2.0, E_max=300.0).inverse(2.0, 8.0)
    bare = truth.effective_size(5e8, 64.0)
    assert float(truth(bare, 1.0)) == pytest.approx(float(truth(5e8, 64.0)))
    assert bare > 5e8
    with pytest.raises(FitError, match="3 points"):
        fit_routed([1e7, 1e8, 1e9], [1, 1, 1], [3.0, 2.9, 2.8])
