"""What the figures of a sweep are drawn from, in one bundle, and what several of them share."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.curves import Curve
from analysis.expert_use import ExpertUse
from analysis.feature_trial import Trial
from analysis.holdout import Holdout
from analysis.laws import LossSurface
from analysis.plots_style import EXCLUDED, MUTED, PAPER, size_colors, told_apart
from analysis.records import RunRecord
from analysis.results import Prediction
from analysis.study import Study

MOST_CURVES = 60
"""More lines than this are a smear; then only the longest run of each size is drawn."""
PALE = 0.35
"""Opacity of a run that the law beside it is not about."""


@dataclass(frozen=True, kw_only=True)
class OnTheWay:
    """The promoted run at one moment before its end."""

    tokens: float
    forecast: Prediction
    measured: float | None
    """None where the run has not come so far."""


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """The run that a promotion forecast, and what it measured once it had run."""

    label: str
    flops: float
    sizes: Mapping[str, float]
    """By size variable: FLOPs per token and the parameter counts."""
    tokens: float
    forecast: Prediction
    measured: float | None
    """Held-out loss in nats per token; None before the run has ended."""
    loads: Mapping[str, tuple[Prediction, float | None]] = field(default_factory=dict)
    """``max_vio`` and ``normalized_entropy``, mean over layers: forecast and what was measured."""
    waypoints: tuple[OnTheWay, ...] = ()
    curve: Curve | None = None
    """Its training curve, as far as it has come."""
    name: str = "promoted run"
    """What a legend calls it."""
    diverged: bool = False

    def size_in(self, study: Study) -> float:
        """Its size in the variable the law was fitted in."""
        return self.sizes[study.points.size_variable]


@dataclass(frozen=True, kw_only=True)
class HeldForecast:
    """A forecast of the ledger that was registered before its run, and what the run measured."""

    evidence: str
    """The sweep or the table that it was forecast from."""
    forecast: Prediction
    measured: float
    """Held-out loss in nats per token."""

    @property
    def inside(self) -> bool:
        """Whether the interval held it."""
        return self.forecast.contains(self.measured)


class DrawnRun(Protocol):
    """What the figures of a law read of one run; a sweep's record has more."""

    @property
    def run_id(self) -> str:
        """Its name; a table's row has its label."""
        ...

    @property
    def status(self) -> str:
        """``done`` for a run that ended with a loss."""
        ...

    @property
    def rung(self) -> str:
        """The name of its size; runs of one size share a colour."""
        ...

    @property
    def flops_per_token(self) -> float:
        """Training FLOPs per token."""
        ...

    @property
    def train_flops(self) -> float:
        """Training FLOPs."""
        ...

    @property
    def tokens(self) -> float:
        """Training tokens."""
        ...

    @property
    def heldout_nats(self) -> float:
        """Loss in nats per token."""
        ...


Run = TypeVar("Run", bound=DrawnRun, covariant=True)


