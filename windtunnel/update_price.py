"""What a run's updates cost beside its training FLOPs, for comparisons that count these alone."""

from __future__ import annotations

from collections.abc import Iterable

from model.muon_rule import update_flops
from sweeps.plan import PlannedRun


def update_price(runs: Iterable[PlannedRun]) -> str:
    """A sentence for trials of Muon: the products of its updates in the largest run that has it.

    Returns:
        Empty where no run has it.
    """
    with_muon = [run for run in runs if run.spec.train.optimizer.muon is not None]
    if not with_muon:
        return ""
    largest = max(with_muon, key=lambda run: run.cost.train_flops)
    model, train = largest.spec.model, largest.spec.train
    muon = train.optimizer.muon
    assert muon is not None
    updates = update_flops(model, per_head=muon.per_head).total
    share = updates / (largest.cost.flops_per_token * train.batch_tokens)
    return (
        f"The products of Muon's updates are in none of these FLOPs: in its largest run "
        f"{largest.run_id} they are {share:.1%} of a step's, at batches of {train.batch_tokens:,} "
        "tokens; the share falls as batches grow"
    )
