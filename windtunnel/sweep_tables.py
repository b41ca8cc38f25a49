"""The tables of `sweep` and `status`: a plan before it runs, runs while and after they run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from rich.table import Table

from sweeps.plan import Plan, PlannedRun
from sweeps.store import RunState, RunStatus
from windtunnel.console import brief, duration, si, table

STATUS_ORDER: tuple[RunStatus, ...] = (
    "done",
    "running",
    "planned",
    "interrupted",
    "failed",
    "diverged",
)


def plan_table(plan: Plan, states: Mapping[str, RunState]) -> Table:
    """One row a run, in the order of the ladder; a line of totals below."""
    has_variants = any(run.variant for run in plan.runs)
    columns = ["rung", "state"]
    columns += ["variant"] if has_variants else []
    left = len(columns)
    columns += ["seed", "params", "active", "tokens", "batch", "steps", "FLOPs", "peak LR", "time"]
    rows: list[list[str]] = []
    for run in sorted(plan.runs, key=_in_ladder_order):
        train = run.spec.train
        words = [run.spec.rung, states[run.run_id].status]
        words += [variant_text(run)] if has_variants else []
        rows.append(
            [
                *words,
                str(train.seed),
                si(run.cost.total_params),
                si(run.cost.active_params),
                si(train.tokens),
                str(train.batch_tokens),
                str(train.num_steps),
                f"{run.cost.train_flops:.2e}",
                f"{train.optimizer.peak_lr:.2e}",
                duration(run.cost.wall_s),
            ]
        )
    made = table(columns, rows, title=f"Plan of sweep {plan.name}", left=left)
    tokens = sum(run.spec.train.tokens for run in plan.runs)
    totals = [f"{len(plan.runs)} runs", *[""] * (left - 1), "", "", "", si(tokens), "", ""]
    made.add_section()
    made.add_row(*totals, f"{plan.train_flops:.2e}", "", duration(plan.worker_s))
    return made


def variant_text(run: PlannedRun) -> str:
    """``peak_lr_factor=0.5``: the last name of each path an axis set."""
    return " ".join(f"{path.rpartition('.')[2]}={value}" for path, value in run.variant.items())


def run_label(run: PlannedRun) -> str:
    """A run for people: rung, role where it is not the grid's, and its id."""
    role = "" if run.spec.role == "grid" else f" {run.spec.role}"
    variant = f" {variant_text(run)}" if run.variant else ""
    return f"{run.spec.rung}{role}{variant} {run.run_id}"


def counts_text(states: Iterable[RunState]) -> str:
    """``20 done, 2 running, 1 failed``."""
    counts = Counter(state.status for state in states)
    return ", ".join(f"{counts[status]} {status}" for status in STATUS_ORDER if counts[status])


def quoted(log_tail: str, lines: int = 5) -> list[str]:
    """The last lines of a log, set off from ours."""
    return [f"    | {brief(line)}" for line in log_tail.splitlines()[-lines:]]


def _in_ladder_order(run: PlannedRun) -> tuple[float, str, int, int]:
    train = run.spec.train
    return run.cost.flops_per_token, variant_text(run), train.tokens, train.seed