@dataclass(frozen=True, kw_only=True)
class LawEvidence(Generic[Run]):
    """Runs and the law through them. Only ``records`` is needed; the rest may be missing."""

    records: tuple[Run, ...]
    study: Study | None = None
    promoted: Promoted | None = None
    variants: Mapping[str, str] = field(default_factory=dict)
    """By run id what a sweep's axes set for it, in words; a fit is of one variant."""

    @cached_property
    def done(self) -> tuple[Run, ...]:
        """Runs that ended with a loss, cheapest first."""
        finished = (record for record in self.records if record.status == "done")
        return tuple(sorted(finished, key=_by_compute))

    @cached_property
    def rungs(self) -> tuple[str, ...]:
        """Names of the sizes, small to large."""
        size = {record.rung: record.flops_per_token for record in self.done}
        return tuple(sorted(size, key=lambda rung: (size[rung], rung)))

    @property
    def legend_title(self) -> str:
        """What the sizes beside the colours count."""
        return "Model size, training FLOPs per token"

    @property
    def legend_sizes(self) -> dict[str, float]:
        """Rung to the size that stands beside its colour."""
        return {record.rung: record.flops_per_token for record in self.done}

    @cached_property
    def colors(self) -> dict[str, str]:
        """Rung to its colour, the same in every figure."""
        rungs = self.rungs
        return dict(zip(rungs, size_colors(len(rungs)), strict=True)) if rungs else {}

    @cached_property
    def excluded(self) -> dict[str, str]:
        """Run id to the reason why the fit left it out."""
        return {e.label: e.reason for e in self.study.exclusions} if self.study else {}

    @property
    def holdout(self) -> Holdout | None:
        """The hardest hold-out: the one that left out most budgets."""
        return self.study.holdouts[-1] if self.study and self.study.holdouts else None

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Runs of the largest budgets, which the hold-out forecast from the rest."""
        return (
            frozenset(point.label for point in self.holdout.points) if self.holdout else frozenset()
        )

    @cached_property
    def fitted(self) -> frozenset[str]:
        """Runs the law was fitted to."""
        return frozenset(self.study.points.label) if self.study else frozenset()

    def is_of_other_variant(self, run_id: str) -> bool:
        """Whether the fit passed a run over because its axes are set otherwise."""
        return (
            self.study is not None
            and run_id not in self.fitted
            and self.variants.get(run_id, "") not in self.fitted_variants
        )

    @cached_property
    def fitted_variants(self) -> frozenset[str]:
        """The variants those runs are of."""
        return frozenset(self.variants.get(label, "") for label in self.fitted)

    def with_curves(self) -> tuple[Run, ...]:
        """The runs whose curves are drawn: all, or of very many the longest of each size."""
        longest = self.largest_run_by_rung()
        return self.done if len(self.done) <= MOST_CURVES else tuple(longest.values())

    def largest_run_by_rung(self) -> dict[str, Run]:
        """The longest run of each rung, small to large."""
        largest: dict[str, Run] = {}
        for record in self.done:  # ascending in compute, so the last one stays
            largest[record.rung] = record
        return {rung: largest[rung] for rung in self.rungs}


@dataclass(frozen=True, kw_only=True)
class Evidence(LawEvidence[RunRecord]):
    """A sweep as far as it has come."""

    curves: Mapping[str, Curve] = field(default_factory=dict)
    """Training curves by run id."""
    uses: Mapping[str, ExpertUse] = field(default_factory=dict)
    """How runs used their experts, by run id; the longest of each size are enough."""
    trials: tuple[Trial, ...] = ()
    """What `windtunnel compare` found of its features."""
    forecasts: tuple[HeldForecast, ...] = ()
    """Of all sweeps under the same root, oldest first."""


def _by_compute(run: DrawnRun) -> tuple[float, str]:
    return run.train_flops, run.run_id


def no_optimum(study: Study | None) -> str:
    """Why a figure has no optimum, as a sentence to put before others; empty where it has one."""
    law = surface_of(study) if study else None
    if law is None or law.has_optimum:
        return ""
    alone = "tokens" if law.B > 0 else "size"
    return f"By this law loss falls with {alone} alone, so no split of compute is the best. "


def surface_of(study: Study) -> LossSurface:
    """The fitted L(N, D)."""
    law = study.surface.law
    assert isinstance(law, LossSurface)
    return law


def sizes_in_units(data: pd.DataFrame, study: Study | None) -> pd.DataFrame:
    """A figure's data with ``size`` under the name of what the law was fitted in: its unit."""
    if study is None or "size" not in data:
        return data
    unit = study.points.size_variable
    size = data["size"].combine_first(data[unit]) if unit in data else data["size"]
    named = {"size_low": f"{unit}_low", "size_high": f"{unit}_high"}
    return data.drop(columns="size").assign(**{unit: size}).rename(columns=named)


def draw_dots(
    axes: Axes, evidence: LawEvidence[DrawnRun], at: Mapping[str, tuple[float, float, str]]
) -> None:
    """Runs at (x, y) in the colour of their rung, by what the fit did with them.

    One call of matplotlib for each colour and kind: sweeps may have thousands of runs.
    """
    groups: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for run_id, (x, y, rung) in at.items():
        if run_id in evidence.excluded:
            kind, color = "x", EXCLUDED
        else:
            kind = "hollow" if run_id in evidence.held_out else "dot"
            kind = "pale" if evidence.is_of_other_variant(run_id) else kind
            color = evidence.colors.get(rung, MUTED)
        groups[kind, color].append((x, y))
    for (kind, color), places in groups.items():
        axes.plot(
            *zip(*places, strict=True),
            linestyle="",
            marker="x" if kind == "x" else "o",
            color=color,
            markerfacecolor=PAPER if kind == "hollow" else color,
            markeredgewidth=0 if kind == "pale" else 0.9,
            alpha=PALE if kind == "pale" else 1,
            zorder=2 if kind == "pale" else 4,
        )


def size_legend(
    figure: Figure,
    evidence: LawEvidence[DrawnRun],
    most: int = 7,
    title: str | None = None,
) -> None:
    """The colours of the sizes in a row above the panels; a long ladder shows some of its rungs."""
    sizes = evidence.legend_sizes
    items = list(evidence.colors.items())
    if len(items) > most:
        items = [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
    labels = told_apart([sizes[rung] for rung, _ in items])
    figure.legend(
        handles=[
            Line2D([], [], linestyle="", marker="o", color=color, label=label)
            for (_, color), label in zip(items, labels, strict=True)
        ],
        title=evidence.legend_title if title is None else title,
        title_fontsize=6.5,
        alignment="left",
        loc="outside upper left",
        ncols=len(items),
        handletextpad=0.1,
        columnspacing=0.9,
    )
