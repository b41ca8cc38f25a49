"""A launch: forecast registered before the first step, trained once, resumed, held to its word."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from rich.console import Console

from analysis.records import RunRecord
from analysis.results import Prediction
from model.errors import ConfigError, RunFailed
from model.training.config import RuntimeConfig
from sweeps.attempt import Progress
from sweeps.cost import RunCost
from sweeps.events import Event
from sweeps.plan import Plan, PlannedRun
from sweeps.spec import RunSpec
from sweeps.store import Store
from sweeps.worker import Report, run_worker
from windtunnel import cli
from windtunnel.alarm import AlarmConfig
from windtunnel.along import Waypoint
from windtunnel.commands import ledger as ledger_command
from windtunnel.commands.launch import InFlight
from windtunnel.gates import LaunchRefused
from windtunnel.launch import Launched, launch, planned
from windtunnel.ledger import ledger_of
from windtunnel.promotion import Promotion, Promotions, sealed
from windtunnel.sweep_progress import SweepProgress

Measure = Callable[[RunSpec, Path, Report], RunRecord]


class InProcess:
    """An executor whose worker runs here, measuring whatever the test wants."""

    slots = 1

    def __init__(self, measure: Measure) -> None:
        self.measure = measure
        self.submitted = 0

    def submit(self, run_dir: Path, after: int) -> Any:
        self.submitted += 1
        code = run_worker(run_dir, after=after, measure=self.measure)
        return Ended(code)

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class Ended:
    code: int

    def poll(self) -> int:
        return self.code

    def cancel(self) -> None:
        pass

    def kill(self) -> None:
        pass


@pytest.fixture(scope="module")
def made(known_sweep: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Promotion:
    """A promotion whose gates all passed, from a finished sweep that this module only reads."""
    root = tmp_path_factory.mktemp("made") / "tunnel"
    plan = known_sweep.make(root, "data.tokens=900000", "ladder.sizes=3", "ladder.budgets=3")
    known_sweep.finish_all(root, plan)
    known_sweep.fit(root, plan)
    promotion: Promotion = known_sweep.promote(root)
    passed = tuple(replace(gate, passed=True) for gate in promotion.gates)
    return sealed(replace(promotion, gates=passed), "passed")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "tunnel"


@pytest.fixture
def measure_at(known_sweep: ModuleType) -> Callable[..., Measure]:
    """A measurement that gives a loss, and looks at the ledger while it 'trains'."""

    def at(loss: float, watch: Callable[[], None] = lambda: None, **changes: Any) -> Measure:
        def measure(spec: RunSpec, attempt_dir: Path, report: Report) -> RunRecord:
            watch()
            report(Progress(step=1, num_steps=spec.train.num_steps, tokens_per_s=1.0, loss=5.0))
            record: RunRecord = known_sweep.measured(spec)
            return replace(record, loss_nats=loss, **changes)

        return measure

    return at


def fly(root: Path, promotion: Promotion, measure: Measure, **overrides: str) -> Launched:
    cost = RunCost(
        total_params=promotion.total_params,
        active_params=promotion.active_params,
        flops_per_token=promotion.flops_per_token,
        train_flops=promotion.train_flops,
        own_flops=promotion.train_flops,
        wall_s=1.0,
    )
    return launch(
        promotion,
        planned(
            promotion, cost, RuntimeConfig(threads=2, data_dir=promotion.spec.runtime.data_dir)
        ),
        store=Store(root),
        ledger=ledger_of(root),
        executor=InProcess(measure),
        overrides=overrides,
    )


def never(spec: RunSpec, attempt_dir: Path, report: Report) -> RunRecord:
    raise AssertionError("it was trained again")


def failing(promotion: Promotion, *names: str) -> Promotion:
    gates = tuple(replace(gate, passed=gate.name not in names) for gate in promotion.gates)
    return sealed(replace(promotion, gates=gates), "failing")


def test_the_forecast_stands_before_the_first_step(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    seen = []
    forecast = made.forecast
    flown = fly(
        root,
        made,
        measure_at(forecast.value, watch=lambda: seen.append(ledger_of(root).find(made.id))),
    )
    (during,) = seen
    assert during.verdict == "open"
    assert during.forecast.forecast == forecast
    assert not during.forecast.after_the_fact
    assert flown.entry.verdict == "inside"
    assert flown.entry.forecast == during.forecast
    assert not flown.was_over
    record = Store(root).record(made.run_id)
    assert record is not None
    assert record.role == "promoted"
    assert record == flown.record


@pytest.mark.parametrize(
    ("side", "verdict"),
    [("low", "inside"), ("high", "inside"), ("below", "OUTSIDE"), ("above", "OUTSIDE")],
)
def test_an_outside_result_is_shown_as_such(
    root: Path, made: Promotion, measure_at: Callable[..., Measure], side: str, verdict: str
) -> None:
    forecast = made.forecast
    loss = {
        "low": forecast.low,
        "high": forecast.high,
        "below": forecast.low - 1e-9,
        "above": forecast.high + 1e-9,
    }[side]
    assert fly(root, made, measure_at(loss)).entry.verdict == verdict


def test_a_second_launch_trains_nothing_and_doubles_nothing(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    first = fly(root, made, measure_at(made.forecast.value))
    rows = ledger_of(root).path.read_bytes()
    again = fly(root, made, never)
    assert again.was_over
    assert again.entry == first.entry
    assert again.record == first.record
    assert ledger_of(root).path.read_bytes() == rows


def test_failed_gates_refuse_before_anything_is_registered(root: Path, made: Promotion) -> None:
    bad = failing(made, "extrapolation", "noise_floor")
    with pytest.raises(LaunchRefused, match=r"- extrapolation: .*\n- noise_floor: "):
        fly(root, bad, never)
    with pytest.raises(LaunchRefused, match="by 1 of 9 gates\n- noise_floor"):
        fly(root, bad, never, extrapolation="a test")
    assert not ledger_of(root).path.exists()
    assert Store(root).state(bad.run_id).status == "planned"


def test_reasons_of_overrides_are_kept_and_serve_the_resumed_launch(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    bad = failing(made, "extrapolation")
    flown = fly(root, bad, measure_at(2.0), extrapolation="how far does it carry?")
    assert flown.entry.forecast.overrides == {"extrapolation": "how far does it carry?"}
    assert fly(root, bad, never).was_over
    with pytest.raises(ConfigError, match="a reason is needed"):
        fly(root, bad, never, extrapolation=" ")


def test_a_run_that_was_measured_before_makes_no_forecast(
    root: Path, made: Promotion, known_sweep: ModuleType
) -> None:
    """However good it looks: the number was there to be read when it was 'forecast'."""
    known_sweep.finish(root, made.spec, known_sweep.measured(made.spec))
    flown = fly(root, made, never)
    assert flown.entry.forecast.after_the_fact
    assert flown.entry.verdict.endswith("(after the fact)")
    assert not flown.entry.counts


def test_a_ledger_that_was_deleted_does_not_make_a_new_forecast(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    fly(root, made, measure_at(9.0))
    ledger_of(root).path.unlink()
    flown = fly(root, made, never)
    assert flown.entry.forecast.after_the_fact


def test_a_diverged_run_missed_its_forecast(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    reason = "loss is nan at step 7"
    flown = fly(root, made, measure_at(6.0, status="diverged", reason=reason))
    assert flown.entry.verdict == "DIVERGED"
    assert flown.entry.outcome is not None
    assert flown.entry.outcome.loss_nats is None
    assert flown.entry.outcome.reason == reason
    assert flown.entry.counts
    assert fly(root, made, never).entry.verdict == "DIVERGED"


def test_a_failed_run_leaves_the_entry_open_and_is_tried_again(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    def broken(spec: RunSpec, attempt_dir: Path, report: Report) -> RunRecord:
        raise ConfigError("the corpus is gone")

    with pytest.raises(RunFailed, match="the corpus is gone"):
        fly(root, made, broken)
    entry = ledger_of(root).find(made.id)
    assert entry is not None
    assert entry.verdict == "open"
    flown = fly(root, made, measure_at(made.forecast.value))
    assert flown.entry.verdict == "inside"
    assert not flown.entry.forecast.after_the_fact  # it was registered before the first attempt


def test_an_altered_ledger_row_stops_the_launch(root: Path, made: Promotion) -> None:
    def broken(spec: RunSpec, attempt_dir: Path, report: Report) -> RunRecord:
        raise ConfigError("the corpus is gone")

    with pytest.raises(RunFailed):
        fly(root, made, broken)
    path = ledger_of(root).path
    row = json.loads(path.read_text())
    row["forecast"]["high"] = 99.0
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=r"line 1: altered.*put the line back"):
        fly(root, made, never)


def test_the_ledger_command_shows_hits_misses_and_damage(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    def show() -> tuple[int, str]:
        screen = io.StringIO()
        code = ledger_command.run(ledger_command.Config(root=root), Console(file=screen, width=200))
        return code, " ".join(screen.getvalue().split())  # folded by the length of a path

    assert show()[0] == 0
    assert "no forecast yet" in show()[1]
    other = failing(made, "repetitions")
    fly(root, made, measure_at(9.0))
    Promotions(root).save(made)
    fly(root, other, never, repetitions="the same run again")
    code, text = show()
    assert code == 0
    assert "OUTSIDE" in text
    assert "(after the fact)" in text
    assert "0 of 1 measured losses inside the interval" in text
    assert "gate repetitions was overridden: the same run again" in text

    ledger = ledger_of(root)
    ledger.path.write_text(ledger.path.read_text().replace(f"{made.forecast.low}", "0.5", 1))
    code, text = show()
    assert code == 2
    assert "ALTERED" in text
    assert "line 1: altered" in text


def test_a_promotion_that_differs_from_its_row_is_reported(
    root: Path, made: Promotion, measure_at: Callable[..., Measure]
) -> None:
    fly(root, made, measure_at(made.forecast.value))
    path = Promotions(root).path(made.id)
    Promotions(root).save(made)
    path.write_text(path.read_text().replace(f"low: {made.forecast.low}", "low: 0.5", 1))
    screen = io.StringIO()
    config = ledger_command.Config(root=root)
    assert ledger_command.run(config, Console(file=screen, width=300)) == 2
    assert "altered after it was made" in " ".join(screen.getvalue().split())


def test_each_evaluation_is_held_against_its_band_once(root: Path, made: Promotion) -> None:
    def band(step: int, middle: float) -> Waypoint:
        forecast = Prediction(
            value=middle, low=middle - 0.1, high=middle + 0.1, extrapolation_ratio=6.0
        )
        return Waypoint(step=step, forecast=forecast)

    promotion = replace(made, waypoints=(band(10, 3.0), band(20, 2.5)))
    store = Store(root)
    folder = store.create(made.spec) / "attempts" / "0001"
    folder.mkdir(parents=True)
    cost = RunCost(
        total_params=1,
        active_params=1,
        flops_per_token=1.0,
        train_flops=1.0,
        own_flops=1.0,
        wall_s=1.0,
    )
    run = PlannedRun(run_id=made.run_id, spec=made.spec, cost=cost)
    screen = io.StringIO()
    console = Console(file=screen, width=100)
    with SweepProgress(console, Plan(name="x", runs=(run,)), store) as progress:
        flight = InFlight(promotion, store, progress, AlarmConfig(false_alarms=0.01, stop=False))
        for step, loss in ((10, 3.05), (20, 2.7)):
            with (folder / "metrics.jsonl").open("a") as metrics:
                metrics.write(json.dumps({"kind": "eval", "step": step, "loss_nats": loss}) + "\n")
            for _ in range(2):
                flight.show(Event(kind="started", run=run, attempt=1))
    lines = [line for line in screen.getvalue().splitlines() if line.startswith("in flight")]
    assert lines == [
        "in flight, step 10: measured 3.0500 nats, inside 2.9000 to 3.1000",
        "in flight, step 20: measured 2.7000 nats, OUTSIDE, above 2.4000 to 2.6000",
    ]


# --- the command, with real training


SAVED_OFTEN = "checkpoint.every_s=0"
"""After every step: who waits for the first has nearly the whole run left to strike in."""


@pytest.fixture(scope="module")
def small_root(known_sweep: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sweep whose records are invented, promoted; its launch trains for some seconds."""
    root = tmp_path_factory.mktemp("small") / "tunnel"
    known_sweep.promote_small(root, SAVED_OFTEN)
    return root


