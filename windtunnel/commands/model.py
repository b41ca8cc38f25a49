"""Count a model: shape, parameters, FLOPs by convention, memory, layer by layer. Trains nothing.

All numbers are closed forms that need no torch, so even a model of a trillion parameters is counted
instantly. Memory is for one device that holds the whole model and keeps every activation. For
scripts, `json=true` prints one JSON object with the same numbers, unrounded.

Example:
  windtunnel model model=ling_1t
  windtunnel model model=ling_1t json=true
  windtunnel model model=ling_mini_mtp model.moe.expert_width=384 sequence_length=8192
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.table import Table

from model.accounting import (
    CONVENTION,
    LayerCounts,
    count_params,
    flops_per_token,
    layer_counts,
    layer_flops_per_token,
)
from model.config import ModelConfig, require_positive
from model.memory import PrecisionPlan, activation_memory, state_memory
from sweeps.recipe import Recipe
from windtunnel.answers.model import count_answer
from windtunnel.console import si, table
from windtunnel.for_scripts import ForScripts, write_answer

# What each convention counts, for a reader who meets its name for the first time.
CONVENTIONS = {
    "with_output": "M and the output layer",
    "causal_attention": "M with half the attention scores",
    "six_active_non_embedding": "6 x active without embeddings",
    "six_active": "6 x active",
    "six_total": "6 x total",
    "all_matmuls": "every matrix product of a step, MTP included",
}


@dataclass(frozen=True, kw_only=True)
class Config(ForScripts):
    """``conf/model.yaml``."""

    model: ModelConfig
    recipe: Recipe
    """Its laws say learning rate and batch at ``tokens``."""
    sequence_length: int
    """Tokens in a sequence."""
    tokens: int
    """Training tokens, for C."""
    sequences: int
    """Sequences in a micro-batch."""
    precision: PrecisionPlan

    def __post_init__(self) -> None:
        require_positive(
            sequence_length=self.sequence_length, tokens=self.tokens, sequences=self.sequences
        )


def run(config: Config, console: Console) -> int:
    """Print the five tables."""
    if config.json:
        write_answer(
            "model",
            count_answer(
                config.model,
                config.recipe.training,
                config.precision,
                tokens=config.tokens,
                sequence_length=config.sequence_length,
                sequences=config.sequences,
            ),
        )
        return 0
    for part in (
        shape_table(config.model),
        params_table(config.model),
        flops_table(config),
        memory_table(config),
        layers_table(config),
    ):
        console.print(part)
    return 0


def shape_table(model: ModelConfig) -> Table:
    """What is set, and the ratios that follow from it."""
    attention, moe = model.attention, model.moe
    layers = f"{model.num_layers}"
    if moe is not None and model.num_dense_layers:
        layers += f", the first {model.num_dense_layers} dense"
    if model.mtp_depth:
        layers += f", and {model.mtp_depth} that predicts one token further"
    gate = f", {attention.output_gate} output gate" if attention.gate_width else ""
    rows = [
        ("layers", layers),
        ("width", f"{model.hidden_size}, vocabulary {model.vocab_size}"),
        (
            "attention",
            f"{attention.num_heads} query and {attention.num_kv_heads} key-value heads of "
            f"{attention.head_dim}, {attention.rotary_dim} of it rotated, "
            f"base {attention.rope_base:g}{gate}",
        ),
    ]
    if any(layer.kind == "dense" for layer in layer_counts(model)):
        rows.append(("dense feed-forward", f"of width {model.dense_width}"))
    if moe is not None:
        groups = f"{moe.groups_per_token} of {moe.num_groups} groups"
        rows += [
            (
                "experts",
                f"{moe.num_experts} of width {moe.expert_width}, {moe.experts_per_token} a token "
                f"from {groups}, {moe.num_shared_experts} shared",
            ),
            (
                "ratios",
                f"activation A {moe.activation_ratio:.2%}, granularity G {model.granularity:g}, "
                f"shared S {moe.shared_ratio:.1%}",
            ),
        ]
    return table(["shape", ""], rows, left=2)


def params_table(model: ModelConfig) -> Table:
    """Parameters by group, and the sums that have names."""
    counts = count_params(model)
    rows = [
        (group.replace("_", " "), si(count, 4), f"{count / counts.total:.1%}")
        for group, count in counts.by_group.items()
        if count
    ]
    rows += [
        ("total", si(counts.total, 5), ""),
        ("active", si(counts.active, 4), f"{counts.active / counts.total:.1%}"),
        ("active, no embeddings", si(counts.active_non_embedding, 4), ""),
    ]
    return table(["parameters", "count", "share"], rows)


def flops_table(config: Config) -> Table:
    """FLOPs a token by every convention; C and what the recipe makes of it."""
    flops = flops_per_token(config.model, config.sequence_length)
    train_flops = flops.house * config.tokens
    training = config.recipe.training
    peak_lr = training.peak_lr(train_flops) * training.peak_lr_factor
    batch = training.batch_tokens(train_flops) * training.batch_factor
    rows = [
        (
            f"M ({CONVENTION})",
            si(flops.house, 4),
            "6 x active without embeddings, and attention scores",
        )
    ]
    rows += [(name, si(value, 4), CONVENTIONS[name]) for name, value in flops.others.items()]
    rows += [
        ("C", f"{train_flops:.3e}", f"M over {si(config.tokens)} tokens"),
        ("peak learning rate", f"{peak_lr:.3g}", f"by the recipe {config.recipe.name!r} at C"),
        ("batch", f"{si(batch)} tokens", f"{batch / config.sequence_length:.0f} sequences"),
    ]
    made = table(["training FLOPs a token", "", "counts"], rows)
    made.columns[2].justify = "left"
    return made


def memory_table(config: Config) -> Table:
    """Bytes of state and activations."""
    state = state_memory(config.model, config.precision)
    kept = activation_memory(
        config.model,
        config.precision,
        sequence_length=config.sequence_length,
        sequences=config.sequences,
    )
    batch = f"{config.sequences} x {config.sequence_length} tokens"
    rows = [
        ("weights", state.weights),
        ("gradients", state.gradients),
        ("master weights", state.master_weights),
        ("AdamW moments", state.moments),
        (f"activations of the layers, {batch}", sum(kept.layers)),
        ("activations of embedding and output", kept.ends),
        ("copies of the weights for the products", kept.weight_copies),
        ("total", state.total + kept.total),
    ]
    return table(["memory", ""], [(name, f"{si(count, 4)}B") for name, count in rows if count])


def layers_table(config: Config) -> Table:
    """One row for each run of equal layers."""
    model, length = config.model, config.sequence_length
    kept = activation_memory(
        model, config.precision, sequence_length=length, sequences=config.sequences
    ).layers
    house = flops_per_token(model, length).house
    rows = []
    for equal in equal_layers(model):
        one = equal[0]
        flops = layer_flops_per_token(model, one, length)
        attention = 6.0 * one.by_group["attention"]
        attention += flops - 6.0 * one.active  # the scores
        share = "" if one.kind == "mtp" else f"{len(equal) * flops / house:.1%}"
        rows.append(
            (
                f"{one.layer}" if len(equal) == 1 else f"{one.layer}-{equal[-1].layer}",
                one.kind,
                si(one.total, 4),
                si(one.active, 4),
                si(flops, 4),
                share,
                f"{attention / flops:.1%}",
                f"{si(kept[one.layer], 4)}B",
            )
        )
    columns = ["each layer", "kind", "params", "active", "FLOPs/token", "all of M", "attention"]
    return table([*columns, "activations"], rows, left=2)


def equal_layers(model: ModelConfig) -> Iterator[Sequence[LayerCounts]]:
    """Runs of layers that are counted alike."""
    for _, run_of_layers in groupby(layer_counts(model), key=lambda layer: layer.kind):
        yield list(run_of_layers)
