"""Trunks: planned once, trained once, and nothing that is measured depends on them."""

import contextlib
import os
import random
import signal
import threading
import time
from dataclasses import replace

import pytest
import toy_plans

from model.errors import ConfigError
from model.files import step_folder
from model.training.config import ScheduleConfig
from model.training.trainer import train
from sweeps.attempt import Attempt, attempt_dir, read_claim
from sweeps.budget import Budget
from sweeps.events import Event
from sweeps.executors.local import LocalExecutor
from sweeps.grid import replaced
from sweeps.measure import check_record, measure_run
from sweeps.plan import make_plan
from sweeps.plan_file import read_plan, write_plan
from sweeps.run import run_sweep
from sweeps.spec import run_id
from sweeps.store import Store
from sweeps.trunks import has_snapshots, needed_steps, with_trunks

SCHEDULE = ScheduleConfig(kind="wsm", trunk=True, warmup_frac=0.2, num_merged=3)


@pytest.fixture(scope="module")
def config(corpus_dir):
    """Two sizes, three budgets, merges and branches; two more seeds of one cell."""
    small = replaced(
        toy_plans.small_sweep(corpus_dir),
        {"ladder.smallest_tokens": 2048, "ladder.budgets": 3, "ladder.noise_budget": 1},
    )
    return replace(small, name="trunks", schedule=SCHEDULE, axes={"schedule.kind": ("wsm", "wsd")})


@pytest.fixture(scope="module")
def trunk_plan(config, corpus):
    return make_plan(config, corpus)


def trunks_of(plan):
    return [run for run in plan.runs if run.spec.role == "trunk"]


def test_one_trunk_a_rung_serves_every_budget_and_variant(trunk_plan):
    trunks = trunks_of(trunk_plan)
    grid = [run for run in trunk_plan.measured if run.spec.role == "grid"]
    noise = [run for run in trunk_plan.measured if run.spec.role == "noise"]

    assert sorted(run.spec.rung for run in trunks) == ["r0", "r1"]
    assert len(grid) == 2 * 3 * 2
    assert {run.spec.trunk for run in grid} == {run.run_id for run in trunks}
    # A cell with one readout for each seed has nothing to share.
    assert len(noise) == 2
    assert {run.spec.trunk for run in noise} == {""}
    for trunk in trunks:
        mine = [run.spec.train for run in grid if run.spec.trunk == trunk.run_id]
        kept = trunk.spec.train.checkpoint
        for train_config in mine:
            assert set(needed_steps(train_config)) <= {*kept.states_at, *kept.weights_at}
            assert train_config.num_steps in kept.ends_at
        assert len({train_config.optimizer.peak_lr for train_config in mine}) == 1
        assert len({train_config.batch_tokens for train_config in mine}) == 1
        assert {train_config.schedule.warmup_tokens for train_config in mine} == {410}
    assert len({run.spec.train.schedule.warmup_tokens for run in trunk_plan.runs}) == 1


def test_the_plan_counts_shared_steps_once(trunk_plan):
    def flops(run):
        return run.cost.flops_per_token * run.spec.train.tokens

    grid = [run for run in trunk_plan.measured if run.spec.role == "grid"]
    noise = [run for run in trunk_plan.measured if run.spec.role == "noise"]
    branches = sum(0.2 * flops(run) for run in grid if run.spec.train.schedule.kind == "wsd")
    expected = sum(map(flops, trunks_of(trunk_plan))) + branches + sum(map(flops, noise))

    assert trunk_plan.train_flops == pytest.approx(expected, rel=0.01)
    assert trunk_plan.separate_flops == pytest.approx(sum(map(flops, trunk_plan.measured)))
    assert trunk_plan.separate_flops > 2 * trunk_plan.train_flops


