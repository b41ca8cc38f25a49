"""The published Ling configuration beside the promoted one, field by field, and why they differ."""

from __future__ import annotations

from dataclasses import dataclass

from model.accounting import count_params, flops_per_token
from model.config import ModelConfig
from sweeps.recipe import ShapeRecipe
from sweeps.spec import RunSpec, short_count
from windtunnel.targets import LingTarget


@dataclass(frozen=True, kw_only=True)
class FieldComparison:
    """One field of the published configuration beside ours."""

    field: str
    ours: str
    published: str
    why: str
    """Why ours differs; empty where it does not."""


def compare(spec: RunSpec, recipe: ShapeRecipe, target: LingTarget) -> tuple[FieldComparison, ...]:
    """Every field that decides a run: ours, the published one, the reason for a difference."""
    train = spec.train
    ours = {
        **_shape(spec.model),
        "flops_per_token": _number(flops_per_token(spec.model, train.sequence_length).house),
        "tokens": short_count(train.tokens),
        "sequence_length": str(train.sequence_length),
        "peak_lr": _number(train.optimizer.peak_lr),
        "batch_tokens": short_count(train.batch_tokens),
    }
    published = {
        **_shape(target.model),
        "flops_per_token": _number(flops_per_token(target.model, target.sequence_length).house),
        "tokens": short_count(target.tokens),
        "sequence_length": str(target.sequence_length),
        "peak_lr": _number(target.peak_lr),
        "batch_tokens": short_count(target.batch_tokens),
    }
    reasons = _reasons(recipe)
    return tuple(
        FieldComparison(
            field=field,
            ours=ours[field],
            published=published[field],
            why="" if ours[field] == published[field] else reasons[field],
        )
        for field in ours
    )


def _shape(model: ModelConfig) -> dict[str, str]:
    counts, attention, moe = count_params(model), model.attention, model.moe
    shape = {
        "total_params": short_count(counts.total),
        "active_params": short_count(counts.active),
        "hidden_size": str(model.hidden_size),
        "num_layers": str(model.num_layers),
        "num_dense_layers": str(model.num_dense_layers),
        "dense_width": str(model.dense_width),
        "heads": f"{attention.num_heads} / {attention.num_kv_heads} kv",
        "head_dim": f"{attention.head_dim}, {attention.rotary_dim} rotated",
        "output_gate": attention.output_gate,
        "vocab_size": str(model.vocab_size),
        "mtp_depth": str(model.mtp_depth),
    }
    if moe is None:
        return {**shape, "experts": "none", "groups": "none", "expert_width": "none", "A": "1"}
    return {
        **shape,
        "experts": f"{moe.num_experts} top-{moe.experts_per_token} + {moe.num_shared_experts}",
        "groups": f"{moe.num_groups}, {moe.groups_per_token} kept",
        "expert_width": f"{moe.expert_width} (G = {model.granularity:.3g})",
        "A": f"{moe.activation_ratio:.1%}",
    }


def _reasons(recipe: ShapeRecipe) -> dict[str, str]:
    held = "held along the ladder by the recipe: {}; no law over it was fitted"
    size = "follows from flops_per_token and the recipe's ratios"
    experts = f"num_experts {recipe.num_experts}, experts_per_token {recipe.experts_per_token}"
    return {
        "total_params": size,
        "active_params": size,
        "hidden_size": size,
        "num_layers": f"the recipe's width / layers = {recipe.width_per_layer:g}",
        "num_dense_layers": held.format(f"dense_layer_frac {recipe.dense_layer_frac:g}"),
        "dense_width": held.format(f"dense_width_ratio {recipe.dense_width_ratio:g}"),
        "heads": f"the recipe's head_dim {recipe.head_dim} at this width",
        "head_dim": held.format(f"head_dim {recipe.head_dim}"),
        "output_gate": held.format(f"output_gate {recipe.output_gate}"),
        "vocab_size": "the tokenizer of the sweep's corpus",
        "mtp_depth": held.format(f"mtp_depth {recipe.mtp_depth}"),
        "experts": held.format(experts),
        "groups": held.format(f"num_groups {recipe.num_groups}"),
        "expert_width": f"the recipe's granularity {recipe.granularity:g} at this width",
        "A": held.format(experts),
        "flops_per_token": "the fitted surface's choice at this compute; see the choices",
        "tokens": "compute over flops_per_token",
        "sequence_length": "the protocol of the sweep",
        "peak_lr": "the recipe's law at this compute",
        "batch_tokens": "the recipe's law at this compute",
    }


def _number(value: float) -> str:
    return f"{value:.3g}"
