"""Loads counted at every step, against the metrics of each batch."""

import pytest
import torch

from model.balance import load_metrics
from model.training.routing_use import RoutingUse


def steps(count, seed=0):
    """So many steps of two layers with five experts, 40 choices each."""
    draw = torch.Generator().manual_seed(seed)
    choices = torch.randint(5, (count, 2, 40), generator=draw)
    return [[torch.bincount(row, minlength=5) for row in step] for step in choices]


def counted(loads):
    use = RoutingUse(2, 5, torch.device("cpu"))
    for step in loads:
        use.count(step)
    return use


def test_violations_are_of_single_batches_and_the_rest_of_all_together():
    loads = steps(7)
    measured = counted(loads).metrics()
    by_batch = load_metrics(torch.stack([torch.stack(step) for step in loads]).double())
    assert measured["max_vio"] == pytest.approx(by_batch.max_vio.mean(0).tolist())
    assert measured["min_vio"] == pytest.approx(by_batch.min_vio.mean(0).tolist())
    together = load_metrics(sum(torch.stack(step) for step in loads).double())
    assert measured["normalized_entropy"] == pytest.approx(together.normalized_entropy.tolist())
    assert measured["dead_frac"] == [0.0, 0.0]
    assert measured["max_vio"][0] > together.max_vio[0]


def test_dead_is_who_was_chosen_in_none_of_the_steps():
    use = RoutingUse(1, 4, torch.device("cpu"))
    for load in ([3, 0, 5, 0], [1, 0, 0, 7]):
        use.count([torch.tensor(load)])
    assert use.metrics()["dead_frac"] == [0.25]


def test_a_line_begins_from_nothing():
    use = counted(steps(3))
    use.begin_line()
    for step in steps(4, seed=1):
        use.count(step)
    assert use.metrics() == counted(steps(4, seed=1)).metrics()


def test_a_checkpoint_brings_it_back():
    use = counted(steps(3))
    use.choices_LTK = torch.ones(2, 4, 2, dtype=torch.int16)
    back = RoutingUse(2, 5, torch.device("cpu"))
    back.restore({name: tensor.clone() for name, tensor in use.to_tensors().items()})
    use.begin_line()  # must not reach what was restored
    assert back.metrics() == counted(steps(3)).metrics()
    assert torch.equal(back.choices_LTK, use.choices_LTK)
    back.restore(counted(steps(1)).to_tensors())
    assert back.choices_LTK is None


def test_a_dense_model_counts_nothing():
    use = RoutingUse(0, 0, torch.device("cpu"))
    use.count([])
    assert use.to_tensors()["run.load"].numel() == 0
