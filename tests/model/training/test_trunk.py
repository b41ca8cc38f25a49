"""Runs that share a trunk measure what they would have measured by themselves, to the bit."""

from dataclasses import replace

import pytest
import torch
import toy_runs
from toy_runs import RUNTIME, TRAIN, assert_same_tensors, last_weights, lines, train_until

from model.errors import ConfigError
from model.files import step_folder
from model.training.checkpoint import checkpoint_paths, read_checkpoint
from model.training.config import CheckpointConfig, InitialWeights, ScheduleConfig, StageConfig
from model.training.health import HealthState
from model.training.identity import run_identity, trunk_identity
from model.training.routing_use import RoutingUse
from model.training.schedules import learning_rate, merged_steps, trunk_schedule, trunk_steps
from model.training.state import RunState
from model.training.trainer import train

MODEL = replace(toy_runs.MODEL, num_dense_layers=0, mtp_depth=0)
SHARED = ScheduleConfig(kind="wsd", trunk=True, warmup_tokens=500, decay_frac=0.25, num_merged=4)
BRANCH = replace(TRAIN, tokens=128 * 20, schedule=SHARED)
MERGE = replace(BRANCH, schedule=replace(SHARED, kind="wsm"))
TRUNK = replace(
    BRANCH,
    tokens=128 * 30,
    schedule=trunk_schedule(SHARED),
    checkpoint=CheckpointConfig(
        every_s=1e9,
        states_at=(trunk_steps(BRANCH),),
        weights_at=merged_steps(MERGE),
        ends_at=(20,),
    ),
)


