"""What happens at this moment: how far the sweep is, what runs, how its losses fall."""

from __future__ import annotations

from typing import Any

from analysis.curves import Curve
from sweeps.plan import Plan
from sweeps.status import RunReport, SweepStatus, sweep_status
from sweeps.store import RunState
from windtunnel.console import duration, sci
from windtunnel.report.sources import Sources
from windtunnel.sweep_tables import counts_text, run_label

MOST_RUNNING = 12


def now_of(plan: Plan, sources: Sources, launched: str | None) -> dict[str, Any]:
    """Counts, the running runs with their curves, and the ``launched`` run where there is one."""
    status = sweep_status(plan, sources.store)
    running = status.with_status("running")
    return {
        "counts": dict(status.counts),
        "text": counts_text(status),
        "complete": status.is_complete,
        "share": status.train_flops_done / status.train_flops if status.train_flops else 1.0,
        "cost": _cost(status),
        "running": [_running(report, sources) for report in running[:MOST_RUNNING]],
        "more": max(0, len(running) - MOST_RUNNING),
        "launch": _launch(launched, sources) if launched else None,
    }


def _cost(status: SweepStatus) -> str:
    left_s = status.left_s(slots=1)
    cost = f"{sci(status.train_flops_done)} of {sci(status.train_flops)} training FLOPs"
    return f"{cost}; about {duration(left_s)} of one worker to come" if left_s else cost


def _running(report: RunReport, sources: Sources) -> dict[str, Any]:
    return {
        "label": run_label(report.run),
        "left": duration(report.left_s),
        **_progress(report.state),
        "curve": curve_data(sources.curve(report.state.run_id)),
    }


def _launch(run_id: str, sources: Sources) -> dict[str, Any] | None:
    """The promoted run, while it trains."""
    state = sources.store.state(run_id)
    if state.status not in ("running", "interrupted"):
        return None
    return {
        "label": run_id,
        "left": "",
        **_progress(state),
        "curve": curve_data(sources.curve(run_id)),
    }


def _progress(state: RunState) -> dict[str, Any]:
    heartbeat = state.heartbeat
    progress = heartbeat.progress if heartbeat else None
    return {
        "id": state.run_id,
        "status": state.status,
        "phase": heartbeat.phase if heartbeat else "starting",
        "step": progress.step if progress else 0,
        "steps": progress.num_steps if progress else 0,
        "loss": progress.loss if progress else None,
        "tokens_per_s": progress.tokens_per_s if progress else None,
    }


def curve_data(curve: Curve | None) -> dict[str, Any] | None:
    """A thinned curve as plain numbers, with what it was thinned from."""
    if curve is None:
        return None
    return {
        "tokens": [float(f"{value:.5g}") for value in curve.tokens],
        "loss": [float(f"{value:.5g}") for value in curve.loss],
        "lines": curve.lines,
        "sampled": curve.sampled,
    }
