"""Status of a sweep: counts, what is running, what failed and why, cost so far and to come.

Without `sweep=NAME` it lists every sweep under the root. `watch=true` keeps redrawing it.
For scripts, the exit code is 0 when every run is done and 1 otherwise, and `json=true` prints one
JSON object: the counts, and of each run its status, reason and share of steps done.

Example:
  windtunnel status sweep=quickstart
  windtunnel status sweep=quickstart watch=true
  windtunnel status sweep=quickstart json=true
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from analysis.wording import brief, counted
from model.config import require, require_positive
from model.errors import ConfigError
from sweeps.plan import Plan
from sweeps.plan_file import read_plan, skim_plan
from sweeps.status import RunReport, SweepStatus, sweep_status
from sweeps.store import Store
from windtunnel.console import duration, say, sci, si, table
from windtunnel.fallen import fallen_lines
from windtunnel.folding import Folded
from windtunnel.for_scripts import ForScripts, write_answer
from windtunnel.next_step import after_training
from windtunnel.quoting import under
from windtunnel.sweep_tables import counts_text, quoted, run_label
from windtunnel.yaml_folders import config_dirs


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/status.yaml``."""

    root: Path
    sweep: str | None
    """Name of a sweep; null lists all."""
    watch: bool
    every_s: float
    """Seconds between redraws."""
    rows: int
    """Running runs, failed, diverged and interrupted ones that are shown of each kind."""

    def __post_init__(self) -> None:
        require_positive(every_s=self.every_s, rows=self.rows)
        require(not (self.json and self.watch), "json and watch: choose one; json prints once")


def run(config: Config, console: Console) -> int:
    """Print it once, or until every run is over."""
    store = Store(config.root)
    if config.sweep is None:
        return _list_sweeps(store, console, as_json=config.json)
    plan = known_plan(store, config.sweep, read=skim_plan)
    status = sweep_status(plan, store)
    if config.json:
        write_answer("status", as_json(plan, status))
        return 0 if status.is_complete else 1
    if config.watch:
        with Live(console=console, auto_refresh=False) as live:
            while status.with_status("running", "planned"):
                live.update(Group(*describe(plan, status, store, config.rows)), refresh=True)
                time.sleep(config.every_s)
                status = sweep_status(plan, store)
    for part in describe(plan, status, store, config.rows):
        if isinstance(part, Folded):
            say(console, part.in_columns(console.width))
        elif isinstance(part, Text):
            say(console, part.plain)
        else:
            console.print(part)
    return 0 if status.is_complete else 1


def as_json(plan: Plan, status: SweepStatus) -> dict[str, Any]:
    """What a script asks of a sweep, units in the names."""
    return {
        **_counts(plan, status),
        "train_flops_done": status.train_flops_done,
        "left_worker_s": status.left_s(slots=1),
        "runs": [
            {
                "run_id": report.state.run_id,
                "rung": report.run.spec.rung,
                "role": report.run.spec.role,
                "variant": report.run.variant,
                "status": report.state.status,
                "reason": report.state.reason,
                "attempt": report.state.attempt,
                "done_frac": report.done_frac,
            }
            for report in status.runs
        ],
    }


def _counts(plan: Plan, status: SweepStatus) -> dict[str, Any]:
    return {
        "sweep": plan.name,
        "complete": status.is_complete,
        "counts": dict(status.counts),
        "train_flops": status.train_flops,
    }


def known_plan(store: Store, sweep: str, *, read: Callable[[Path], Plan] = read_plan) -> Plan:
    """The plan of ``sweep``; ConfigError lists the sweeps there are."""
    path = store.plan_path(sweep)
    if not path.exists():
        names = ", ".join(sweep_names(store)) or "none"
        known = any((folder / "sweep" / f"{sweep}.yaml").is_file() for folder in config_dirs())
        typed = f"windtunnel sweep sweep={sweep}{under(store.root)}"
        train = f". To train it: {typed}" if known else ""
        raise ConfigError(
            f"sweep={sweep}: no such sweep under {store.root.absolute()}. There are: {names}{train}"
        )
    return read(path)


def sweep_names(store: Store) -> list[str]:
    """Every sweep with a plan under the root."""
    return [path.parent.name for path in store.plan_paths()]


