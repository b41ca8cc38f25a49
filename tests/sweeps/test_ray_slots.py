"""What a Ray cluster serves at a time, and what its answers mean; Ray itself is played."""

from __future__ import annotations

import signal
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from model.errors import ConfigError
from sweeps.executors import RayConfig
from sweeps.executors.ray import RayExecutor, RayHandle
from sweeps.trouble import EXIT_STOPPED


class RayError(Exception):
    pass


class RayTaskError(RayError):
    pass


class TaskCancelledError(RayError):
    pass


class Cluster(SimpleNamespace):
    """As much of the module `ray` as the executor uses."""

    def __init__(self, **resources: float) -> None:
        errors = {e.__name__: e for e in (RayError, RayTaskError, TaskCancelledError)}
        super().__init__(
            resources=resources,
            exceptions=SimpleNamespace(**errors),
            started={},
            asked={},
            shut_down=0,
            cancelled=[],
            over={},
        )

    def init(self, **options: Any) -> None:
        self.started = options
        if options["address"] == "nowhere:1":
            raise ConnectionError("nobody answers")

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, **options: Any) -> Any:
        self.asked = options
        return lambda work: work

    def shutdown(self) -> None:
        self.shut_down += 1

    def wait(self, tasks: list[str], timeout: float) -> tuple[list[str], list[str]]:
        assert timeout == 0, "a look waits for nothing"
        over = [task for task in tasks if task in self.over]
        return over, [task for task in tasks if task not in over]

    def get(self, task: str) -> Any:
        if isinstance(self.over[task], Exception):
            raise self.over[task]
        return self.over[task]

    def cancel(self, task: str, force: bool = False) -> None:
        self.cancelled.append((task, force))
        if force:
            self.over[task] = RayError("its worker is gone")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

    def made(**resources: float) -> Cluster:
        found = Cluster(**resources)
        monkeypatch.setitem(sys.modules, "ray", found)
        return found

    return made


@pytest.mark.parametrize(
    ("resources", "config", "threads", "slots"),
    [
        ({"CPU": 7.0}, RayConfig(), 2, 3),
        ({"CPU": 8.0}, RayConfig(), 2, 4),
        ({"CPU": 8.0}, RayConfig(max_parallel=3), 2, 3),
        ({"CPU": 64.0, "GPU": 2.0}, RayConfig(gpus_per_run=0.25), 4, 8),
        ({"CPU": 8.0, "GPU": 4.0}, RayConfig(gpus_per_run=0.25), 4, 2),
        ({}, RayConfig(), 1, 1),
    ],
)
def test_as_many_runs_as_its_cores_and_gpus_serve(
    cluster: Any, resources: dict[str, float], config: RayConfig, threads: int, slots: int
) -> None:
    ray = cluster(**resources)
    executor = RayExecutor(config, threads=threads)
    assert executor.slots == slots
    assert ray.asked == {
        "num_cpus": threads,
        "num_gpus": config.gpus_per_run,
        "max_retries": 0,
    }
    assert (ray.started["address"], ray.started["include_dashboard"]) == ("local", False)
    assert ray.shut_down == 0
    executor.close()
    assert ray.shut_down == 1


@pytest.mark.parametrize(
    ("resources", "gpus_per_run", "said"),
    [
        ({"CPU": 3.0}, 0.0, "has 3 cores and 0 GPUs, a run takes 4 and 0"),
        ({"CPU": 8.0}, 0.5, "has 8 cores and 0 GPUs, a run takes 4 and 0.5"),
    ],
)
def test_a_cluster_too_small_for_one_run_is_refused_and_left(
    cluster: Any, resources: dict[str, float], gpus_per_run: float, said: str
) -> None:
    ray = cluster(**resources)
    with pytest.raises(ConfigError, match=said):
        RayExecutor(RayConfig(gpus_per_run=gpus_per_run), threads=4)
    assert ray.shut_down == 1


def test_a_cluster_that_does_not_answer_is_named(cluster: Any) -> None:
    cluster(CPU=8.0)
    with pytest.raises(ConfigError, match=r"executor\.address=nowhere:1: nobody answers"):
        RayExecutor(RayConfig(address="nowhere:1"))


def test_another_s_cluster_keeps_its_dashboard(cluster: Any) -> None:
    ray = cluster(CPU=8.0)
    RayExecutor(RayConfig(address="auto"))
    assert ray.started["address"] == "auto"
    assert "include_dashboard" not in ray.started


def test_what_became_of_a_task(cluster: Any) -> None:
    ray = cluster(CPU=1.0)
    handle = RayHandle(ray, "task")
    assert handle.poll() is None
    for became, code in (
        (0, 0),
        (3, 3),
        (TaskCancelledError("asked"), EXIT_STOPPED),
        (RayError("its node is gone"), -signal.SIGKILL),
    ):
        ray.over["task"] = became
        assert handle.poll() == code
    ray.over["task"] = RayTaskError("a mistake of ours")
    with pytest.raises(RayTaskError):
        handle.poll()


def test_a_task_is_cancelled_or_killed_but_not_once_it_is_over(cluster: Any) -> None:
    ray = cluster(CPU=1.0)
    RayHandle(ray, "first").cancel()
    assert ray.cancelled == [("first", False)]
    second = RayHandle(ray, "second")
    second.kill()
    assert ray.cancelled[1:] == [("second", True)]
    assert second.poll() == -signal.SIGKILL
    second.kill()
    assert len(ray.cancelled) == 2
