"""What a run's updates cost beside its training FLOPs, for comparisons that count these alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from model.muon_rule import update_flops
from sweeps.plan import PlannedRun


@dataclass(frozen=True, kw_only=True)
class UpdatePrice:
    """The products of Muon's updates in one run."""

    run_id: str
    batch_tokens: int
    frac_of_step: float
    """Their FLOPs over a training step's."""

    @property
    def sentence(self) -> str:
        """For the screen of a trial."""
        return (
            f"The products of Muon's updates are in none of these FLOPs: in its largest run "
            f"{self.run_id} they are {self.frac_of_step:.1%} of a step's, at batches of "
            f"{self.batch_tokens:,} tokens; the share falls as batches grow"
        )


def update_price(runs: Iterable[PlannedRun]) -> UpdatePrice | None:
    """Of the largest run that has Muon; None where none has."""
    with_muon = [run for run in runs if run.spec.train.optimizer.muon is not None]
    if not with_muon:
        return None
    largest = max(with_muon, key=lambda run: run.cost.train_flops)
    model, train = largest.spec.model, largest.spec.train
    muon = train.optimizer.muon
    assert muon is not None
    updates = update_flops(model, per_head=muon.per_head).total
    return UpdatePrice(
        run_id=largest.run_id,
        batch_tokens=train.batch_tokens,
        frac_of_step=updates / (largest.cost.flops_per_token * train.batch_tokens),
    )
