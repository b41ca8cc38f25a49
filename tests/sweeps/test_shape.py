"""The shapes of a recipe against an exhaustive search and against a published model."""

import math
from dataclasses import replace

import numpy as np
import pytest
from toy_plans import LING_MINI, SHAPE

from model.accounting import flops_per_token
from model.errors import ConfigError
from sweeps.shape import _shape_of_width, flops_of_width, shape_for


def test_the_recipe_of_ling_mini_gives_ling_mini():
    shape = shape_for(LING_MINI, 6.75e9, 4096, 157_184)
    assert (shape.hidden_size, shape.num_layers, shape.num_dense_layers) == (2048, 20, 1)
    assert shape.dense_width == 5120
    assert (shape.attention.num_heads, shape.attention.num_kv_heads) == (16, 4)
    assert shape.attention.rotary_dim == 64
    assert shape.moe is not None
    assert shape.moe.expert_width == 512
    assert shape.granularity == 8
    assert shape.init_std == pytest.approx(0.006)


@pytest.mark.parametrize("target", [4.2e4, 1.3e5, 6.6e5, 9e6, 3e8])
def test_no_other_width_lies_nearer_to_the_target(target):
    def distance(shape):
        return abs(math.log(flops_per_token(shape, 32).house / target))

    found = shape_for(SHAPE, target, 32, 257)
    # Every width up to twice the found one, found through recipes that allow that width alone.
    for width in range(16, 2 * found.hidden_size + 1, 16):
        alone = replace(SHAPE, width_multiple=width)
        other = shape_for(alone, target, 32, 257) if width <= found.hidden_size else None
        if other is not None and other.hidden_size == width:
            assert distance(found) <= distance(other)
    assert found.hidden_size % 16 == 0


@pytest.mark.parametrize(
    "recipe",
    [SHAPE, replace(LING_MINI, dense_layer_frac=0.05), replace(SHAPE, output_gate="elementwise")],
)
def test_the_width_that_is_found_is_that_of_a_search_through_all(recipe):
    multiple = recipe.width_multiple
    shapes = [_shape_of_width(recipe, step * multiple, 257) for step in range(1, 100)]
    sizes = [flops_per_token(shape, 32).house for shape in shapes]
    for target in np.geomspace(sizes[0], sizes[80], 60):
        nearest = min(range(99), key=lambda index: abs(math.log(sizes[index] / target)))
        assert shape_for(recipe, float(target), 32, 257) == shapes[nearest]


def test_a_gate_is_paid_for_in_width():
    """One of each element costs about what the queries do; one a head hardly anything."""
    target = 3e8
    plain, headwise, elementwise = (
        shape_for(replace(SHAPE, output_gate=gate), target, 32, 257)
        for gate in ("none", "headwise", "elementwise")
    )
    assert elementwise.attention.output_gate == "elementwise"
    assert elementwise.hidden_size < headwise.hidden_size <= plain.hidden_size
    for shape in (headwise, elementwise):
        assert flops_per_token(shape, 32).house == pytest.approx(target, rel=0.05)


@pytest.mark.parametrize("recipe", [SHAPE, replace(LING_MINI, dense_layer_frac=0.05)])
def test_the_size_of_a_width_leads_back_to_that_width(recipe):
    multiple = recipe.width_multiple
    for width in range(multiple, 100 * multiple, multiple):
        size = flops_of_width(recipe, width, 32, 257)
        assert shape_for(recipe, size, 32, 257).hidden_size == width


@pytest.mark.parametrize(("width", "nearest"), [(40, "32 and 48"), (8, "16 and 32")])
def test_a_width_between_the_multiples_is_refused_with_its_neighbours(width, nearest):
    with pytest.raises(
        ConfigError, match=rf"{width} is not a multiple of .* \(16\), .* nearest are {nearest}"
    ):
        flops_of_width(SHAPE, width, 32, 257)


def test_shapes_grow_with_the_target_and_keep_their_ratios():
    shapes = [shape_for(SHAPE, 5e4 * 2**n, 32, 257) for n in range(12)]
    sizes = [flops_per_token(shape, 32).house for shape in shapes]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 8
    for shape in shapes:
        assert shape.granularity == 8
        assert shape.attention.num_heads == 2 * shape.attention.num_kv_heads


def test_a_target_below_the_smallest_model_is_refused():
    with pytest.raises(ConfigError, match=r"flops_per_token 1e\+03 is out of reach: the smallest"):
        shape_for(SHAPE, 1e3, 32, 257)


def test_the_dense_twin_has_the_active_width_of_the_mixture():
    mixture = shape_for(SHAPE, 1e6, 32, 257)
    dense = shape_for(replace(SHAPE, dense=True), 1e6, 32, 257)
    assert dense.moe is None
    assert mixture.moe is not None
    assert dense.hidden_size == mixture.hidden_size
    assert dense.dense_width == 3 * mixture.moe.expert_width
