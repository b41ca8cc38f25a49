"""Grids are plain data; laying one over a config is as strict as reading YAML."""

import pytest

from model.errors import ConfigError
from sweeps.grid import axis, chain, product, replaced, zipped


def test_product_varies_the_last_axis_fastest():
    grid = product(axis("a", [1, 2]), axis("b", ["x", "y"]))
    assert grid == ({"a": 1, "b": "x"}, {"a": 1, "b": "y"}, {"a": 2, "b": "x"}, {"a": 2, "b": "y"})
    assert product() == ({},)


def test_zipped_moves_together():
    assert zipped(axis("a", [1, 2]), axis("b", [3, 4])) == ({"a": 1, "b": 3}, {"a": 2, "b": 4})


def test_chain_keeps_each_mapping_once_at_its_first_place():
    grid = chain(axis("a", [2, 1]), axis("a", [1, 3]), axis("a", [1.0]))
    assert grid == ({"a": 2}, {"a": 1}, {"a": 3})


def test_mistakes_in_a_grid_are_named():
    with pytest.raises(ConfigError, match="a: give it at least one value"):
        axis("a", [])
    with pytest.raises(ConfigError, match=r"equally long \(a: 2, b: 1\)"):
        zipped(axis("a", [1, 2]), axis("b", [1]))
    with pytest.raises(ConfigError, match="a: varied twice"):
        product(axis("a", [1]), axis("a", [2]))


def test_replaced_reaches_any_depth_and_leaves_the_rest(sweep_config):
    changed = replaced(
        sweep_config,
        {
            "recipe.training.peak_lr_factor": 2,
            "ladder.noise_seeds": [7],
            "corpus.weights": {"synthetic": 1.0},
            "balance": {"rule": "sign"},
        },
    )
    assert changed.recipe.training.peak_lr_factor == 2.0
    assert isinstance(changed.recipe.training.peak_lr_factor, float)
    assert changed.ladder.noise_seeds == (7,)
    assert changed.balance.rule == "sign"
    assert replaced(changed, {"corpus.weights.synthetic": 1.0}) == changed
    assert changed.recipe.shape == sweep_config.recipe.shape


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("recipe.training.peak_lr", 1.0, "recipe.training.peak_lr: expected a mapping"),
        ("recipe.trainig.min_steps", 1, r"recipe has no 'trainig' \(did you mean training\?\)"),
        ("sizes", 3, "there is no 'sizes'; allowed: axes, balance, "),
        ("ladder.sizes.x", 3, "ladder.sizes is the single value 2, nothing lies below it"),
        ("ladder.sizes", "__import__('os').getpid()", "ladder.sizes: expected a whole number"),
        ("ladder.sizes", 0, "ladder: sizes must be positive, got 0"),
        ("balance.rule", "magic", "balance.rule: 'magic' is not one of: zero_mean_sign"),
    ],
)
def test_replaced_says_what_is_wrong_and_what_is_allowed(sweep_config, path, value, message):
    with pytest.raises(ConfigError, match=message):
        replaced(sweep_config, {path: value})