def describe(plan: Plan, status: SweepStatus, store: Store, rows: int) -> Iterator[RenderableType]:
    """What there is to say, part by part; of each kind of run at most ``rows``."""
    yield Text(
        f"Sweep {plan.name}: {counted(len(plan.runs), 'run', 'runs')}, {counts_text(status)}"
    )
    running = status.with_status("running")
    if running:
        columns = ["running", "phase", "step", "loss", "curve", "tokens/s", "left"]
        yield table(columns, [_running_row(store, report) for report in running[:rows]], left=2)
        yield from _rest("running", len(running), rows)
    finished = longest_of_each_size(status)
    if finished:
        columns = ["done, the longest of each size", "tokens", "loss", "training loss", "took"]
        yield table(columns, [_done_row(store, report) for report in finished[-rows:]])
        yield from _rest("sizes", len(finished), rows)
    for kind in ("failed", "diverged", "interrupted"):
        reports = status.with_status(kind)
        for report in reports[:rows]:
            yield Folded(f"{kind}: {run_label(report.run)}: {brief(report.state.reason)}")
            if kind == "failed":
                yield from map(Text, quoted(store.log_tail(report.state.run_id)))
        yield from _rest(kind, len(reports), rows)
    if status.counts["done"]:
        yield from map(Folded, fallen_lines(plan, store))
    cost = f"Cost: {sci(status.train_flops_done)} of {sci(status.train_flops)} training FLOPs"
    left_s = status.left_s(slots=1)
    yield Text(f"{cost}; about {duration(left_s)} of one worker to come" if left_s else cost)
    yield Text(_next_step(plan, status, store.root))


def _rest(kind: str, count: int, rows: int) -> Iterator[Text]:
    if count > rows:
        yield Text(f"{kind}: {count - rows} more; rows={count} shows all")


def _running_row(store: Store, report: RunReport) -> list[str]:
    heartbeat = report.state.heartbeat
    progress = heartbeat.progress if heartbeat else None
    phase = heartbeat.phase if heartbeat else "starting"
    numbers = ["", "", "", ""]
    if progress is not None:
        loss = "" if progress.loss is None else f"{progress.loss:.3f}"
        step = f"{progress.step}/{progress.num_steps}"
        *_, newest = store.attempts(report.state.run_id)
        curve = _falling(newest / "metrics.jsonl")
        numbers = [step, loss, curve, f"{progress.tokens_per_s:,.0f}"]
    return [run_label(report.run), phase, *numbers, duration(report.left_s)]


def longest_of_each_size(status: SweepStatus) -> list[RunReport]:
    """One finished run a size, small to large."""
    longest: dict[float, RunReport] = {}
    for report in status.with_status("done"):
        cost = report.run.cost
        kept = longest.get(cost.flops_per_token)
        if kept is None or cost.train_flops > kept.run.cost.train_flops:
            longest[cost.flops_per_token] = report
    return [longest[size] for size in sorted(longest)]


def _done_row(store: Store, report: RunReport) -> list[str]:
    run, record = report.run, store.record(report.run.run_id)
    tokens = si(run.spec.train.tokens)
    if record is None:
        return [run_label(run), tokens, "", "", ""]
    loss = f"{record.heldout_nats:.4f}"
    curve = _falling(store.run_dir(run.run_id) / "metrics.jsonl")
    return [run_label(run), tokens, loss, curve, duration(record.wall_s)]


def _falling(metrics: Path) -> str:
    """The training loss so far, in a dozen characters."""
    from analysis.curves import read_curve  # here: a status of nothing that ran stays quick
    from analysis.sparkline import sparkline

    curve = read_curve(metrics)
    return sparkline(curve.loss.tolist()) if curve else ""


def _next_step(plan: Plan, status: SweepStatus, root: Path) -> str:
    if status.is_complete:
        return f"All done. Next: {after_training(plan, root)}"
    if status.with_status("running"):
        return f"Running. To watch: windtunnel status sweep={plan.name}{under(root)} watch=true"
    kinds = [kind for kind in ("failed", "diverged") if status.counts[kind]]
    retry = kinds[0] if len(kinds) == 1 else "all"
    again = f"what {' or '.join(kinds)} again"
    if status.with_status("planned", "interrupted"):
        also = f"; with retry={retry} it tries {again}" if kinds else ""
        return f"To continue: the command that started it{also}."
    return f"To try {again}: the command that started it, with retry={retry}."


def _list_sweeps(store: Store, console: Console, *, as_json: bool) -> int:
    names = sweep_names(store)
    if not names and not as_json:
        say(
            console,
            f"No sweep under {store.root.absolute()} yet. "
            f"Start one: windtunnel sweep sweep=quickstart{under(store.root)}",
        )
        return 1
    rows, counts, all_done = [], [], bool(names)
    for name in names:
        plan = skim_plan(store.plan_path(name))
        status = sweep_status(plan, store)
        all_done &= status.is_complete
        counts.append(_counts(plan, status))
        rows.append([name, counts_text(status), len(status.runs), sci(status.train_flops)])
    if as_json:
        write_answer("status", {"sweeps": counts})
        return 0 if all_done else 1
    console.print(table(["sweep", "state", "runs", "FLOPs"], rows, left=2))
    return 0 if all_done else 1
