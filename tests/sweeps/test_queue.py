"""The driver's parts by themselves: who comes next, who is tried again, what the budget allows."""

import pytest

from sweeps.budget import Budget, Spending
from sweeps.queue import Queue
from sweeps.retries import BACKOFF_S, Retries


@pytest.fixture
def clock(monkeypatch):
    """Monotonic seconds that stand still until they are set."""
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def test_due_runs_come_out_in_the_plan_s_order_and_the_others_when_their_time_has_come(plan, clock):
    queue = Queue(plan.runs)
    first, second, third, fourth = plan.runs[:4]
    for run, wait_s in ((fourth, 0.0), (first, 5.0), (third, 0.0), (second, 1.0)):
        queue.put(run, wait_s)
    assert queue.due() == [third, fourth]
    assert queue.pop_due() is third
    clock[0] += 2.0
    assert queue.due() == [second, fourth]
    assert queue.pop_due() is fourth
    assert queue.pop_due() is second
    assert queue.pop_due() is None
    assert list(queue) == [first]
    clock[0] += 4.0
    assert queue.pop_due() is first
    assert not queue


def test_runs_taken_out_for_a_pack_do_not_come_again(plan):
    queue = Queue(plan.runs)
    for run in plan.runs:
        queue.put(run)
    queue.remove(plan.runs[1:3])
    assert queue.due() == [plan.runs[0], *plan.runs[3:]]


def test_pauses_grow_and_end_unless_the_run_gets_on():
    retries = Retries()
    assert [retries.next_pause_s("a") for _ in BACKOFF_S] == list(BACKOFF_S)
    assert retries.next_pause_s("a") is None
    assert retries.tried("b") == 0
    retries.reached("a", 3)
    assert retries.next_pause_s("a") == BACKOFF_S[0]
    retries.reached("a", 3)  # no further than before
    assert retries.next_pause_s("a") == BACKOFF_S[1]


def test_a_budget_counts_what_is_over_under_way_and_asked_for(plan, clock):
    first, second, third = plan.runs[:3]
    flops = sum(run.cost.own_flops for run in (first, second, third))
    spending = Spending(Budget(train_flops=flops))
    spending.add(first)
    assert spending.forbids(third, [second]) == ""
    spending = Spending(Budget(train_flops=0.999 * flops))
    spending.add(first)
    assert "training FLOPs is used up" in spending.forbids(third, [second])
    hours = (first.cost.wall_s + 10.0) / 3600
    spending = Spending(Budget(hours=hours))
    assert spending.forbids(first, []) == ""
    clock[0] += 10.1
    assert "hours is used up" in spending.forbids(first, [])
