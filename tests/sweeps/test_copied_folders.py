"""Roots that were copied: links followed, left out, or only a part of the files there yet."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeps.attempt import newest_attempt
from sweeps.run import run_sweep
from sweeps.status import sweep_status
from sweeps.store import Store


def followed(copy: Path) -> None:
    """``cp -rL``, ``aws s3 sync``, a zip archive: files and folders where there were links."""
    for link in [path for path in copy.rglob("*") if path.is_symlink()]:
        target = link.resolve()
        link.unlink()
        shutil.copytree(target, link) if target.is_dir() else shutil.copy(target, link)


def left_out(copy: Path) -> None:
    """``rsync -r`` skips links."""
    for link in [path for path in copy.rglob("*") if path.is_symlink()]:
        link.unlink()


def no_attempts(copy: Path) -> None:
    for folder in copy.glob("runs/*/attempts"):
        shutil.rmtree(folder)


def no_records(copy: Path) -> None:
    for path in copy.glob("runs/*/attempts/*/record.json"):
        path.unlink()


def followed_but_no_records(copy: Path) -> None:
    followed(copy)
    for path in copy.glob("runs/*/record.json"):
        path.unlink()


@pytest.mark.parametrize(
    ("harm", "done", "attempts"),
    [
        (followed, 3, 1),
        (left_out, 0, 2),
        (no_attempts, 0, 1),
        (no_records, 0, 2),
        (followed_but_no_records, 0, 2),
    ],
)
def test_a_copy_is_done_or_the_same_command_makes_it_so(
    plan, toy, tmp_path, harm: Callable[[Path], None], done: int, attempts: int
):
    """Never done without a record, which neither a sweep would measure nor a fit could read."""
    toy.set(steps=3)
    part = plan.__class__(name="part", runs=plan.runs[:3])
    assert run_sweep(part, toy.store, toy.executor()).is_complete
    names = [run.run_id for run in part.runs]
    losses = [toy.store.record(name).loss_nats for name in names]
    copy = Store(tmp_path / "copy")
    shutil.copytree(toy.store.runs_dir, copy.runs_dir, symlinks=True)
    shutil.copy(toy.store.root / "toy.json", copy.root)
    harm(copy.root)

    status = sweep_status(part, copy)
    assert status.counts["done"] == done
    assert sum(copy.record(name) is not None for name in names) == done
    assert run_sweep(part, copy, toy.executor()).is_complete
    assert [copy.record(name).loss_nats for name in names] == losses
    assert sweep_status(part, copy).is_complete
    assert {newest_attempt(copy.run_dir(name)) for name in names} == {attempts}


def test_what_was_measured_is_published_again_not_trained(plan, toy, tmp_path):
    """The attempt's own record stands, checkpoints or none. Training would fail."""
    toy.set(steps=3)
    part = plan.__class__(name="part", runs=plan.runs[:1])
    name = part.runs[0].run_id
    assert run_sweep(part, toy.store, toy.executor()).is_complete
    run_dir = toy.store.run_dir(name)
    before = (run_dir / "record.json").read_bytes()
    left_out(toy.store.root)
    shutil.rmtree(run_dir / "attempts" / "0001" / "checkpoints", ignore_errors=True)
    assert "its record was not copied" in toy.store.state(name).reason
    toy.set(steps=3, fail=[part.runs[0].spec.train.seed])
    assert run_sweep(part, toy.store, toy.executor()).is_complete
    assert (run_dir / "record.json").read_bytes() == before
