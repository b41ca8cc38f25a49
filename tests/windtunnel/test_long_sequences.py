"""The machine plan where sequences are long: spread over ranks, in memory, time and hand-over."""

from dataclasses import replace
from typing import Any

import pytest

from model.errors import ConfigError
from model.training.config import TrainConfig
from model.training.distributed.config import ParallelConfig
from model.training.sources import DataStage
from windtunnel.commands.machine import Config, _training
from windtunnel.commands.promote import Config as Promote
from windtunnel.composition import load
from windtunnel.forecasting import Settings, machine_plan
from windtunnel.machine.costs import attention_core_s, block_costs, gather_s, ring_s
from windtunnel.machine.handover import megatron_options, torchtitan_options
from windtunnel.machine.memory_plan import RankMemory, rank_memory
from windtunnel.machine.plan import best_plan
from windtunnel.yaml_folders import CONF_DIR

SIZES = ParallelConfig(shard=72, expert=8, context=8, pipeline=28, micro_batch=1, recompute=True)


def asked(*words: str) -> tuple[Config, TrainConfig]:
    """`windtunnel machine` with these words."""
    config = load("machine", Config, [*words], (CONF_DIR,))
    return config, _training(config)


@pytest.fixture(scope="module")
def at_32k() -> tuple[Config, TrainConfig]:
    return asked("sequence_length=32768")


@pytest.mark.parametrize(("length", "most"), [(32768, 8), (131072, 32)])
def test_the_search_shares_sequences_where_they_are_long(length: int, most: int) -> None:
    config, train = asked(f"sequence_length={length}")
    best = best_plan(config.model, train, config.hardware, 2016)
    assert best.fits
    assert 1 < best.parallel.context <= most


def test_whole_sequences_of_32k_do_not_fit(
    at_32k: tuple[Config, TrainConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, train = at_32k
    monkeypatch.setattr("windtunnel.machine.plan._contexts", lambda length: [1])
    with pytest.raises(ConfigError, match="2016 h800 are too few"):
        best_plan(config.model, train, config.hardware, 2016)


def test_a_rank_has_its_part_of_the_work_and_gathers_the_rest(
    at_32k: tuple[Config, TrainConfig],
) -> None:
    config, train = at_32k
    model, hardware, length = config.model, config.hardware, train.sequence_length
    alone = block_costs(model, hardware, replace(SIZES, context=1), length)
    shared = block_costs(model, hardware, SIZES, length)
    tokens = length / 8
    gathered = tokens * gather_s(model, hardware, SIZES)
    assert shared.layers[-1] == pytest.approx(alone.layers[-1] / 8 + gathered)
    assert shared.output == pytest.approx(alone.output / 8)
    # Seven eighths of 8 heads of 128, keys and values in bfloat16, by 400 GB/s both ways at 80 %.
    expected = 7 / 8 * length * 2 * 8 * 128 * 2 / 160e9
    assert gathered == pytest.approx(expected)
    # A ring hides it where attention to a part takes longer than the part's way.
    assert ring_s(model, hardware, SIZES, length) == 0
    slow = replace(hardware, node_bytes_per_s=1e9)
    waits = gather_s(model, slow, SIZES) - 7 / 8 * attention_core_s(model, slow, length)
    assert ring_s(model, slow, SIZES, length) == pytest.approx(waits)


def test_activations_shrink_but_for_gathered_keys(at_32k: tuple[Config, TrainConfig]) -> None:
    model = at_32k[0].model
    counts = (3,) * 24 + (2,) * 4

    def memory(context: int) -> RankMemory:
        sizes = replace(SIZES, context=context)
        return rank_memory(model, sizes, counts, 5, (23,), sequence_length=32768, is_bf16=True)

    alone, shared = memory(1), memory(8)
    assert (shared.states, shared.gathered) == (alone.states, alone.gathered)
    # Of the block that is computed again all keys and values, and the attention's output twice.
    all_keys = 32768 * 2 * 8 * 128 * 2
    output = 32768 / 8 * 64 * 128 * 2
    assert shared.activations == pytest.approx(alone.activations / 8 + all_keys + output)


def test_what_other_engines_are_told(at_32k: tuple[Config, TrainConfig]) -> None:
    config, train = at_32k
    megatron = megatron_options(config.model, train, SIZES)
    assert megatron["--context-parallel-size"] == "8"
    assert megatron["--cp-comm-type"] == "all_gather"
    titan = torchtitan_options(train, SIZES)
    assert titan["--parallelism.context_parallel_degree"] == "8"
    assert titan["--parallelism.data_parallel_shard_degree"] == "9"
    assert titan["--parallelism.context_parallel_load_balancer"] == "headtail"


def test_a_run_with_a_long_stage_is_planned_for_that(finished: Any) -> None:
    spec = finished.promotion.spec
    even = {"synthetic": 1.0}
    stages = (
        DataStage(name="short", frac=0.5, weights=even),
        DataStage(name="long", frac=0.5, weights=even, sequence_length=8192),
    )
    long = replace(
        spec,
        train=replace(spec.train, batch_tokens=8 * 8192, tokens=16 * 8192),
        corpus=replace(spec.corpus, stages=stages),
    )
    config = load("promote", Promote, ["sweep=x", "gpus=4"], (CONF_DIR,))
    settings = Settings(
        level=config.level,
        size_range=config.size_range,
        thresholds=config.gates,
        hardware=config.hardware,
        gpus=4,
    )
    plan, _ = machine_plan(long, settings)
    assert plan is not None
    sizes = plan.parallel
    assert plan.micro_batches * sizes.data * sizes.micro_batch == 8, "sequences of 8,192"


@pytest.mark.parametrize(
    ("sizes", "length", "said"),
    [
        ({"shard": 3, "context": 2}, 64, r"context .2. must divide shard .3."),
        ({"shard": 4, "context": 4}, 36, r"sequences of 36 tokens .* 8 pieces of context .4."),
    ],
)
def test_sequences_that_do_not_divide_are_refused(
    sizes: dict[str, int], length: int, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        ParallelConfig(**sizes).require_pieces(length)
