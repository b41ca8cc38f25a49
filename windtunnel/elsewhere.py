"""A promotion that another engine trains: its weights come back and are measured here.

The forecast is registered before the other engine begins. What it has trained is then a run of the
promotion's spec that begins with all its steps behind it: the same held-out text, the same code and
the same record as the rungs', and nothing left to train.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.config import ModelConfig, require, require_positive
from model.training.config import InitialWeights
from sweeps.spec import RunSpec
from windtunnel.ledger import utc_now
from windtunnel.ledger_rows import Forecast, OutcomeRow
from windtunnel.promotion import Promotion

if TYPE_CHECKING:
    from model.training.initial import GivenWeights


@dataclass(frozen=True, kw_only=True)
class Here:
    """A launch trains its run itself."""

    kind: Literal["here"] = "here"


@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """Another engine trains it; a launch registers the forecast, and later what came of it."""

    kind: Literal["elsewhere"] = "elsewhere"
    weights: Path | None = None
    """A published checkpoint or a folder of weights, trained to the promotion's last token."""
    loss_nats: float | None = None
    """In place of weights: a held-out loss that was measured elsewhere too, nats per token."""
    source: str | None = None
    """Where that loss is from."""

    def __post_init__(self) -> None:
        require(
            self.weights is None or self.loss_nats is None,
            f"trained.weights={self.weights} and trained.loss_nats={self.loss_nats}: give one, "
            "weights are measured here",
        )
        if self.loss_nats is not None:
            require_positive(loss_nats=self.loss_nats)
            require(
                bool(self.source and self.source.strip()),
                f"trained.loss_nats={self.loss_nats} needs trained.source='...': where the number "
                "is from, for the ledger",
            )
        else:
            require(
                self.source is None,
                f"trained.source={self.source} belongs to trained.loss_nats, which is not given",
            )


def require_same_model(given: GivenWeights, promotion: Promotion, name: str) -> None:
    """Refuse weights of another shape; ``name`` is the key they were given by."""
    differing = [
        field.name
        for field in fields(ModelConfig)
        if getattr(given.model, field.name) != getattr(promotion.spec.model, field.name)
    ]
    require(
        not differing,
        f"{name}={given.folder}: not of {promotion.id}'s model: they differ in "
        f"{', '.join(differing)}",
    )


def measuring_spec(promotion: Promotion, given: GivenWeights) -> RunSpec:
    """The promotion's run, begun with weights that have all its steps behind them."""
    train = promotion.spec.train
    initial = InitialWeights(sha256=given.digest(), step=train.num_steps)
    return replace(promotion.spec, train=replace(train, initial_weights=initial))


def stated_outcome(row: Forecast, loss_nats: float, source: str) -> OutcomeRow:
    """The ledger's row of a loss that nobody measured here; ``row`` is its forecast's."""
    return OutcomeRow(
        promotion_id=row.promotion_id,
        run_id=row.run_id,
        recorded_at=utc_now(),
        status="done",
        loss_nats=loss_nats,
        inside=row.forecast.contains(loss_nats),
        trained="elsewhere",
        stated_by=source,
    )
