"""Checkpoint merging: coefficients and decays are inverse, and it does what it says."""

import pytest
import torch

from model.errors import ConfigError
from model.training.merge import (
    coefficients_of,
    decay_of,
    merge_coefficients,
    merge_weights,
)


def test_decay_and_coefficients_are_inverse():
    decay = (0.9, 0.9, 0.4, 0.1, 0.0)
    coefficients = (0.5, 0.125, 0.25, 0.125)

    assert decay_of(coefficients_of(decay)) == pytest.approx(decay)
    assert coefficients_of(decay_of(coefficients)) == pytest.approx(coefficients)
    assert sum(coefficients_of(decay)) == pytest.approx(1)


def test_theorem_by_hand():
    # w_1 = c_1 + c_2, w_2 = c_2; the weights are those of arXiv:2507.17634, Theorem 3.1.
    assert decay_of((0.2, 0.3, 0.5)) == pytest.approx((0.8, 0.5))
    assert coefficients_of((0.8, 0.5)) == pytest.approx((0.2, 0.3, 0.5))


def test_mean_is_the_linear_decay():
    assert merge_coefficients("linear", 5) == pytest.approx((0.2,) * 5)
    assert merge_coefficients("linear", 1) == (1.0,)


@pytest.mark.parametrize("shape", ["1-sqrt", "cosine"])
def test_other_shapes_are_averages_too(shape):
    coefficients = merge_coefficients(shape, 8)

    assert len(coefficients) == 8
    assert sum(coefficients) == pytest.approx(1)
    assert all(c >= 0 for c in coefficients)
    assert decay_of(coefficients)[3] == pytest.approx(0.5 if shape == "cosine" else 1 - 0.5**0.5)


def test_merging_scales_each_update_as_the_decay_says():
    """θ̂ = θ_0 + Σ w_i·u_i, where u_i is the update that made checkpoint i from the one before."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    updates = torch.randn(4, 7, 3, generator=generator, dtype=torch.float64)
    trunk = [start + updates[:count].sum(0) for count in range(5)]
    decay = (0.9, 0.6, 0.6, 0.25)

    merged = merge_weights([{"w": w} for w in trunk], coefficients_of(decay))

    expected = start + sum(w * u for w, u in zip(decay, updates, strict=True))
    torch.testing.assert_close(merged["w"], expected, rtol=1e-12, atol=1e-12)


def test_types_are_kept_and_one_checkpoint_is_itself():
    weights = {"a": torch.randn(3, dtype=torch.bfloat16), "bias": torch.randn(2)}

    merged = merge_weights([weights], (1.0,))

    for name, tensor in weights.items():
        assert merged[name].dtype == tensor.dtype
        assert torch.equal(merged[name], tensor)


def test_parts_that_cancel_leave_what_is_between_them():
    """Summed in float32 the four would be lost beside a hundred million."""
    weights = [{"a": torch.tensor([value])} for value in (1e8, 4.0, -1e8, 0.0)]
    assert merge_weights(weights, (0.25,) * 4)["a"].tolist() == [1.0]


def test_what_can_not_be_merged():
    one, other = {"a": torch.ones(1)}, {"b": torch.ones(1)}
    with pytest.raises(ConfigError, match="different models: \\['a', 'b'\\]"):
        merge_weights([one, other], (0.5, 0.5))
    with pytest.raises(ConfigError, match="2 checkpoints but 1 coefficients"):
        merge_weights([one, one], (1.0,))
    with pytest.raises(ConfigError, match=r"must sum to 1, they sum to 1\.1"):
        merge_weights([one, one], (0.5, 0.6))
    with pytest.raises(ConfigError, match="must fall from at most 1"):
        coefficients_of((0.5, 0.6))
    with pytest.raises(ConfigError, match="num_checkpoints must be >= 1, got 0"):
        merge_coefficients("linear", 0)
