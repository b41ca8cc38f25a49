"""A root that was moved, and a checkout that moved: what is where now, and what ran then."""

import subprocess
from dataclasses import replace
from pathlib import Path

import toy_plans

from model.training.data import prepare_corpus
from sweeps import measure, provenance
from sweeps.executors.inline import InlineExecutor
from sweeps.plan import make_plan
from sweeps.run import run_sweep
from sweeps.store import Store


def one_run(root: Path):
    """A plan of one run whose text is kept under ``root``, as every sweep's is."""
    config = toy_plans.small_sweep(root / "data")
    ladder = replace(config.ladder, sizes=1, budgets=1, smallest_tokens=2048, noise_seeds=())
    corpus = prepare_corpus(config.corpus, root / "data")
    return make_plan(replace(config, ladder=ladder), corpus)


def test_a_moved_root_uses_its_own_text_and_leaves_the_old_place_alone(tmp_path, monkeypatch):
    old, new = tmp_path / "old", tmp_path / "elsewhere" / "new"
    plan = one_run(old)
    Store(old).create(plan.runs[0].spec)
    new.parent.mkdir()
    old.rename(new)

    def never(*_, **__):
        raise AssertionError("the text was prepared anew")

    monkeypatch.setattr(measure, "prepare_corpus", never)
    assert run_sweep(plan, Store(new), InlineExecutor()).is_complete
    assert not old.exists()
    spec = plan.runs[0].spec
    assert measure.kept_under(spec, new).runtime.data_dir == new / "data"
    assert measure.kept_under(spec, tmp_path / "none").runtime.data_dir == tmp_path / "none/data"
    new.rename(old)
    assert measure.kept_under(spec, tmp_path / "none") == spec, "as planned while it lies there"


def test_a_record_names_the_commit_that_ran(tmp_path, monkeypatch):
    """Not the one that the checkout stands at when the run ends."""
    checkout = tmp_path / "checkout"
    (checkout / "sweeps").mkdir(parents=True)

    def git(*words: str) -> str:
        command = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def commit() -> str:
        git("commit", "--allow-empty", "-qm", "a change")
        return git("rev-parse", "HEAD")

    git("init", "-q")
    began = commit()
    monkeypatch.setattr(provenance, "__file__", str(checkout / "sweeps" / "provenance.py"))
    provenance.git_state.cache_clear()
    corpus_of = measure.planned_corpus

    def while_the_checkout_moves(spec):
        commit()
        return corpus_of(spec)

    monkeypatch.setattr(measure, "planned_corpus", while_the_checkout_moves)
    plan = one_run(tmp_path / "root")
    store = Store(tmp_path / "root")
    try:
        assert run_sweep(plan, store, InlineExecutor()).is_complete
    finally:
        provenance.git_state.cache_clear()
    record = store.record(plan.runs[0].run_id)
    assert record is not None
    assert record.provenance["git"]["commit"] == began != git("rev-parse", "HEAD")
