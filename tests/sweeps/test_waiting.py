"""When a driver says what its runs wait for, and that a sweep says it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from rich.console import Console

from sweeps import waiting
from sweeps.run import run_sweep
from sweeps.waiting import Waiting
from windtunnel.sweep_progress import SweepProgress


@dataclass
class Queue:
    """As much of an executor as is asked."""

    why: str = "no node is free"
    asked: int = 0
    time_s: float = field(default=0.0)

    def waits_for(self) -> str:
        self.asked += 1
        return self.why

    def clock(self) -> float:
        return self.time_s


def test_it_is_told_once_after_more_than_a_start_and_again_when_it_changes() -> None:
    queue = Queue()
    asks = Waiting(queue, queue.clock)  # type: ignore[arg-type]
    told = []
    for second in range(60):
        queue.time_s = float(second)
        if second == 40:
            queue.why = "another reason"
        if news := asks.news(lambda: True):
            told.append((second, news))
    assert told == [(15, "no node is free"), (40, "another reason")]
    assert queue.asked == 9, "not every time the driver looks at its workers"


def test_a_run_that_begins_ends_the_waiting() -> None:
    queue = Queue()
    asks = Waiting(queue, queue.clock)  # type: ignore[arg-type]
    for second in range(60):
        queue.time_s = float(second)
        assert not asks.news(lambda: second % 10 != 0)  # noqa: B023
    assert queue.asked == 0


def test_a_sweep_whose_cluster_is_full_says_so_on_the_screen(
    plan: Any, toy: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A worker that begins late, as it does in a queue; then it trains as ever."""
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    monkeypatch.setattr(waiting, "WAITED_S", 0.0)
    executor = toy.executor(slots=1)
    monkeypatch.setattr(executor, "waits_for", lambda: "a run takes 4 cores, 3 are free")
    one = replace(plan, runs=plan.runs[:1])
    events: list[Any] = []
    console = Console(width=100)
    with SweepProgress(console, one, toy.store) as progress:

        def show(event: Any) -> None:
            events.append(event)
            progress.show(event)

        result = run_sweep(one, toy.store, executor, show)
    assert result.is_complete
    kinds = [event.kind for event in events if event.kind != "progress"]
    assert kinds == ["started", "waiting", "finished"]
    assert "waiting   a run takes 4 cores, 3 are free" in capsys.readouterr().out