@pytest.fixture(scope="module")
def trunk(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trunk")
    train(MODEL, TRUNK, corpus, RUNTIME, folder)
    return folder / "snapshots"


def assert_same_measurement(one, one_dir, other, other_dir):
    for name in ("status", "steps", "tokens", "loss_nats", "by_domain", "load_by_layer"):
        assert getattr(one, name) == getattr(other, name), name
    # Summed in another order: the part before the branch came with the trunk.
    assert one.train_loss_nats == pytest.approx(other.train_loss_nats, rel=1e-12)
    assert_same_tensors(last_weights(one_dir), last_weights(other_dir))


def test_the_steps_of_a_trunk():
    assert trunk_steps(BRANCH) == 15
    assert learning_rate(BRANCH, 14) == learning_rate(TRUNK, 14) > learning_rate(BRANCH, 15)
    assert learning_rate(TRUNK, 1) == pytest.approx(1e-2 * 1.5 * 128 / 500)
    assert merged_steps(MERGE) == (15, 17, 18, 20)
    assert trunk_steps(MERGE) == 20


def test_a_trunk_keeps_states_where_runs_go_on_and_weights_alone_elsewhere(trunk):
    """A state is three times as large: moments are for those who train on."""
    held = {step: read_checkpoint(step_folder(trunk, step)).tensors for step in (15, 17, 18, 20)}
    weights = set(held[17])
    assert weights
    assert all(name.startswith("model.") for name in weights)
    assert set(held[18]) == set(held[20]) == weights
    assert weights < set(held[15])
    assert any("exp_avg_sq" in name for name in set(held[15]) - weights)


@pytest.mark.parametrize("config", [BRANCH, MERGE], ids=["branch", "merge"])
def test_shared_or_alone_it_is_the_same_measurement(corpus, trunk, tmp_path, config):
    alone = train(MODEL, config, corpus, RUNTIME, tmp_path / "alone")
    shared = train(MODEL, config, corpus, RUNTIME, tmp_path / "shared", trunk_dir=trunk)

    assert_same_measurement(shared, tmp_path / "shared", alone, tmp_path / "alone")
    trained = [line["step"] for line in lines(tmp_path / "shared", "train")]
    assert trained == ([] if config is MERGE else list(range(16, 21)))
    assert (shared.tokens_per_s == 0) == (config is MERGE)


def test_a_run_takes_over_what_its_trunk_has_been_through():
    use = RoutingUse(0, 0, torch.device("cpu"))
    trunk = RunState(HealthState(2.0, 1.5, 3, 7), use, step=19, tails={"20": 4.5, "40": 9.0})
    trunk.fp8_fallen = ["blocks.1"]
    trunk.computed_by = [{"from_step": 0, "numerics": {"threads": 2}}]
    run = RunState(HealthState(5.0, 5.0), use)
    run.begin_from_trunk(trunk.to_plain(), 20)
    assert run.health == trunk.health
    assert run.fp8_fallen == trunk.fp8_fallen
    assert run.computed_by == trunk.computed_by
    assert (run.step, run.first_step, run.line_step) == (19, 19, 19)
    assert (run.tail_steps, run.tail_nats) == (1, 4.5)


def test_a_merge_is_not_the_last_checkpoint(corpus, trunk, tmp_path):
    merged = train(MODEL, MERGE, corpus, RUNTIME, tmp_path / "merged", trunk_dir=trunk)
    last = replace(MERGE, schedule=replace(MERGE.schedule, num_merged=1))
    alone = train(MODEL, last, corpus, RUNTIME, tmp_path / "last", trunk_dir=trunk)

    assert alone.loss_nats != merged.loss_nats
    steps = [read_checkpoint(step_folder(trunk, step)).tensors for step in (15, 17, 18, 20)]
    name = "model.output.weight"
    w1, w2, w3 = (1 - (i / 4) ** 0.5 for i in (1, 2, 3))
    by_hand = sum(
        c * t[name].double() for c, t in zip((1 - w1, w1 - w2, w2 - w3, w3), steps, strict=True)
    )
    torch.testing.assert_close(
        last_weights(tmp_path / "merged")["output.weight"], by_hand.float(), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("stop_at", [3, 16, 20])
@pytest.mark.parametrize("config", [BRANCH, MERGE, TRUNK], ids=["branch", "merge", "trunk"])
def test_stopped_and_gone_on_it_is_the_same(corpus, tmp_path, config, stop_at):
    whole = train(MODEL, config, corpus, RUNTIME, tmp_path / "whole")
    train_until(stop_at, MODEL, config, corpus, tmp_path / "run")
    resumed = train(MODEL, config, corpus, RUNTIME, tmp_path / "run")
    again = train(MODEL, config, corpus, RUNTIME, tmp_path / "run")

    assert_same_measurement(resumed, tmp_path / "run", whole, tmp_path / "whole")
    assert_same_measurement(again, tmp_path / "run", whole, tmp_path / "whole")
    assert resumed.train_loss_nats == whole.train_loss_nats
    if config is not BRANCH:
        for path in checkpoint_paths(tmp_path / "whole" / "snapshots"):
            tensors = read_checkpoint(tmp_path / "run" / "snapshots" / path.name).tensors
            assert_same_tensors(read_checkpoint(path).tensors, tensors)


def test_a_snapshot_that_is_missing_costs_time_only(corpus, trunk, tmp_path):
    part = tmp_path / "part"
    part.mkdir()
    step_folder(part, 15).symlink_to(step_folder(trunk, 15))
    whole = train(MODEL, MERGE, corpus, RUNTIME, tmp_path / "whole", trunk_dir=trunk)

    result = train(MODEL, MERGE, corpus, RUNTIME, tmp_path / "run", trunk_dir=part)

    assert_same_measurement(result, tmp_path / "run", whole, tmp_path / "whole")
    kept = sorted(path.name for path in (tmp_path / "run" / "snapshots").iterdir())
    assert kept == ["step-00000017", "step-00000018", "step-00000020"]


def test_another_runs_trunk_is_refused(corpus, trunk, tmp_path):
    other = replace(BRANCH, seed=4)
    with pytest.raises(ConfigError, match="belongs to another trunk"):
        train(MODEL, other, corpus, RUNTIME, tmp_path, trunk_dir=trunk)


def test_whose_a_checkpoint_is_depends_on_all_that_decides_its_numbers():
    """And whose a trunk's is on all that decides its first steps: not where they end."""

    def identities(config, model=MODEL, text="its text"):
        return run_identity(model, config, text), trunk_identity(model, config, text)

    run, trunk = identities(BRANCH)
    for config in (
        replace(BRANCH, seed=4),
        replace(BRANCH, batch_tokens=256),
        replace(BRANCH, sequence_length=64),
        replace(BRANCH, optimizer=replace(BRANCH.optimizer, beta2=0.9)),
        replace(BRANCH, balance=replace(BRANCH.balance, update_rate=0.5)),
        replace(BRANCH, schedule=replace(SHARED, warmup_tokens=400)),
        replace(BRANCH, precision="bf16"),
        replace(BRANCH, mtp_loss_weight=0.2),
        replace(BRANCH, stages=(StageConfig(name="long", lr_factor=0.5),)),
        replace(BRANCH, initial_weights=InitialWeights(sha256="0")),
    ):
        assert not {run, trunk} & set(identities(config)), config
    assert not {run, trunk} & set(identities(BRANCH, replace(MODEL, init_std=0.01)))
    assert not {run, trunk} & set(identities(BRANCH, text="another text"))
    for config in (
        replace(BRANCH, tokens=128 * 30),
        replace(BRANCH, schedule=replace(SHARED, decay_frac=0.5)),
        replace(BRANCH, evaluation=replace(BRANCH.evaluation, num_intermediate=0)),
    ):
        other, same = identities(config)
        assert (other != run, same == trunk) == (True, True), config
    assert identities(replace(BRANCH, checkpoint=CheckpointConfig(keep=9))) == (run, trunk)


def test_too_many_checkpoints_to_merge_are_refused():
    crowded = replace(MERGE, schedule=replace(MERGE.schedule, num_merged=9))
    with pytest.raises(ConfigError, match="9 checkpoints do not fit into the last 5 steps of 20"):
        merged_steps(crowded)


def test_a_cosine_has_no_trunk():
    with pytest.raises(ConfigError, match="no trunk to share"):
        ScheduleConfig(kind="cosine", trunk=True)
