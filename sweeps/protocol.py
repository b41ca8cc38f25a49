"""What is held equal in every run of a sweep.

Runs of different protocols measure different things; they are never fitted together unless told
to. A size, a token budget, a learning rate, a batch, a seed and the experts' number and width are
what a sweep studies and are not part of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from model.training.sources import DataStage
from model.typed import to_plain
from sweeps.files import content_hash
from sweeps.spec import RunSpec


def protocol_of(spec: RunSpec) -> dict[str, Any]:
    """The protocol of one run, as plain values for its record."""
    moe = spec.model.moe
    initial, muon = spec.train.initial_weights, spec.train.optimizer.muon
    gate = spec.model.attention.output_gate
    own = {part.kind: f"{part.name} {part.source}" for part in spec.model.own}
    return {
        "numerics": spec.numerics,
        "data": {
            "kind": spec.corpus.kind,
            "fingerprint": spec.corpus_fingerprint,
            "tokenizer": to_plain(spec.corpus.tokenizer),
            "vocab_size": spec.model.vocab_size,
            "mixture": to_plain(spec.corpus.weights),
            "heldout_frac": spec.corpus.heldout_frac,
            "order_seed": spec.corpus.order_seed,
            # Absent without them, like the modules below.
            **({"stages": _by_name(spec.corpus.stages)} if spec.corpus.stages else {}),
        },
        "sequence_length": spec.train.sequence_length,
        # The family of the choice, not its sizes: a sweep may vary how many experts there are.
        "routing": None
        if moe is None
        else {
            "score": moe.score,
            "normalize_gates": moe.normalize_gates,
            "routed_scale": moe.routed_scale,
            "selection_bias": moe.selection_bias,
            "group_limited": moe.groups_per_token < moe.num_groups,
        },
        "optimizer": spec.train.optimizer.kind,
        **({"per_head": True} if muon is not None and muon.per_head else {}),
        **({"output_gate": gate} if gate != "none" else {}),
        "balance": to_plain(spec.train.balance),
        "schedule": to_plain(spec.train.schedule),
        "mtp_loss_weight": spec.train.mtp_loss_weight if spec.model.mtp_depth else 0.0,
        "precision": spec.train.precision,
        "stages": to_plain(spec.train.stages),
        "health": to_plain(spec.train.health),
        "evaluation": to_plain(spec.train.evaluation),
        # Absent without them, so that the fingerprints of all other runs stay what they were.
        **({"modules": own} if own else {}),
        **({"initial_weights": to_plain(initial)} if initial is not None else {}),
    }


def _by_name(stages: Sequence[DataStage]) -> dict[str, Any]:
    """So that a share that differs is named by its stage: ``data.stages.second.weights.math``."""
    plain = {stage.name: to_plain(stage) for stage in stages}
    return {
        name: {"place": place, **{key: value for key, value in fields.items() if key != "name"}}
        for place, (name, fields) in enumerate(plain.items())
    }


def fingerprint(protocol: Mapping[str, Any]) -> str:
    """16 hex digits that are equal exactly when the protocols are."""
    return content_hash(dict(protocol), digits=16)
