"""A promotion on one screen: what, how well forecast, chosen why, past which gates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from analysis.results import Interval
from analysis.wording import counted, level_text
from model.memory import activation_memory, state_memory
from sweeps.spec import RunSpec
from windtunnel.along import Evaluated, Waypoint
from windtunnel.choices import Choice
from windtunnel.console import si, table
from windtunnel.folding import Folded
from windtunnel.ledger_rows import Entry, OutcomeRow, TableOutcomeRow
from windtunnel.load_forecast import LoadForecast
from windtunnel.machine.memory_plan import FP32
from windtunnel.machine.tables import describe_plan
from windtunnel.promotion import Promotion
from windtunnel.table_runs import place_text


def describe(promotion: Promotion) -> Iterator[RenderableType]:
    """The promotion, part by part, for `promote` and for the flight plan of `launch`."""
    yield Text(f"Promotion {promotion.id}")
    yield from _what(promotion)
    forecast, evidence = promotion.forecast, promotion.evidence
    yield Folded(
        f"Forecast: {nats(forecast)}, {forecast.extrapolation_ratio:.3g} times the compute of the "
        "largest run"
    )
    yield Folded(f"  by {evidence.law}, fitted to {len(evidence.run_ids)} runs")
    if promotion.second_opinion is not None:
        yield Folded(f"  by L(C) through the lowest losses: {nats(promotion.second_opinion)}")
    yield Folded(f"  {promotion.along_the_run}")
    for waypoint in promotion.waypoints:
        yield Text(f"    at step {waypoint.step}: {nats(waypoint.forecast)}")
    for load in promotion.loads:
        yield Folded(f"  {load.name}: {load.note or interval_text(load)}")
    yield table(
        ["choice", "law", "wanted", f"{level_text(forecast.level)} interval", "used", "cost nats"],
        map(_choice_row, promotion.choices),
        left=2,
        title="Choices",
    )
    for note in dict.fromkeys(choice.note for choice in promotion.choices if choice.note):
        names = [choice.name for choice in promotion.choices if choice.note == note]
        yield Folded(f"  {', '.join(names)}: {note}")
    if promotion.published:
        yield table(
            ["field", "ours", "published", "why"],
            ((row.field, row.ours, row.published, row.why) for row in promotion.published),
            left=4,
            title=f"Beside the published {promotion.target_name}",
        )
    if promotion.machine is not None:
        yield from describe_plan(promotion.machine)
        if promotion.begun_from is not None:
            steps, done = promotion.spec.train.num_steps, promotion.begun_from.step
            yield Text(f"Time and GPU-hours are of the {steps - done} steps left of {steps}")
    yield table(
        ["gate", "", "found"],
        (
            (gate.name, "passed" if gate.passed else "FAILED", gate.sentence)
            for gate in promotion.gates
        ),
        left=3,
        title="Gates",
    )
    for note in promotion.notes:
        yield Folded(f"Note: {note}")


def nats(forecast: Interval) -> str:
    """``2.0312 nats, 90% interval 2.0043 to 2.0581``."""
    return (
        f"{forecast.value:.4f} nats, {level_text(forecast.level)} interval {forecast.low:.4f} to "
        f"{forecast.high:.4f}"
    )


def interval_text(load: LoadForecast) -> str:
    """A forecast load, its interval and its law."""
    found = load.prediction
    assert found is not None, "a forecast without a prediction has a note"
    return (
        f"{found.value:.3g}, {level_text(found.level)} interval {found.low:.3g} to {found.high:.3g}"
    )


def waypoint_text(waypoint: Waypoint, found: Evaluated) -> str:
    """An evaluation on the way against its band."""
    band = waypoint.forecast
    verdict = "inside"
    if not band.contains(found.loss_nats):
        verdict = "OUTSIDE, above" if found.loss_nats > band.high else "OUTSIDE, below"
    return (
        f"in flight, step {waypoint.step}: measured {found.loss_nats:.4f} nats, {verdict} "
        f"{band.low:.4f} to {band.high:.4f}"
    )


def verdict_text(entry: Entry) -> str:
    """Forecast, interval, measured, inside or OUTSIDE, in one line."""
    forecast, outcome = entry.forecast.forecast, entry.outcome
    said = f"forecast {nats(forecast)}"
    if outcome is None:
        return f"{said}; not measured yet"
    if outcome.loss_nats is None:
        return f"{said}; the run diverged ({outcome.reason}): the forecast missed"
    miss = outcome.loss_nats - forecast.value
    return f"{said}; measured {outcome.loss_nats:.4f} nats ({miss:+.4f}): {entry.verdict}"


def origin_text(entry: Entry) -> list[str]:
    """Where an outcome is from that no run here measured, and what to think of it."""
    outcome = entry.outcome
    if isinstance(outcome, OutcomeRow) and outcome.stated_by:
        said = f"The loss was not measured here but stated ({outcome.stated_by})"
        return [f"{said}; it is no evidence on the intervals."]
    if not isinstance(outcome, TableOutcomeRow):
        return []
    others = outcome.num_matching - 1
    more = f", the nearest of {outcome.num_matching} there" if others else ""
    said = f"Measured: {outcome.row} of {outcome.table}, at {place_text(outcome.at)}{more}"
    if outcome.num_changed:
        said += (
            f". {counted(outcome.num_changed, 'row', 'rows')} that the law was fitted to can't be "
            "found there as before, so its losses may be by another measure: no evidence on the "
            "intervals until a table is given that has them"
        )
    return [said]


def ledger_table(entries: tuple[Entry, ...]) -> Table:
    """One row a forecast. Where levels differ each interval has its own beside it."""
    levels = {entry.forecast.forecast.level for entry in entries}
    interval = f"{level_text(*levels)} interval" if len(levels) == 1 else "interval"
    columns = [
        "name",
        "from a",
        "registered",
        "ahead",
        "forecast",
        interval,
        "measured",
        "verdict",
    ]
    rows = _ledger_rows(entries, own_levels=len(levels) > 1)
    return table(columns, rows, left=2, title="Forecasts and outcomes")


def _ledger_rows(entries: tuple[Entry, ...], *, own_levels: bool) -> Iterator[tuple[str, ...]]:
    for entry in entries:
        row, outcome = entry.forecast, entry.outcome
        forecast = row.forecast
        measured = outcome.loss_nats if outcome is not None else None
        own_level = f" ({level_text(forecast.level)})" if own_levels else ""
        yield (
            _in_two(entry.name),
            entry.kind,
            row.registered_at[:10],
            f"{forecast.extrapolation_ratio:.3g}x",
            f"{forecast.value:.4f}",
            f"{forecast.low:.4f}..{forecast.high:.4f}{own_level}",
            "" if measured is None else f"{measured:.4f}",
            entry.verdict,
        )


def _in_two(name: str) -> str:
    """A name that the table has no room for, folded before its hash and not one character off."""
    head, _, tail = name.rpartition("-")
    return name if len(name) <= LONGEST_ID else f"{head}-\n{tail}"


LONGEST_ID = 26


def _what(promotion: Promotion) -> Iterator[Text]:
    model, train = promotion.spec.model, promotion.spec.train
    moe = model.moe
    experts = (
        f"{moe.num_experts} experts of width {moe.expert_width}, {moe.experts_per_token} a token "
        f"and {moe.num_shared_experts} shared"
        if moe is not None
        else f"dense, width {model.dense_width}"
    )
    rows = [
        ("run", promotion.run_id),
        ("target", f"{promotion.target_name} of sweep {promotion.sweep}"),
        ("shape", f"width {model.hidden_size}, {model.num_layers} layers, {experts}"),
        (
            "parameters",
            f"{si(promotion.total_params)} in total, {si(promotion.active_params)} active",
        ),
        (
            "training",
            f"{si(train.tokens)} tokens in {train.num_steps} steps of {train.batch_tokens}, peak "
            f"LR {train.optimizer.peak_lr:.3g}, {promotion.train_flops:.3g} FLOPs",
        ),
        ("memory", memory_text(promotion.spec)),
        *(("own", f"{part.kind} by {part.name}") for part in model.own),
    ]
    for name, text in rows:
        yield Text(f"  {name:<11} {text}")


def memory_text(spec: RunSpec) -> str:
    """State, and activations of one whole batch, on one device."""
    plan = replace(FP32, product_bytes=2) if spec.train.precision == "bf16" else FP32
    state = state_memory(spec.model, plan).total
    if spec.model.own:
        named = ", ".join(part.name for part in spec.model.own)
        return f"{si(state)}B of weights, gradients and moments; activations not known of {named}"
    activations = activation_memory(
        spec.model,
        plan,
        sequence_length=spec.train.sequence_length,
        sequences=spec.train.batch_tokens // spec.train.sequence_length,
    ).total
    return f"{si(state)}B of weights, gradients and moments, {si(activations)}B of activations"


def _choice_row(choice: Choice) -> tuple[str, ...]:
    interval = (
        "none"
        if choice.low is None or choice.high is None
        else f"{choice.low:.3g}..{choice.high:.3g}"
    )
    cost = "" if choice.cost_nats is None else f"{choice.cost_nats:+.4f}"
    return (
        choice.name,
        choice.law,
        f"{choice.wanted:.4g}",
        interval,
        f"{choice.used:.4g}",
        cost,
    )
