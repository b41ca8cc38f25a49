"""A report handed to W&B: the answer as numbers, the figures, the fitted curves, the promotion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.plots_style import Drawing
from model.training.config import WandbTracker
from model.training.wandb_mirror import Artifact, publish
from windtunnel.promotion import Promotions
from windtunnel.report.content import Content

CURVES = ("loss_compute", "loss_tokens", "isoflop", "contours", "residuals")
"""Figures whose data are the fitted curves."""


def publish_report(
    tracker: WandbTracker, content: Content, drawings: Sequence[Drawing], folder: Path, root: Path
) -> str:
    """One W&B run a sweep; returns why it failed, or "". ``folder`` holds the written report."""
    drawn = [drawing for drawing in drawings if drawing.figure is not None]
    return publish(
        tracker,
        root,
        run_id=f"{content.sweep}-report",
        name=f"{content.sweep} report",
        summary=summary_of(content),
        images={drawing.name: folder / f"{drawing.name}.png" for drawing in drawn},
        artifacts=artifacts_of(content, drawn, folder, root),
    )


def summary_of(content: Content) -> dict[str, Any]:
    """Coefficients with their intervals, the forecast, and what came of it."""
    values: dict[str, Any] = {f"runs/{status}": count for status, count in content.counts.items()}
    if content.study is not None:
        for name, found in content.study.surface.coefficients.items():
            values |= {f"law/{name}": found.value}
            values |= {f"law/{name}_low": found.low, f"law/{name}_high": found.high}
    if content.answer is not None:
        forecast = content.answer.promotion.forecast
        values |= {
            "forecast/loss_nats": forecast.value,
            "forecast/low": forecast.low,
            "forecast/high": forecast.high,
            "forecast/level": forecast.level,
            "forecast/verdict": content.answer.verdict,
        }
        if content.answer.measured is not None:
            values["forecast/measured_nats"] = content.answer.measured
    return values


def artifacts_of(
    content: Content, drawn: Sequence[Drawing], folder: Path, root: Path
) -> list[Artifact]:
    """The page, the law with its curves, and the newest promotion, where there are any."""
    sweep = content.sweep
    made = [
        Artifact(
            name=_allowed(f"{sweep}-report"),
            type="report",
            files=(folder / "index.html",),
            metadata={"sweep": sweep, "made_at": content.made_at},
        )
    ]
    if content.study is not None:
        curves = [folder / f"{drawing.name}.csv" for drawing in drawn if drawing.name in CURVES]
        made.append(
            Artifact(
                name=_allowed(f"{sweep}-law"),
                type="scaling-law",
                files=(content.fit_path, *curves),
                metadata={
                    "sweep": sweep,
                    "size_variable": content.study.points.size_variable,
                    **{n: c.value for n, c in content.study.surface.coefficients.items()},
                },
            )
        )
    if content.answer is not None:
        promotion = content.answer.promotion
        made.append(
            Artifact(
                name=_allowed(promotion.id),
                type="promotion",
                files=(Promotions(root).path(promotion.id),),
                metadata={
                    "sweep": sweep,
                    "target": promotion.target_name,
                    "train_flops": promotion.train_flops,
                    "forecast_nats": promotion.forecast.value,
                },
            )
        )
    return made


def _allowed(name: str) -> str:
    """``name`` as W&B takes an artifact's: without the plus of ``5e+05``, and the like."""
    return re.sub(r"[^A-Za-z0-9_.-]", "", name)
