"""A store of an earlier version: its runs are found again, and nothing is trained twice."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from model.errors import ConfigError
from model.training.checkpoint import Checkpoint, load_newest, save_checkpoint
from model.training.identity import run_identity
from model.typed import to_plain
from sweeps import migrate as migration
from sweeps.attempt import Attempt, Outcome, attempt_dir, read_claim
from sweeps.files import content_hash, read_json, write_json
from sweeps.migrate import ADDED, migrate
from sweeps.run import run_sweep
from sweeps.spec import SPEC_VERSION, read_spec, run_id, science


def older(spec, version):
    """The plain spec as ``version`` wrote it, and the id it had there."""
    plain, known = to_plain(spec), science(spec)
    for later in range(version + 1, SPEC_VERSION + 1):
        for dotted in ADDED[later]:
            for tree in (plain, known):
                node = tree
                *parents, name = dotted.split(".")
                for parent in parents:
                    node = node[parent]
                node.pop(name, None)
    plain["spec_version"] = known["spec_version"] = version
    slug = run_id(spec).rpartition("-")[0]
    return plain, f"{slug}-{content_hash(known, 12)}"


def age(store, run, version):
    """Give a run's folder the names and fields of an earlier version."""
    plain, name = older(run.spec, version)
    folder = store.run_dir(run.run_id)
    write_json(folder / "spec.json", plain)
    for attempt in store.attempts(run.run_id):
        record = attempt / "record.json"
        if record.exists():
            write_json(record, {**read_json(record), "run_id": name})
    folder.rename(store.run_dir(name))
    mark = store.root / "spec_version"
    if version == 1:
        mark.unlink(missing_ok=True)  # older than the mark
    else:
        write_json(mark, version)
    return name


@pytest.mark.parametrize("version", range(1, SPEC_VERSION))
def test_finished_runs_of_every_version_are_found_again(plan, toy, version):
    assert run_sweep(plan, toy.store, toy.executor()).is_complete
    before = {run.run_id: toy.store.record(run.run_id) for run in plan.runs}
    names = [age(toy.store, run, version) for run in plan.runs]
    assert not set(names) & set(before)
    assert migrate(toy.store) == len(plan.runs)
    result = run_sweep(plan, toy.store, toy.executor())
    assert len(result.skipped) == len(plan.runs)
    for run in plan.runs:
        assert toy.store.record(run.run_id) == before[run.run_id]
        assert read_spec(toy.store.run_dir(run.run_id) / "spec.json") == run.spec
    assert migrate(toy.store) == 0


def test_killed_half_way_it_goes_on(plan, toy, monkeypatch):
    assert run_sweep(plan, toy.store, toy.executor()).is_complete
    for run in plan.runs:
        age(toy.store, run, SPEC_VERSION - 1)
    real, left = os.rename, [3]

    def rename(source, target):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(source, target)

    monkeypatch.setattr("sweeps.migrate.os.rename", rename)
    with pytest.raises(KeyboardInterrupt):
        migrate(toy.store)
    monkeypatch.undo()
    assert migrate(toy.store) == len(plan.runs) - 3
    assert len(run_sweep(plan, toy.store, toy.executor()).skipped) == len(plan.runs)


def test_two_commands_at_once_bring_each_run_over_once(plan, toy, monkeypatch):
    assert run_sweep(plan, toy.store, toy.executor()).is_complete
    for run in plan.runs:
        age(toy.store, run, SPEC_VERSION - 1)
    bring_over, both = migration._bring_over, threading.Barrier(2)

    def at_the_same_time(*given):
        with suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # only the first run's: the barrier stays broken
        bring_over(*given)

    monkeypatch.setattr(migration, "_bring_over", at_the_same_time)
    with ThreadPoolExecutor(2) as pool:
        counts = [each.result() for each in [pool.submit(migrate, toy.store) for _ in range(2)]]
    assert sorted(counts) == [0, len(plan.runs)]
    assert len(run_sweep(plan, toy.store, toy.executor()).skipped) == len(plan.runs)


def test_an_interrupted_run_goes_on_from_its_checkpoint(plan, toy):
    run = plan.runs[0]
    attempt = Attempt.claim(toy.store.create(run.spec), after=0, now=1.0)
    (attempt.dir / "metrics.jsonl").write_text("")
    state = {"identity": "of the version before", "metrics_offset": 0, "run": {"step": 3}}
    contents = Checkpoint(3, {"weight": torch.arange(3)}, state)
    save_checkpoint(attempt.dir / "checkpoints", contents, keep=2)
    attempt.end(Outcome(status="interrupted", reason="stopped", ended=2.0))
    age(toy.store, run, SPEC_VERSION - 1)
    assert migrate(toy.store) == 1
    spec = run.spec
    identity = run_identity(spec.model, spec.train, spec.corpus_fingerprint)
    folder = attempt_dir(toy.store.run_dir(run.run_id), 1)
    found = load_newest(folder / "checkpoints")
    assert found.state["identity"] == identity
    (checkpoint,) = (folder / "checkpoints").iterdir()
    assert all(path.is_file() for path in checkpoint.iterdir()), "nothing unfinished is left"
    assert found.state["run"] == {"step": 3}
    assert found.tensors["weight"].tolist() == [0, 1, 2]


def test_a_run_under_way_is_not_touched(plan, toy):
    run = plan.runs[0]
    attempt = Attempt.claim(toy.store.create(run.spec), after=0, now=1e12)
    assert read_claim(attempt.dir).owner.pid
    age(toy.store, run, SPEC_VERSION - 1)
    with pytest.raises(ConfigError, match="of an earlier version of this program is still running"):
        migrate(toy.store)


def test_what_was_trained_anew_stays_and_the_old_is_set_aside(plan, toy):
    runs = plan.runs[:2]
    assert run_sweep(plan, toy.store, toy.executor()).is_complete
    names = [age(toy.store, run, SPEC_VERSION - 1) for run in runs]
    assert set(run_sweep(plan, toy.store, toy.executor()).finished) == {r.run_id for r in runs}
    assert migrate(toy.store) == 2
    for run, name in zip(runs, names, strict=True):
        assert (toy.store.root / "redone" / f"{name}.earlier-version").exists()
        assert toy.store.record(run.run_id).run_id == run.run_id


def test_what_a_version_added_has_the_value_from_before_it_not_the_default(plan, toy, monkeypatch):
    run = plan.runs[0]
    toy.store.create(run.spec)
    name = age(toy.store, run, SPEC_VERSION - 1)
    folder = toy.store.run_dir(name)
    plain = read_json(folder / "spec.json")
    assert plain["train"].pop("mtp_loss_weight") == 0.1  # the default of today, too
    write_json(folder / "spec.json", plain)
    monkeypatch.setitem(ADDED, SPEC_VERSION, {"train.mtp_loss_weight": 0.25})
    assert migrate(toy.store) == 1
    (path,) = toy.store.runs_dir.glob("*/spec.json")
    assert read_spec(path).train.mtp_loss_weight == 0.25


def test_a_spec_of_a_later_version_is_refused(plan, toy):
    path = toy.store.create(plan.runs[0].spec) / "spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "spec_version": 99}))
    with pytest.raises(
        ConfigError, match=f"spec version 99, this program knows 1 to {SPEC_VERSION}"
    ):
        migrate(toy.store)


def test_every_version_says_what_it_added():
    assert sorted(ADDED) == list(range(2, SPEC_VERSION + 1))
    golden = (Path(__file__).parent / "golden_science_fields.txt").read_text().split()
    for fields in ADDED.values():
        assert set(fields) - {"trunk"} <= set(golden)
