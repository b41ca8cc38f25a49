"""What is a model of this size: the shape that a recipe gives it."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

from model.accounting import FlopCounts, ParamCounts, count_params, flops_per_token
from model.config import AttentionConfig, ModelConfig, MoEConfig, require
from model.errors import ConfigError
from sweeps.own import Sources, with_own_parts
from sweeps.recipe import ShapeRecipe


@lru_cache(maxsize=65_536)
def sizes_of(model: ModelConfig, sequence_length: int) -> tuple[ParamCounts, FlopCounts]:
    """Parameters and FLOPs per token; kept, since the runs of a plan share a few models."""
    return count_params(model), flops_per_token(model, sequence_length)


NEIGHBOURS = 8
"""Widths to either side of where M passes the target that are looked at."""


@lru_cache(maxsize=4096)
def shape_for(
    recipe: ShapeRecipe,
    target_flops_per_token: float,
    sequence_length: int,
    vocab_size: int,
    own: Sources = (),
) -> ModelConfig:
    """The shape whose M lies nearest to the target, in the logarithm.

    Only the width is searched, in steps of ``width_multiple``; the recipe's ratios give the rest,
    so rungs differ in size alone. The M of parts of the user's own, loaded before, is measured.

    Raises:
        ConfigError: the target is below half of the smallest shape's M, or the recipe contradicts
            itself (for instance more experts a token than experts).
    """

    def of_step(step: int) -> tuple[float, ModelConfig]:
        shape = _built(recipe, step * recipe.width_multiple, sequence_length, vocab_size, own)
        return flops_per_token(shape, sequence_length).house, shape

    below, above = 1, 1
    smallest, _ = of_step(1)
    while of_step(above)[0] < target_flops_per_token:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        if of_step(middle)[0] < target_flops_per_token:
            below = middle
        else:
            above = middle
    # M grows with the width but for a step down where one more leading layer turns dense, so
    # neighbours are looked at as well.
    around = [of_step(step) for step in range(max(1, below - NEIGHBOURS), above + NEIGHBOURS + 1)]
    _, best = min(around, key=lambda found: abs(math.log(found[0] / target_flops_per_token)))
    if 2 * target_flops_per_token < smallest:
        raise ConfigError(
            f"flops_per_token {target_flops_per_token:.3g} is out of reach: the smallest model of "
            f"this recipe (width {recipe.width_multiple}) needs {smallest:.3g} at sequence length "
            f"{sequence_length}; raise ladder.smallest_flops_per_token or lower "
            "recipe.shape.width_multiple"
        )
    return best


@lru_cache(maxsize=4096)
def flops_of_width(
    recipe: ShapeRecipe, width: int, sequence_length: int, vocab_size: int, own: Sources = ()
) -> float:
    """M of the recipe's shape of this very width, from which :func:`shape_for` finds it again.

    Raises:
        ConfigError: the recipe has no shape of this width, or contradicts itself.
    """
    multiple = recipe.width_multiple
    below = max(1, width // multiple) * multiple
    require(
        width % multiple == 0,
        f"{width} is not a multiple of recipe.shape.width_multiple ({multiple}), as every width "
        f"is; the nearest are {below} and {below + multiple}",
    )
    shape = _built(recipe, width, sequence_length, vocab_size, own)
    return flops_per_token(shape, sequence_length).house


def _built(
    recipe: ShapeRecipe, width: int, sequence_length: int, vocab_size: int, own: Sources
) -> ModelConfig:
    """The shape with the user's own parts in it."""
    if any(kind == "feed_forward" for kind, _ in own):
        recipe = replace(recipe, dense=True)  # it takes the place of the mixture
    return with_own_parts(_shape_of_width(recipe, width, vocab_size), own, sequence_length)


def _shape_of_width(recipe: ShapeRecipe, width: int, vocab_size: int) -> ModelConfig:
    num_layers = max(recipe.min_layers, nearest(width / recipe.width_per_layer))
    num_kv_heads = max(1, nearest(width / (recipe.head_dim * recipe.heads_per_kv_head)))
    expert_width = _multiple(2 * width / recipe.granularity, recipe.expert_width_multiple)
    moe = MoEConfig(
        num_experts=recipe.num_experts,
        experts_per_token=recipe.experts_per_token,
        num_shared_experts=recipe.num_shared_experts,
        expert_width=expert_width,
        num_groups=recipe.num_groups,
        groups_per_token=recipe.groups_per_token,
        score=recipe.score,
        routed_scale=recipe.routed_scale,
        selection_bias=recipe.selection_bias,
    )
    active_width = (recipe.experts_per_token + recipe.num_shared_experts) * expert_width
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=width,
        num_layers=num_layers,
        dense_width=active_width
        if recipe.dense
        else _multiple(width * recipe.dense_width_ratio, recipe.expert_width_multiple),
        attention=AttentionConfig(
            num_heads=num_kv_heads * recipe.heads_per_kv_head,
            num_kv_heads=num_kv_heads,
            head_dim=recipe.head_dim,
            rotary_dim=2 * math.floor(recipe.head_dim * recipe.rotary_frac / 2),
            rope_base=recipe.rope_base,
            qk_norm=recipe.qk_norm,
            output_gate=recipe.output_gate,
        ),
        moe=None if recipe.dense else moe,
        num_dense_layers=0 if recipe.dense else nearest(num_layers * recipe.dense_layer_frac),
        mtp_depth=recipe.mtp_depth,
        init_std=recipe.init_std * math.sqrt(max(1.0, recipe.init_width / width)),
    )


def nearest(value: float) -> int:
    """The nearest whole number, halves upward (Python's round goes to the even neighbour)."""
    return math.floor(value + 0.5)


def _multiple(value: float, step: int) -> int:
    return max(1, nearest(value / step)) * step
