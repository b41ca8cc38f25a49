"""The speed a run tells is of the time it trained in."""

import pytest

from model.pauses import WorkingTime
from model.training.progress import Teller


def speeds(steps_s: list[float]) -> list[float]:
    """What is told of a run of 100 tokens a step, whose steps take so long."""
    told: list[float] = []
    teller = Teller(lambda step, of, speed: told.append(speed), len(steps_s), 100, 0, 0.0)
    now = 0.0
    for step, took_s in enumerate(steps_s, start=1):
        now += took_s
        teller.tell(step, now)
    return told


def test_a_pause_of_hours_leaves_the_speed_as_it_was() -> None:
    steady = speeds([0.25] * 12)
    assert steady == pytest.approx([400.0] * 3)
    # Stopped for two hours within the sixth step.
    paused = speeds([0.25] * 5 + [7200.25] + [0.25] * 6)
    assert paused == pytest.approx([400.0] * len(paused))


def test_a_run_that_has_become_slow_is_told_as_slow() -> None:
    """The first long step may be a pause; the second is not."""
    assert speeds([1.0, 1.0, 30.0, 30.0, 30.0])[2:] == pytest.approx([100.0, 100 / 30, 100 / 30])
    assert speeds([1.0, 1.0, 9.0]) == pytest.approx([100.0, 100.0, 100 / 9]), "too short for one"
    assert speeds([600.0, 600.0]) == pytest.approx([1 / 6, 1 / 6]), "nothing usual to go by"


def test_what_came_of_a_stretch_tells_a_pause_from_a_long_step() -> None:
    working = WorkingTime()
    assert working.of(900.0, done=900.0, pace=10.0) == 900.0  # a tenth of the pace
    assert working.of(900.0, done=890.0, pace=10.0) == pytest.approx(89.0)
