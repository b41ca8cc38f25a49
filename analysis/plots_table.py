"""Figures of a law fitted to a table: those of a sweep that need no more than its points."""

from __future__ import annotations

from dataclasses import dataclass

from analysis.plots_evidence import LawEvidence, Promoted, surface_of
from analysis.plots_loss import loss_compute, loss_tokens
from analysis.plots_runs import residuals
from analysis.plots_style import Drawing, safe_label
from analysis.plots_surface import contours, isoflop
from analysis.study import Study

FIGURES = (loss_compute, isoflop, contours, loss_tokens, residuals)


@dataclass(frozen=True, kw_only=True)
class _Row:
    """What these figures read of a run's record; a table's row has no more."""

    run_id: str
    rung: str
    """Its size: rows of one size share a colour."""
    flops_per_token: float
    train_flops: float
    tokens: float
    heldout_nats: float
    status: str = "done"


@dataclass(frozen=True, kw_only=True)
class TableEvidence(LawEvidence[_Row]):
    """The rows of a table in the place of a sweep's records."""

    size_name: str

    @property
    def legend_title(self) -> str:
        """What the sizes count: the table's own column."""
        return f"Model size, {safe_label(self.size_name)}"

    @property
    def legend_sizes(self) -> dict[str, float]:
        """As the table gives them; a row's FLOPs per token may be measured ones."""
        return {rung: float(rung) for rung in self.rungs}


def draw_table(study: Study) -> tuple[Drawing, ...]:
    """The figures of ``study``, whose points came from a table."""
    points = study.points
    columns = (points.label, points.size, points.tokens, points.flops, points.loss)
    rows = [
        _Row(
            run_id=label,
            rung=repr(size),
            flops_per_token=flops / tokens,
            train_flops=flops,
            tokens=tokens,
            heldout_nats=loss,
        )
        for label, size, tokens, flops, loss in zip(*columns, strict=True)
    ]
    evidence = TableEvidence(
        records=tuple(rows),
        study=study,
        promoted=_asked_for(study),
        size_name=points.size_variable,
    )
    return tuple(draw(evidence) for draw in FIGURES)


def _asked_for(study: Study) -> Promoted | None:
    """The forecast asked for with ``at.``, marked as a sweep's figures mark the promoted run."""
    if not study.forecasts:
        return None
    (asked,) = study.forecasts
    size, tokens = asked.at["size"], asked.at["tokens"]
    return Promoted(
        label=asked.place,
        flops=surface_of(study).flops_per_size_token * size * tokens,
        sizes={study.points.size_variable: size},
        tokens=tokens,
        forecast=asked.forecast,
        measured=None,
        name="asked for",
    )
