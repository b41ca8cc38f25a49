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

    def __init__(self, *has: dict[str, float]) -> None:
        errors = {e.__name__: e for e in (RayError, RayTaskError, TaskCancelledError)}
        super().__init__(
            has=has,
            free={},
            exceptions=SimpleNamespace(**errors),
            started={},
            unknown={},
            asked={},
            shut_down=0,
            cancelled=[],
            over={},
        )

    def init(self, **options: Any) -> None:
        self.started = options
        if error := self.unknown.get(options["address"]):
            raise error

    def nodes(self) -> list[dict[str, Any]]:
        gone = {"Alive": False, "Resources": {"CPU": 512.0, "GPU": 64.0}}
        return [*({"Alive": True, "Resources": node} for node in self.has), gone]

    def available_resources(self) -> dict[str, float]:
        return self.free

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

    def made(*has: dict[str, float]) -> Cluster:
        found = Cluster(*has)
        monkeypatch.setitem(sys.modules, "ray", found)
        return found

    return made


@pytest.mark.parametrize(
    ("has", "config", "threads", "slots"),
    [
        ([{"CPU": 7.0}], RayConfig(), 2, 3),
        ([{"CPU": 8.0}], RayConfig(), 2, 4),
        ([{"CPU": 8.0}], RayConfig(max_parallel=3), 2, 3),
        ([{"CPU": 8.0}], RayConfig(max_parallel=99), 2, 99),
        ([{"CPU": 64.0, "GPU": 2.0}], RayConfig(gpus_per_run=0.25), 4, 8),
        ([{"CPU": 8.0, "GPU": 4.0}], RayConfig(gpus_per_run=0.25), 4, 2),
        ([{"CPU": 3.0}, {"CPU": 5.0}, {}], RayConfig(), 2, 3),  # a run lies on one node
    ],
)
def test_as_many_runs_as_its_cores_and_gpus_serve(
    cluster: Any, has: list[dict[str, float]], config: RayConfig, threads: int, slots: int
) -> None:
    ray = cluster(*has)
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
    ("has", "config", "said"),
    [
        (
            [{"CPU": 3.0}, {"CPU": 3.0}, {"CPU": 1.0}],
            RayConfig(),
            r"a run takes 4 cores and 0 GPUs, .*: 2 nodes of 3 cores and 0 GPUs, 1 node of 1 core ",
        ),
        (
            [{"CPU": 8.0}, {"CPU": 2.0, "GPU": 1.0}],
            RayConfig(gpus_per_run=0.5, max_parallel=2),
            r"4 cores and 0\.5 GPUs, .*: 1 node of 8 cores and 0 GPUs, 1 node of 2 cores and 1 GPU",
        ),
        ([{}], RayConfig(max_parallel=2), "takes 4 cores and 0 GPUs, .*: 1 node of 0 cores"),
    ],
)
def test_a_cluster_too_small_for_one_run_is_refused_and_left(
    cluster: Any, has: list[dict[str, float]], config: RayConfig, said: str
) -> None:
    """However many runs at a time were asked for: they would wait for ever."""
    ray = cluster(*has)
    with pytest.raises(ConfigError, match=said):
        RayExecutor(config, threads=4)
    assert ray.shut_down == 1


def test_what_runs_of_a_full_cluster_wait_for(cluster: Any) -> None:
    ray = cluster({"CPU": 4.0}, {"CPU": 2.0})
    executor = RayExecutor(RayConfig(), threads=4)
    ray.free = {"CPU": 3.0}
    assert executor.waits_for().startswith(
        "a run takes 4 cores and 0 GPUs, and the Ray cluster has 3 cores and 0 GPUs free: 1 node "
        "of 4 cores and 0 GPUs, 1 node of 2 cores and 0 GPUs. It begins when"
    )
    ray.free = {"CPU": 4.0}
    assert not executor.waits_for(), "it is only starting"
    ray.has = ({"CPU": 2.0},)
    assert "no node that the Ray cluster still has is that large" in executor.waits_for()


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("ray://nowhere:1", r"executor\.address=ray://nowhere:1: nobody answers; `ray start"),
        ("auto", "executor.address=auto: no Ray runs on this machine; `ray start --head`"),
        ("head", "executor.address=head: no such form; "),
        ("127.0.0.1:9", "executor.address=127.0.0.1:9: .*Connection refused; "),
    ],
)
def test_a_cluster_that_does_not_answer_is_named(cluster: Any, address: str, said: str) -> None:
    """Before Ray is asked, where an address has a host and a port: it would try for minutes."""
    ray = cluster({"CPU": 8.0})
    ray.unknown = {
        "ray://nowhere:1": ConnectionError("nobody answers"),
        "auto": ConnectionError("Please specify the one to connect to by setting `--address`"),
        "head": ValueError("no such form"),
    }
    with pytest.raises(ConfigError, match=said):
        RayExecutor(RayConfig(address=address))
    assert ("127" in address) != bool(ray.started)


def test_another_s_cluster_keeps_its_dashboard(cluster: Any) -> None:
    ray = cluster({"CPU": 8.0})
    RayExecutor(RayConfig(address="auto"))
    assert ray.started["address"] == "auto"
    assert "include_dashboard" not in ray.started


def test_what_became_of_a_task(cluster: Any) -> None:
    ray = cluster({"CPU": 1.0})
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
    ray = cluster({"CPU": 1.0})
    RayHandle(ray, "first").cancel()
    assert ray.cancelled == [("first", False)]
    second = RayHandle(ray, "second")
    second.kill()
    assert ray.cancelled[1:] == [("second", True)]
    assert second.poll() == -signal.SIGKILL
    second.kill()
    assert len(ray.cancelled) == 2
