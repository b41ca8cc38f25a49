"""Initial values: from config, seed and name alone, with the published distributions."""

import math

import pytest
import torch

from model.init import initialize
from model.transformer import build_model

pytestmark = pytest.mark.usefixtures("one_thread")


def values(config, **settings):
    return build_model(config, **settings).state_dict()


def test_the_same_seed_gives_the_same_weights_whatever_the_global_state(tiny):
    config = tiny(mtp_depth=1)
    torch.manual_seed(1)
    first = values(config, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = values(config, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global random state was touched"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights_and_no_two_tensors_share_theirs(tiny):
    first, second = (values(tiny(mtp_depth=1), seed=seed) for seed in (5, 6))
    drawn = {name: t for name, t in first.items() if t.dim() > 1}
    assert drawn
    for name, tensor in drawn.items():
        assert not torch.equal(tensor, second[name])
    begins = {tuple(tensor.flatten()[:3].tolist()) for tensor in drawn.values()}
    assert len(begins) == len(drawn)


def test_a_block_starts_alike_in_a_deeper_model(tiny):
    shallow, deep = values(tiny(), seed=5), values(tiny(num_layers=4), seed=5)
    assert set(shallow) < set(deep)
    assert all(torch.equal(shallow[name], deep[name]) for name in shallow)


def test_types_start_from_the_same_numbers(tiny):
    exact, half = values(tiny(), seed=5), values(tiny(), seed=5, dtype=torch.bfloat16)
    for name, tensor in exact.items():
        expected = tensor if name.endswith("selection_bias") else tensor.bfloat16()
        assert torch.equal(half[name], expected), name


def test_the_published_distributions(tiny):
    std, width = 0.02, 96
    config = tiny(
        hidden_size=width, dense_width=256, vocab_size=300, init_std=std, mtp_depth=1,
        moe={"expert_width": 32},
    )  # fmt: skip
    for name, tensor in values(config, seed=0).items():
        if name.endswith("selection_bias"):
            assert (tensor == 0).all(), name
        elif tensor.dim() == 1:
            assert (tensor == 1).all(), name
        elif name.endswith("router.weight"):
            # kaiming_uniform_(a=√5): uniform between ±1/√width
            bound = 1 / math.sqrt(width)
            assert tensor.abs().max() <= bound
            assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        else:
            # The standard error of a standard deviation is std/√(2n).
            slack = 5 / math.sqrt(2 * tensor.numel())
            assert tensor.std().item() == pytest.approx(std, rel=slack), name
            assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel()), name


def test_a_module_missing_from_the_table_is_named(tiny):
    class Forgotten(torch.nn.Conv1d):
        """One of this house's own modules."""

    Forgotten.__module__ = "model.forgotten"
    model = torch.nn.ModuleDict({"extra": Forgotten(1, 1, 1)})
    with pytest.raises(TypeError, match=r"extra\.weight: Forgotten is not in the table"):
        initialize(model, tiny(), 0)
