"""Every figure of a sweep, in the order in which they are to be read."""

from __future__ import annotations

from analysis.plots_balance import expert_balance
from analysis.plots_evidence import Evidence, Promoted
from analysis.plots_experts import expert_load, expert_training
from analysis.plots_forecasts import forecasts
from analysis.plots_leverage import leverage_compute
from analysis.plots_loss import loss_compute, loss_tokens
from analysis.plots_recipe import recipe
from analysis.plots_routing import expert_domains, expert_pairs, expert_routing
from analysis.plots_runs import flight, residuals, training_curves
from analysis.plots_style import Drawing, save, to_svg
from analysis.plots_surface import contours, isoflop
from analysis.plots_variants import feature_trials, leverage

FIGURES = (
    loss_compute,
    flight,
    forecasts,
    isoflop,
    contours,
    loss_tokens,
    residuals,
    training_curves,
    expert_load,
    expert_training,
    expert_balance,
    expert_routing,
    expert_domains,
    expert_pairs,
    recipe,
    leverage,
    feature_trials,
    leverage_compute,
)


def draw_all(evidence: Evidence) -> tuple[Drawing, ...]:
    """All figures; one that can't be drawn brings the sentence that says why."""
    return tuple(draw(evidence) for draw in FIGURES)


__all__ = ["FIGURES", "Drawing", "Evidence", "Promoted", "draw_all", "save", "to_svg"]
