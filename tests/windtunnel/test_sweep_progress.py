"""A sweep's time left while it runs: by what was done now, not by what earlier attempts left."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sweeps.attempt import Progress, attempt_dir
from sweeps.events import Event
from sweeps.plan_file import read_plan
from sweeps.store import Store
from windtunnel import cli
from windtunnel.console import make_console
from windtunnel.sweep_progress import SweepProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_resumed_from_its_checkpoint_counts_from_there(
    finished: Any,
) -> None:
    """A run of 1,000 s, resumed at 600 s, goes on at half the planned speed: 10 s bring 5 s."""
    clock = Clock()
    first = finished.plan.runs[0]
    run = replace(first, cost=replace(first.cost, wall_s=1000.0))
    plan = replace(finished.plan, runs=(run,))
    progress = SweepProgress(
        make_console(io.StringIO()), plan, Store(finished.root), expected_s=400.0, clock=clock
    )

    def show(step: int, at_s: float) -> None:
        clock.now = at_s
        told = Progress(step=step, num_steps=1000, tokens_per_s=1.0, loss=None)
        progress.show(Event(kind="progress", run=run, attempt=2, progress=told))

    progress.show(Event(kind="started", run=run, attempt=2))
    show(600, 1.0)
    assert progress.seconds_left() == pytest.approx(400.0)
    for tens in range(1, 21):
        show(600 + 5 * tens, 1.0 + 10 * tens)
    # 100 s of work in 200 s, and the expectation counts as a tenth of what was left: 40 s in 40 s.
    assert progress.seconds_left() == pytest.approx(300 * (201 + 40) / (100 + 40), rel=1e-3)
    clock.now += 3600
    show(705, clock.now)
    assert progress.seconds_left() == pytest.approx(295 * 241 / 140, rel=2e-2)


def test_runs_whose_mirror_fails_are_trained_and_it_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real workers, whose event files are to lie below a file."""
    (tmp_path / "notes").write_text("not a folder")
    ladder = ["ladder.sizes=1", "ladder.budgets=2", "ladder.noise_seeds=[]"]
    mirror = ["tracker=tensorboard", f"tracker.dir={tmp_path}/notes"]
    words = ["sweep", "sweep=smoke", f"root={tmp_path}/tunnel", "executor.workers=1"]
    assert cli.main([*words, *ladder, *mirror]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 runs done" in screen
    assert screen.count("mirror r0") == 1
    assert "TensorBoard did not start ([Errno 20] Not a directory" in screen
    store = Store(tmp_path / "tunnel")
    for run in read_plan(store.plan_path("smoke")).runs:
        record = store.record(run.run_id)
        assert record is not None
        failed = record.provenance["mirror_failed"]
        assert failed.endswith("the run continues, metrics.jsonl has everything")
        assert failed in (store.run_dir(run.run_id) / "log.txt").read_text()


def test_a_run_that_had_saved_nothing_is_not_said_to_go_on_from_a_checkpoint(
    finished: Any, tmp_path: Path
) -> None:
    screen, run = io.StringIO(), finished.plan.runs[0]
    progress = SweepProgress(make_console(screen), finished.plan, Store(tmp_path))
    folder = attempt_dir(tmp_path / "runs" / run.run_id, 1)
    for saved, said in (("", "from its beginning"), ("step-00000010", "from its last checkpoint")):
        (folder / "checkpoints" / saved).mkdir(parents=True)
        progress.show(Event(kind="interrupted", run=run, attempt=1, reason="rank 1 was killed"))
        assert screen.getvalue().split("rank 1 was killed")[-1].split() == (
            f"; it is tried again {said}".split()
            if saved
            else f"; it is tried again {said}: it had saved none yet".split()
        )
