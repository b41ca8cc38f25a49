"""Promote a larger model from a fitted sweep: its shape, its forecast, the evidence behind both.

The fitted surface chooses size and tokens for the target; learning rate, batch and shape come from
the recipe that made the rungs. The promotion is stored under ROOT/promotions and frozen: the
forecast with its interval, every choice with its law and the cost of rounding it to a real shape,
and the gates a launch must pass.

A launched run, finished or still running, can start a second stage: `target=continue` trains it
longer, `target=decay` ends it early, `target=merge` averages its weights, `target=extend` lengthens
its context. What the stage starts from is set aside at once.

Example:
  windtunnel promote sweep=quickstart
  windtunnel promote sweep=quickstart target=compute target.train_flops=2e13 dry_run=true
  windtunnel promote sweep=quickstart target=ling_mini
  windtunnel promote sweep=quickstart target=decay target.launched=latest
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sweeps.store import Store
from windtunnel.choices import SizeRange
from windtunnel.console import prose, say
from windtunnel.finished import load_sweep
from windtunnel.forecasting import Settings
from windtunnel.gates import GateThresholds
from windtunnel.machine.hardware import Hardware
from windtunnel.promotion import Promotion, Promotions
from windtunnel.promotion_tables import describe
from windtunnel.quoting import under
from windtunnel.recommend import recommend
from windtunnel.second_stage import Start, recommend_stage, set_aside_for
from windtunnel.targets import SecondStage, Target


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/promote.yaml``."""

    root: Path
    sweep: str
    target: Target
    level: float
    size_range: SizeRange
    gates: GateThresholds
    hardware: Hardware
    gpus: int
    """Of the machine that the run is planned for."""
    dry_run: bool


def run(config: Config, console: Console) -> int:
    """Make the promotion, show it, keep it."""
    sweep = load_sweep(config.root, config.sweep)
    settings = Settings(
        level=config.level,
        size_range=config.size_range,
        thresholds=config.gates,
        hardware=config.hardware,
        gpus=config.gpus,
    )
    promotions, store = Promotions(config.root), Store(config.root)
    launched: Promotion | None = None
    starts: tuple[Start, ...] = ()
    if isinstance(config.target, SecondStage):
        launched = promotions.find(config.target.launched)
        promotion, starts = recommend_stage(sweep, config.target, settings, store, launched)
    else:
        promotion = recommend(sweep, config.target, settings)
    if not config.dry_run:
        # What it begins with first: a promotion that stands can be launched.
        if launched is not None:
            set_aside_for(store, launched, promotion, starts)
        # Kept before it is shown: a closed pipe ends the printing, not the promotion.
        kept, is_new = promotions.save(promotion)
    for part in describe(promotion):
        console.print(part)
    if config.dry_run:
        console.print("A dry run: nothing was kept.")
        return 0
    path = promotions.path(kept.id)
    console.print(
        f"Kept as {path}" if is_new else f"Promoted before, on {kept.created_at}: {path} stands",
        markup=False,
    )
    failed = kept.failed_gates
    if failed:
        for gate in promotion.gates:
            if not gate.passed and "`" in gate.sentence:  # a table breaks its commands
                say(console, f"{gate.name}: {gate.sentence}")
        prose(
            console,
            f"A launch will be refused by {', '.join(failed)}; it can be overridden by name with "
            f"a reason, e.g. override.{failed[0]}='...'",
        )
    say(console, f"Next: windtunnel launch promotion=latest{under(config.root)} dry_run=true")
    return 0
