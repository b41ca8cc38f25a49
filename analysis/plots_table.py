"""Figures of a law fitted to a table: those of a sweep that need no more than its points."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from analysis.plots_evidence import Evidence
from analysis.plots_loss import loss_compute, loss_tokens
from analysis.plots_runs import residuals
from analysis.plots_style import Drawing, safe_label
from analysis.plots_surface import contours, isoflop
from analysis.records import RunRecord
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
    loss_nats: float
    status: str = "done"

    @property
    def heldout_nats(self) -> float:
        return self.loss_nats


@dataclass(frozen=True, kw_only=True)
class TableEvidence(Evidence):
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
            loss_nats=loss,
        )
        for label, size, tokens, flops, loss in zip(*columns, strict=True)
    ]
    evidence = TableEvidence(
        records=cast(tuple[RunRecord, ...], tuple(rows)),
        study=study,
        size_name=points.size_variable,
    )
    return tuple(draw(evidence) for draw in FIGURES)
