"""Launch a promotion: gates, forecast registered, training, outcome held against the forecast.

The order is the point. The forecast stands in the ledger before the first step, so a result can
neither move nor hide it; training goes through the same store and worker as the rungs, so a killed
launch is resumed by the same command, and one that is over is not trained again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from analysis.records import RunRecord
from model.errors import RunFailed
from model.training.config import RuntimeConfig, TrainConfig
from model.training.schedules import trunk_steps
from sweeps.cost import RunCost
from sweeps.events import Event
from sweeps.executors.base import Executor
from sweeps.plan import Plan, PlannedRun
from sweeps.run import run_sweep
from sweeps.spec import run_id
from sweeps.spread import Spread, set_spread
from sweeps.store import Store
from windtunnel.elsewhere import Elsewhere, measuring_spec, require_same_model, stated_outcome
from windtunnel.gates import check_gates
from windtunnel.ledger import Ledger, utc_now
from windtunnel.ledger_rows import Entry, ForecastRow, OutcomeRow
from windtunnel.promotion import Promotion

if TYPE_CHECKING:
    from model.training.initial import GivenWeights

RETRY: tuple[Literal["failed"]] = ("failed",)
"""Launching again means to try again; a run that diverged would diverge again."""


@dataclass(frozen=True, kw_only=True)
class Launched:
    """How a launch stands when the command ends."""

    entry: Entry
    record: RunRecord | None
    """None where the run was interrupted; the same command goes on with it."""
    was_over: bool
    """Whether it was over before, so that nothing was trained in this session."""


def accepted_overrides(
    promotion: Promotion, ledger: Ledger, overrides: Mapping[str, str]
) -> dict[str, str]:
    """The overrides this launch needs: those given and those registered when it first started.

    Raises:
        LaunchRefused: a gate failed and nobody overrode it.
    """
    entry = ledger.find(promotion.id)
    registered = {}
    if entry is not None and isinstance(entry.forecast, ForecastRow):
        registered = entry.forecast.overrides
    return check_gates(promotion.gates, {**registered, **overrides}, where=promotion.id)


def forecast_row(promotion: Promotion) -> ForecastRow:
    """What the ledger is told of ``promotion``, as if all its gates had passed."""
    return ForecastRow(
        promotion_id=promotion.id,
        promotion_hash=promotion.content_hash,
        run_id=promotion.run_id,
        sweep=promotion.sweep,
        target=promotion.target_name,
        registered_at=utc_now(),
        train_flops=promotion.train_flops,
        forecast=promotion.forecast,
    )


def planned(
    promotion: Promotion,
    cost: RunCost,
    runtime: RuntimeConfig,
    *,
    keep_weights: int = 0,
    given: GivenWeights | None = None,
) -> PlannedRun:
    """What a launch runs.

    ``keep_weights``: so many are kept for an average, see :func:`with_kept`.
    ``given``: weights that another engine has trained to the promotion's end; they are measured.

    Raises:
        ConfigError: the given weights are not of the promotion's model.
    """
    if given is None:
        train = with_kept(promotion.spec.train, keep_weights)
        spec = replace(promotion.spec, runtime=runtime, train=train)
        return PlannedRun(run_id=promotion.run_id, spec=spec, cost=cost)
    require_same_model(given, promotion, "trained.weights")
    spec = replace(measuring_spec(promotion, given), runtime=runtime)
    return PlannedRun(run_id=run_id(spec), spec=spec, cost=cost)


def launch(
    promotion: Promotion,
    run: PlannedRun,
    *,
    store: Store,
    ledger: Ledger,
    executor: Executor,
    overrides: Mapping[str, str],
    spread: Spread | None = None,
    given: GivenWeights | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
) -> Launched:
    """Register the forecast, train what is not yet trained, record the outcome.

    ``run``: as :func:`planned`, which was told of the same ``given`` weights.
    ``spread``: over which processes the run is trained from here on; None for one.

    Raises:
        LaunchRefused: naming every gate that failed and was not overridden.
        RunFailed: training ended without a record; the ledger's entry stays open.
    """
    register(promotion, store, ledger, overrides, is_measured=given is not None)
    name = run.run_id
    before = store.state(name)
    folder = store.create(run.spec)
    if given is not None:
        from model.training.initial import place_weights  # here: it needs torch

        place_weights(given, folder / "begins")
    set_spread(folder, spread)
    result = run_sweep(Plan(name=promotion.id, runs=(run,)), store, executor, on_event, retry=RETRY)
    if reason := result.failed.get(name):
        raise RunFailed(name, reason, store.log_tail(name))
    record = None if result.unfinished else store.record(name)
    if record is not None:
        outcome = outcome_of(promotion, record)
        ledger.record_outcome(replace(outcome, trained="here" if given is None else "elsewhere"))
    return Launched(
        entry=ledger.entry(promotion.id),
        record=record,
        was_over=before.status in ("done", "diverged"),
    )


def register(
    promotion: Promotion,
    store: Store,
    ledger: Ledger,
    overrides: Mapping[str, str],
    *,
    is_measured: bool = False,
) -> None:
    """Check the gates and put the forecast on record, unless it stands there already.

    ``is_measured``: its run is over elsewhere, so a forecast that is registered now comes after the
    fact, as it does where the run was begun here.

    Raises:
        LaunchRefused: naming every gate that failed and was not overridden.
    """
    accepted = accepted_overrides(promotion, ledger, overrides)
    is_begun = store.state(promotion.run_id).status != "planned"
    late = is_measured or is_begun or store.record(promotion.run_id) is not None
    ledger.register(replace(forecast_row(promotion), overrides=accepted, after_the_fact=late))


def hand_over(
    promotion: Promotion,
    trained: Elsewhere,
    store: Store,
    ledger: Ledger,
    overrides: Mapping[str, str],
) -> Entry:
    """Register the forecast of a run that another engine trains, and a loss it states.

    Raises:
        LaunchRefused: naming every gate that failed and was not overridden.
    """
    register(promotion, store, ledger, overrides, is_measured=trained.loss_nats is not None)
    if trained.loss_nats is not None and trained.source is not None:
        row = forecast_row(promotion)
        ledger.record_outcome(stated_outcome(row, trained.loss_nats, trained.source))
    return ledger.entry(promotion.id)


def with_kept(train: TrainConfig, keep_weights: int) -> TrainConfig:
    """``train`` with what a second stage may want: a state before the rate falls, and weights.

    The weights are evenly spaced over the last ``decay_frac`` of the steps before that.
    """
    if train.schedule.kind == "cosine":
        return train
    last = trunk_steps(train)
    gap = int(train.schedule.decay_frac * last / max(1, keep_weights - 1))
    weights = tuple(last - gap * before for before in reversed(range(keep_weights)))
    if gap == 0:
        weights = ()
    kept = replace(train.checkpoint, states_at=(last,), weights_at=weights)
    return replace(train, checkpoint=kept)


def outcome_of(promotion: Promotion, record: RunRecord) -> OutcomeRow:
    """The ledger's row of what was measured; a run that diverged has missed its forecast."""
    loss = record.loss_nats if record.status == "done" else None
    return OutcomeRow(
        promotion_id=promotion.id,
        run_id=record.run_id,
        recorded_at=utc_now(),
        status=record.status,
        reason=record.reason,
        loss_nats=loss,
        inside=loss is not None and promotion.forecast.contains(loss),
    )
