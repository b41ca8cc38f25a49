"""A count's answer to a script."""

from __future__ import annotations

from typing import Any

from model.accounting import (
    CONVENTION,
    count_params,
    flops_per_token,
    layer_counts,
    layer_flops_per_token,
)
from model.config import ModelConfig
from model.memory import PrecisionPlan, activation_memory, state_memory
from sweeps.recipe import TrainingRecipe


def count_answer(
    model: ModelConfig,
    recipe: TrainingRecipe,
    precision: PrecisionPlan,
    *,
    tokens: int,
    sequence_length: int,
    sequences: int,
) -> dict[str, Any]:
    """Parameters, FLOPs by convention, memory; layer by layer."""
    params = count_params(model)
    flops = flops_per_token(model, sequence_length)
    train_flops = flops.house * tokens
    state = state_memory(model, precision)
    kept = activation_memory(model, precision, sequence_length=sequence_length, sequences=sequences)
    moe = model.moe
    return {
        "total_params": params.total,
        "active_params": params.active,
        "active_non_embedding_params": params.active_non_embedding,
        "params_by_group": params.by_group,
        "activation_ratio": moe.activation_ratio if moe else None,
        "granularity": model.granularity if moe else None,
        "shared_ratio": moe.shared_ratio if moe else None,
        "sequence_length": sequence_length,
        "tokens": tokens,
        "flops_convention": CONVENTION,
        "flops_per_token": flops.house,
        "flops_per_token_by_convention": flops.others,
        "train_flops": train_flops,
        "peak_lr": recipe.peak_lr_factor * recipe.peak_lr(train_flops),
        "batch_tokens": recipe.batch_factor * recipe.batch_tokens(train_flops),
        "memory_bytes": {
            "weights": state.weights,
            "gradients": state.gradients,
            "master_weights": state.master_weights,
            "moments": state.moments,
            "activations": kept.total,
            "total": state.total + kept.total,
        },
        "layers": [
            {
                "layer": layer.layer,
                "kind": layer.kind,
                "params": layer.total,
                "active_params": layer.active,
                "flops_per_token": layer_flops_per_token(model, layer, sequence_length),
                "activations_bytes": kept.layers[layer.layer],
            }
            for layer in layer_counts(model)
        ],
    }
