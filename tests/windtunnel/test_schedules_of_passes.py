"""The order of a pipeline's passes: PyTorch's own, and what playing it through says."""

import pytest
from torch.distributed.pipelining import ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble

from model.errors import ConfigError
from model.training.distributed.config import ParallelConfig
from windtunnel.machine.pipeline import _order, play

KINDS = {
    "FORWARD": "forward",
    "FULL_BACKWARD": "backward",
    "BACKWARD_INPUT": "inputs",
    "BACKWARD_WEIGHT": "weights",
}


@pytest.mark.parametrize(("pipeline", "virtual", "num_micro"), [(2, 2, 8), (4, 2, 10), (3, 3, 9)])
@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble"])
def test_passes_are_in_the_order_of_pytorch(schedule, pipeline, virtual, num_micro):
    kind = ScheduleInterleavedZeroBubble if schedule == "zero_bubble" else ScheduleInterleaved1F1B
    theirs = object.__new__(kind)  # its order alone, without processes
    theirs.n_local_stages, theirs.pp_group_size, theirs._n_microbatches = (
        virtual,
        pipeline,
        num_micro,
    )
    theirs.microbatches_per_round = num_micro // max(1, num_micro // pipeline)
    sizes = ParallelConfig(pipeline=pipeline, virtual=virtual, schedule=schedule)
    for rank in range(pipeline):
        actions = [a for a in theirs._calculate_single_rank_operations(rank) if a is not None]
        expected = [
            (KINDS[action.computation_type.name], action.stage_index, action.microbatch_index)
            for action in actions
        ]
        assert _order(rank, sizes, num_micro) == expected


@pytest.mark.parametrize(("pipeline", "num_micro"), [(4, 16), (8, 32), (4, 400)])
def test_zero_bubble_waits_a_third_as_long(pipeline, num_micro):
    """arXiv:2401.10241, table 1: (p - 1)(F + B - W) for ZB-H1, (p - 1)(F + B + W) for 1F1B."""
    even = [1.0] * pipeline
    times = {
        schedule: play(even, ParallelConfig(pipeline=pipeline, schedule=schedule), num_micro, 2.0)
        for schedule in ("1f1b", "zero_bubble")
    }
    work = 3 * num_micro
    assert times["1f1b"].seconds == pytest.approx(work + 3 * (pipeline - 1))
    assert times["zero_bubble"].seconds == pytest.approx(work + pipeline - 1)
    assert times["zero_bubble"].bubble == pytest.approx((pipeline - 1) / (work + pipeline - 1))
    # As much as 1F1B holds at most, on every rank.
    assert times["zero_bubble"].held == ((pipeline,),) * pipeline


def test_gradients_made_by_one_operation_cost_a_split_pipeline_twice():
    sizes = ParallelConfig(pipeline=4, schedule="zero_bubble")
    even = play([1.0] * 4, sizes, 16, 2.0)
    joined = play([1.0] * 4, sizes, 16, 2.0, ([2.0] * 4, [2.0] * 4))
    assert joined.seconds > even.seconds * 5 / 3 - 1e-9


def test_a_zero_bubble_pipeline_keeps_its_blocks():
    with pytest.raises(ConfigError, match="use recompute=false or schedule=1f1b"):
        ParallelConfig(pipeline=2, schedule="zero_bubble", recompute=True)
