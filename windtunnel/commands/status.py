"""How a sweep stands: counts, what runs now, what failed and why, cost so far and to come.

Without `sweep=NAME` it lists every sweep under the root. `watch=true` stays and redraws.
The exit code is 0 when every run is done and 1 while any is not, for scripts.

Example:
  windtunnel status sweep=quickstart
  windtunnel status sweep=quickstart watch=true
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from model.config import require_positive
from model.errors import ConfigError
from sweeps.plan import Plan, PlannedRun, read_plan
from sweeps.store import RunState, Store
from windtunnel.console import brief, duration, table
from windtunnel.sweep_tables import counts_text, quoted, run_label

MOST_RUNNING_ROWS = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    """``conf/status.yaml``."""

    root: Path
    sweep: str | None
    """Name of a sweep; null lists all."""
    watch: bool
    every_s: float
    """Seconds between redraws."""

    def __post_init__(self) -> None:
        require_positive(every_s=self.every_s)


def run(config: Config, console: Console) -> int:
    """Print it once, or until every run is over."""
    store = Store(config.root)
    if config.sweep is None:
        return _list_sweeps(store, console)
    plan = known_plan(store, config.sweep)
    states = states_of(plan, store)
    if config.watch:
        with Live(console=console, auto_refresh=False) as live:
            while any(state.status in ("running", "planned") for state in states.values()):
                live.update(Group(*describe(plan, states, store)), refresh=True)
                time.sleep(config.every_s)
                states = states_of(plan, store)
    for part in describe(plan, states, store):
        console.print(part)
    return 0 if _is_done(states) else 1


def known_plan(store: Store, sweep: str) -> Plan:
    """The plan of ``sweep``; ConfigError lists the sweeps there are."""
    path = store.plan_path(sweep)
    if not path.exists():
        names = ", ".join(sweep_names(store)) or "none"
        raise ConfigError(f"sweep={sweep}: no such sweep under {store.root}. There are: {names}")
    return read_plan(path)


def sweep_names(store: Store) -> list[str]:
    """Every sweep with a plan under the root."""
    return sorted(
        path.parent.name for path in store.plan_path("*").parent.parent.glob("*/plan.json")
    )


def states_of(plan: Plan, store: Store) -> dict[str, RunState]:
    """The state of each run of the plan, by run id."""
    return {run.run_id: store.state(run.run_id) for run in plan.runs}


def describe(plan: Plan, states: Mapping[str, RunState], store: Store) -> Iterator[RenderableType]:
    """What there is to say, part by part."""
    yield Text(f"Sweep {plan.name}: {len(plan.runs)} runs, {counts_text(states.values())}")
    running = [run for run in plan.runs if states[run.run_id].status == "running"]
    if running:
        rows = [_running_row(run, states[run.run_id]) for run in running[:MOST_RUNNING_ROWS]]
        columns = ["running", "phase", "step", "loss", "tokens/s", "left"]
        yield table(columns, rows, left=2)
    for run in plan.runs:
        state = states[run.run_id]
        if state.status in ("failed", "diverged", "interrupted"):
            yield Text(f"{state.status}: {run_label(run)}: {brief(state.reason)}")
        if state.status == "failed":
            yield from map(Text, quoted(store.log_tail(run.run_id)))
    yield Text(_cost_text(plan, states))
    yield Text(_next_step(plan, states))


def _running_row(run: PlannedRun, state: RunState) -> list[str]:
    heartbeat = state.heartbeat
    progress = heartbeat.progress if heartbeat else None
    phase = heartbeat.phase if heartbeat else "starting"
    if progress is None:
        return [run_label(run), phase, "", "", "", duration(run.cost.wall_s)]
    tokens = run.spec.train.batch_tokens * (progress.num_steps - progress.step)
    left = duration(tokens / progress.tokens_per_s) if progress.tokens_per_s > 0 else ""
    return [
        run_label(run),
        phase,
        f"{progress.step}/{progress.num_steps}",
        "" if progress.loss is None else f"{progress.loss:.3f}",
        f"{progress.tokens_per_s:,.0f}",
        left,
    ]


def _cost_text(plan: Plan, states: Mapping[str, RunState]) -> str:
    """FLOPs are exact; seconds are the plan's estimate on one worker."""
    flops, left_s = 0.0, 0.0
    for run in plan.runs:
        state = states[run.run_id]
        progress = state.heartbeat.progress if state.heartbeat else None
        frac = progress.step / progress.num_steps if progress else 0.0
        frac = 1.0 if state.status in ("done", "diverged") else frac
        flops += frac * run.cost.train_flops
        left_s += (1 - frac) * run.cost.wall_s
    text = f"Cost: {flops:.2e} of {plan.train_flops:.2e} training FLOPs"
    return f"{text}; about {duration(left_s)} of one worker to come" if left_s else text


def _next_step(plan: Plan, states: Mapping[str, RunState]) -> str:
    if _is_done(states):
        return f"All done. Next: windtunnel fit sweep={plan.name}"
    return f"To go on: the command that started it, windtunnel sweep ... name={plan.name}"


def _is_done(states: Mapping[str, RunState]) -> bool:
    return all(state.status == "done" for state in states.values())


def _list_sweeps(store: Store, console: Console) -> int:
    names = sweep_names(store)
    if not names:
        console.print(
            f"No sweep under {store.root} yet. Start one: windtunnel sweep sweep=quickstart",
            markup=False,
        )
        return 1
    rows, all_done = [], True
    for name in names:
        plan = read_plan(store.plan_path(name))
        states = states_of(plan, store)
        all_done &= _is_done(states)
        rows.append([name, counts_text(states.values()), len(plan.runs), f"{plan.train_flops:.2e}"])
    console.print(table(["sweep", "runs", "total", "FLOPs"], rows, left=2))
    return 0 if all_done else 1