@pytest.fixture
def passed(known_sweep: ModuleType, small_root: Path) -> list[str]:
    """The gates that its records fail, overridden."""
    overrides: list[str] = known_sweep.overrides(small_root)
    return overrides


def test_a_dry_run_shows_the_flight_plan_and_touches_nothing(
    small_root: Path, passed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["launch", f"root={small_root}", "dry_run=true", *passed]
    assert cli.main(words) == 0
    text = capsys.readouterr().out
    for part in ("parameters", "tokens", "FLOPs", "peak LR", "Forecast:", "90% interval", "Gates"):
        assert part in text
    for part in ("Estimated time", "memory", "times the compute of the largest run"):
        assert part in text
    assert not ledger_of(small_root).path.exists()


def test_the_command_says_one_line_for_each_mistake(
    small_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = [
        (["promotion=nope"], 2, "no 'nope'"),
        (["override.width=x"], 2, "override.width"),
        (["override.extrapolation="], 2, "a reason is needed"),
        (["threads=0"], 2, "threads must be positive"),
    ]
    for words, code, message in cases:
        assert cli.main(["launch", f"root={small_root}", *words]) == code
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_launch_over_two_processes_survives_the_kill_of_one(
    known_sweep: ModuleType, tmp_path: Path
) -> None:
    """By the plan for two GPUs; the driver names the killed rank and goes on from the last save."""
    root = tmp_path / "tunnel"
    promotion = known_sweep.promote_small(root, SAVED_OFTEN, promoted=("gpus=2",))
    assert promotion.machine.parallel.world_size == 2
    words = ["launch", f"root={root}", *known_sweep.overrides(root)]
    command = [sys.executable, "-m", "windtunnel.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    attempt = root / "runs" / promotion.run_id / "attempts" / "0001"
    deadline = time.monotonic() + 600
    while not any(attempt.glob("checkpoints/step-*")):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint in ten minutes"
        time.sleep(0.05)
    os.kill(int((attempt / "rank-1.pid").read_text()), signal.SIGKILL)
    said, _ = process.communicate(timeout=800)
    assert process.returncode == 0
    said = " ".join(said.split())
    assert "rank 1 of 2 (process" in said
    assert "was killed by SIGKILL" in said
    record = Store(root).record(promotion.run_id)
    assert record is not None
    assert record.provenance["numerics"]["parallel"]["shard"] == promotion.machine.parallel.shard
    assert len(record.provenance["attempts"]) == 2
    entry = ledger_of(root).find(promotion.id)
    assert entry is not None
    assert entry.counts


def test_more_processes_than_the_machine_holds_are_refused(
    small_root: Path, passed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("processes=fixed", "processes.sizes.shard=4096")
    words = ["launch", f"root={small_root}", *sizes, *passed]
    assert cli.main([*words, "device=cpu"]) == 2
    error = capsys.readouterr().err
    assert "4096 processes are more than this machine's" in error
    assert "executor=slurm" in error
    assert not ledger_of(small_root).path.exists(), "nothing is registered"


@pytest.mark.slow
def test_a_killed_launch_goes_on_and_ends_with_the_same_bits(
    small_root: Path, passed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL of the whole launch while it trains; the same command finishes it, bit for bit."""
    promotion = Promotions(small_root).find("latest")
    words = ["launch", f"root={small_root}", "threads=1", *passed]
    command = [sys.executable, "-m", "windtunnel.cli", *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    checkpoints = small_root / "runs" / promotion.run_id / "attempts" / "0001" / "checkpoints"
    deadline = time.monotonic() + 600
    while not (checkpoints.is_dir() and any(checkpoints.iterdir())):
        assert process.poll() is None, "it ended before its first checkpoint"
        assert time.monotonic() < deadline, "no checkpoint in ten minutes"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    entry = ledger_of(small_root).find(promotion.id)
    assert entry is not None
    assert entry.verdict == "open"

    assert cli.main(words) == 0
    text = capsys.readouterr().out
    assert "forecast" in text
    record = Store(small_root).record(promotion.run_id)
    assert record is not None
    assert len(record.provenance["attempts"]) >= 2
    entry = ledger_of(small_root).find(promotion.id)
    assert entry is not None
    assert entry.outcome is not None
    assert entry.outcome.loss_nats == record.loss_nats
    assert entry.verdict == (
        "inside" if promotion.forecast.contains(record.loss_nats) else "OUTSIDE"
    )
    assert len(ledger_of(small_root).lines()) == 2

    undisturbed = tmp_path / "undisturbed"
    Promotions(undisturbed).save(promotion)
    assert cli.main([*words, f"root={undisturbed}"]) == 0
    whole = Store(undisturbed).record(promotion.run_id)
    assert whole is not None
    assert whole.loss_nats == record.loss_nats
    assert whole.load_by_layer == record.load_by_layer

    capsys.readouterr()
    assert cli.main(words) == 0
    assert "Nothing was trained" in capsys.readouterr().out
