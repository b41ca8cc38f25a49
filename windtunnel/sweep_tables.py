"""The tables of `sweep` and `status`: a plan before it runs, runs while and after they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.table import Table

from analysis.wording import WIDTH, brief, counted
from sweeps.plan import Plan, PlannedRun
from sweeps.status import RunReport, SweepStatus
from windtunnel.console import duration, sci, si, table

STATUS_ORDER = (
    "done",
    "running",
    "planned",
    "interrupted",
    "failed",
    "diverged",
)


def plan_table(plan: Plan, status: SweepStatus) -> Table:
    """One row a run, in the order of the ladder; a line of totals below."""
    has_states = status.counts["planned"] < len(plan.runs)
    has_variants = any(run.variant for run in plan.runs)
    columns = ["rung", *["state"] * has_states, *["variant"] * has_variants]
    left = len(columns)
    columns += ["params", "active", "tokens", "batch", "steps", "FLOPs", "peak LR", "time"]
    rows: list[list[str]] = []
    for report in sorted(status.runs, key=_in_ladder_order):
        run, train = report.run, report.run.spec.train
        rung = _rung_label(run)
        words = [
            rung,
            *[report.state.status] * has_states,
            *[variant_text(run.variant)] * has_variants,
        ]
        rows.append(
            [
                *words,
                si(run.cost.total_params),
                si(run.cost.active_params),
                si(train.tokens),
                str(train.batch_tokens),
                str(train.num_steps),
                sci(run.cost.own_flops),
                sci(train.optimizer.peak_lr),
                duration(run.cost.wall_s),
            ]
        )
    made = table(columns, rows, title=f"Plan of {plan.name}", left=left)
    tokens = sum(run.spec.train.tokens for run in plan.measured)
    totals = [
        counted(len(plan.runs), "run", "runs"),
        *[""] * (left - 1),
        "",
        "",
        si(tokens),
        "",
        "",
    ]
    made.add_section()
    made.add_row(*totals, sci(plan.train_flops), "", duration(plan.worker_s))
    return made


def _rung_label(run: PlannedRun) -> str:
    spec = run.spec
    seed = "" if spec.role == "grid" else f" seed {spec.train.seed}"
    if spec.role == "trunk":
        return f"{spec.rung} trunk{seed if spec.train.seed else ''}"
    return f"{spec.rung}{seed}"


def variant_text(variant: Mapping[str, object], between: str = " ") -> str:
    """``peak_lr_factor=0.5``: what the axes set, each path by its last name."""
    return between.join(f"{_short(path, variant)}={value}" for path, value in variant.items())


def _short(path: str, among: Iterable[str]) -> str:
    """The last name of a path; where another ends alike, with the first name that tells them apart:
    ``first.math`` and ``second.math`` of ``data.stages.first.weights.math`` and its twin.
    """
    parts = path.split(".")
    for other in (each.split(".") for each in among):
        differing = [one for one, two in zip(parts, other, strict=False) if one != two]
        if differing and other[-1] == parts[-1]:
            return f"{differing[0]}.{parts[-1]}"
    return parts[-1]


def run_label(run: PlannedRun) -> str:
    """A run for people: rung, role where it is not the grid's, and its id."""
    role = "" if run.spec.role in ("grid", run.spec.rung) else f" {run.spec.role}"
    variant = f" {variant_text(run.variant)}" if run.variant else ""
    return f"{run.spec.rung}{role}{variant} {run.run_id}"


def counts_text(status: SweepStatus) -> str:
    """``20 done, 2 running, 1 failed``."""
    counts = status.counts
    return ", ".join(f"{counts[name]} {name}" for name in STATUS_ORDER if counts[name])


def quoted(log_tail: str, lines: int = 5) -> list[str]:
    """The last lines of a log, set off from ours."""
    return [f"    | {brief(line, most=WIDTH - 6)}" for line in log_tail.splitlines()[-lines:]]


def _in_ladder_order(report: RunReport) -> tuple[float, str, int, int]:
    run, train = report.run, report.run.spec.train
    return run.cost.flops_per_token, variant_text(run.variant), train.tokens, train.seed
