"""What a record says of its run before anything is measured."""

from __future__ import annotations

from typing import Any

from model.accounting import CONVENTION, count_params, flops_per_token
from sweeps.protocol import fingerprint, protocol_of
from sweeps.spec import RunSpec, run_id


def described(spec: RunSpec) -> dict[str, Any]:
    """Those fields of ``analysis.records.RunRecord`` that follow from ``spec``.

    Tokens, steps and training FLOPs are of the whole run.
    """
    protocol = protocol_of(spec)
    params = count_params(spec.model)
    flops = flops_per_token(spec.model, spec.train.sequence_length)
    moe = spec.model.moe
    return {
        "run_id": run_id(spec),
        "role": spec.role,
        "rung": spec.rung,
        "seed": spec.train.seed,
        "protocol": protocol,
        "protocol_fingerprint": fingerprint(protocol),
        "total_params": params.total,
        "active_params": params.active,
        "active_non_embedding_params": params.active_non_embedding,
        "convention": CONVENTION,
        "flops_per_token": flops.house,
        "train_flops": flops.house * spec.train.tokens,
        "other_flops_per_token": dict(flops.others),
        "tokens": spec.train.tokens,
        "batch_tokens": spec.train.batch_tokens,
        "steps": spec.train.num_steps,
        "sequence_length": spec.train.sequence_length,
        "peak_lr": spec.train.optimizer.peak_lr,
        "num_layers": spec.model.num_layers,
        "hidden_size": spec.model.hidden_size,
        # A dense model is the mixture of one expert that every token visits.
        "num_experts": moe.num_experts if moe else 1,
        "experts_per_token": moe.experts_per_token if moe else 1,
        "num_shared_experts": moe.num_shared_experts if moe else 0,
        "expert_width": moe.expert_width if moe else spec.model.dense_width,
        "activation_ratio": moe.activation_ratio if moe else 1.0,
        "granularity": spec.model.granularity
        or 2 * spec.model.hidden_size / spec.model.dense_width,
    }