def test_a_readouts_id_is_that_of_the_run_by_itself(trunk_plan, tmp_path):
    for run in trunk_plan.measured:
        assert run_id(replace(run.spec, trunk="")) == run.run_id
    write_plan(trunk_plan, tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == trunk_plan


def test_readouts_follow_their_trunk(trunk_plan):
    place = {run.run_id: index for index, run in enumerate(trunk_plan.runs)}
    assert all(
        place[run.spec.trunk] < place[run.run_id] for run in trunk_plan.runs if run.spec.trunk
    )


def test_a_readout_has_its_snapshots_once_the_last_is_there(trunk_plan, tmp_path):
    shared = (run.spec for run in trunk_plan.runs if run.spec.trunk)
    spec = next(spec for spec in shared if len(needed_steps(spec.train)) > 1)
    store = Store(tmp_path)
    for step in needed_steps(spec.train):
        assert not has_snapshots(store, spec)
        step_folder(store.run_dir(spec.trunk) / "snapshots", step).mkdir(parents=True)
    assert has_snapshots(store, spec)


def test_other_schedules_have_no_trunks(config, corpus):
    separate = replaced(replace(config, axes={}), {"schedule.trunk": False})
    plan = make_plan(separate, corpus)
    assert trunks_of(plan) == []
    assert plan.train_flops == pytest.approx(plan.separate_flops)
    rates = {run.spec.train.optimizer.peak_lr for run in plan.runs if run.spec.rung == "r0"}
    assert len(rates) == 3, "each budget has its own"


def test_a_single_run_shares_with_nobody(trunk_plan):
    spec = replace(trunk_plan.measured[0].spec, trunk="")
    assert with_trunks([spec]) == ([], [spec])


def test_too_many_merged_checkpoints_are_refused_when_planning(config, corpus):
    with pytest.raises(ConfigError, match="40 checkpoints do not fit into the last"):
        make_plan(replaced(config, {"schedule.num_merged": 40}), corpus)


def small_part(plan):
    """One trunk and its readouts."""
    trunk = next(run for run in trunks_of(plan) if run.spec.rung == "r0")
    mine = [run for run in plan.runs if run.spec.trunk == trunk.run_id]
    return replace(plan, runs=(trunk, *mine))


@pytest.mark.slow
def test_killed_at_random_every_readout_is_what_it_is_by_itself(
    trunk_plan, corpus, tmp_path, monkeypatch
):
    """Real workers, SIGKILL; against each spec trained alone, without a store or a trunk."""
    monkeypatch.setattr("sweeps.retries.BACKOFF_S", (0.05,) * 100)
    plan, store, rng = small_part(trunk_plan), Store(tmp_path), random.Random(0)
    plan = replace(plan, runs=plan.runs[:5])
    kills = []

    def strike(event: Event) -> None:
        if event.kind != "started" or len(kills) >= 5:
            return
        folder = attempt_dir(store.run_dir(event.run.run_id), event.attempt)

        delay_s = rng.uniform(0.0, 0.3)

        def kill() -> None:
            end = time.monotonic() + 60
            while not (folder / "claim.json").exists() and time.monotonic() < end:
                time.sleep(0.005)
            time.sleep(delay_s)
            if not (folder / "outcome.json").exists():
                with contextlib.suppress(ProcessLookupError):  # it ended a moment ago
                    os.kill(read_claim(folder).owner.pid, signal.SIGKILL)
                    kills.append(event.run.run_id)

        threading.Thread(target=kill, daemon=True).start()

    result = run_sweep(plan, store, LocalExecutor(slots=2), strike)

    assert result.is_complete
    assert kills
    assert result.finished.count(plan.runs[0].run_id) == 1
    for run in plan.measured:
        record = store.record(run.run_id)
        check_record(record, run.spec)
        alone = train(
            run.spec.model,
            run.spec.train,
            corpus,
            run.spec.runtime,
            tmp_path / "alone" / run.run_id,
        )
        assert record.loss_nats == alone.loss_nats
        assert record.load_by_layer[0].load == alone.load_by_layer[0].load
        assert record.train_loss_nats == pytest.approx(alone.train_loss_nats, rel=1e-12)
        assert record.provenance["trunk"] == plan.runs[0].run_id
        assert store.attempts(run.run_id)
    assert run_sweep(plan, store, LocalExecutor(slots=2)).finished == ()


def measured_here(run, store):
    """One run in this process, in its first attempt; nothing is published."""
    folder = store.create(run.spec)
    attempt = Attempt.claim(folder, after=0, now=0.0)
    return measure_run(run.spec, attempt.dir, lambda progress: None), folder


def test_readouts_begin_where_the_trunk_is(trunk_plan, tmp_path):
    plan, store = small_part(trunk_plan), Store(tmp_path)
    merge, branch = (
        next(run for run in plan.measured if run.spec.train.schedule.kind == kind)
        for kind in ("wsm", "wsd")
    )
    assert not has_snapshots(store, merge.spec)
    record, folder = measured_here(plan.runs[0], store)
    assert record.role == "trunk"
    assert has_snapshots(store, merge.spec)
    assert has_snapshots(store, branch.spec)
    kept = plan.runs[0].spec.train.checkpoint
    assert len(list((folder / "snapshots").iterdir())) == len({*kept.states_at, *kept.weights_at})

    merged, _ = measured_here(merge, store)
    branched, branch_dir = measured_here(branch, store)
    assert merged.tokens == merge.spec.train.tokens
    assert merged.tokens_per_s == 0
    assert branched.loss_nats != merged.loss_nats
    lines = (branch_dir / "attempts" / "0001" / "metrics.jsonl").read_text().splitlines()
    assert f'"step": {needed_steps(branch.spec.train)[0] + 1},' in lines[0]


@pytest.mark.parametrize("status", ["failed", "diverged"])
def test_a_trunk_that_goes_wrong_takes_its_readouts_with_it(trunk_plan, toy, status):
    toy.set(**{"fail" if status == "failed" else "diverge": [0]})
    plan = replace(small_part(trunk_plan), runs=small_part(trunk_plan).runs[:3])
    events: list[Event] = []
    result = run_sweep(plan, toy.store, toy.executor(), events.append)
    bad = getattr(result, status)
    assert plan.runs[0].run_id in bad
    if status == "failed":
        assert set(bad) == {run.run_id for run in plan.runs}
        assert f"its trunk {plan.runs[0].run_id} failed" in bad[plan.runs[1].run_id]
        assert [event.run.run_id for event in events if event.kind == "started"] == [
            plan.runs[0].run_id
        ]


def test_a_trunk_beyond_the_budget_leaves_its_readouts_for_later(trunk_plan, toy):
    plan = small_part(trunk_plan)
    result = run_sweep(plan, toy.store, toy.executor(), budget=Budget(train_flops=1.0))
    # Merges cost no training, yet without the trunk they have nothing to average.
    assert set(result.unfinished) == {run.run_id for run in plan.runs}
    assert result.finished == ()
