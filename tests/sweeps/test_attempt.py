"""The claim, the fence and what is taken over, with real processes where it matters."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import toy_worker

from model.files import write_atomic
from model.training.distributed.job import RankLost
from sweeps import liveness
from sweeps.attempt import (
    Attempt,
    ClaimLost,
    Heartbeat,
    Outcome,
    Progress,
    attempt_dir,
    newest_attempt,
    read_claim,
    read_outcome,
)
from sweeps.files import content_hash, read_json, write_json
from sweeps.liveness import Owner, Watch, known_dead, this_process
from sweeps.provenance import git_state, provenance
from sweeps.store import Store
from sweeps.trouble import EXIT_DISK_FULL, EXIT_HELD, EXIT_OVER, EXIT_STOPPED
from sweeps.worker import run_worker, work

TOY = (sys.executable, toy_worker.__file__)


@pytest.fixture
def start_toy():
    started = []

    def start(run_dir: Path, after: int) -> subprocess.Popen[bytes]:
        command = [*TOY, str(run_dir), "--after", str(after)]
        started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for(condition, within_s=120.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.fixture
def run_dir(toy, plan) -> Path:
    return toy.store.create(plan.runs[0].spec)


def test_a_worker_started_by_hand_waits_for_the_first_signs_of_one_just_started(
    run_dir, monkeypatch
):
    """Claimed a moment ago, it has not beaten yet; two beats later it is known to be alive."""
    other = Attempt.claim(run_dir, after=0, now=time.time())
    beats = iter(range(1, 9))

    def a_moment_later(seconds):
        other.beat(Heartbeat(beat=next(beats), time=time.time(), phase="training"))

    monkeypatch.setattr("sweeps.worker.time.sleep", a_moment_later)
    assert run_worker(run_dir, after=None) == EXIT_HELD
    assert next(beats) == 3, "it was watched for no longer than it takes"
    assert newest_attempt(run_dir) == 1


def test_exactly_one_of_many_gets_an_attempt(run_dir):
    first = Attempt.claim(run_dir, after=0, now=0.0)
    for _ in range(3):
        with pytest.raises(ClaimLost, match="attempt 1 of"):
            Attempt.claim(run_dir, after=0, now=0.0)
    assert newest_attempt(run_dir) == 1
    assert not first.is_fenced()
    assert Attempt.claim(run_dir, after=1, now=0.0).number == 2
    assert first.is_fenced()
    assert [path.name for path in (run_dir / "attempts").iterdir() if path.name[0] == "."] == []


def test_a_taken_number_is_known_on_a_file_system_that_does_not_say_why(run_dir, monkeypatch):
    def not_permitted(source, target):
        raise PermissionError(errno.EPERM, "Operation not permitted", source, None, target)

    Attempt.claim(run_dir, after=0, now=0.0)
    monkeypatch.setattr("sweeps.attempt.os.rename", not_permitted)  # so does sshfs
    with pytest.raises(ClaimLost, match="attempt 1 of"):
        Attempt.claim(run_dir, after=0, now=0.0)
    with pytest.raises(PermissionError):
        Attempt.claim(run_dir, after=1, now=0.0)


def test_racing_processes_make_one_claim(run_dir, toy, start_toy):
    toy.set(steps=5, step_s=0.01)
    racers = [start_toy(run_dir, 0) for _ in range(3)]
    codes = sorted(racer.wait(timeout=120) for racer in racers)
    assert codes == [EXIT_OVER, EXIT_HELD, EXIT_HELD]
    assert newest_attempt(run_dir) == 1


def test_an_attempt_takes_over_metrics_by_copy_and_checkpoints_by_moving(run_dir):
    first = Attempt.claim(run_dir, after=0, now=0.0)
    (first.dir / "metrics.jsonl").write_text("one\n")
    (first.dir / "checkpoints").mkdir()
    (first.dir / "checkpoints" / "state").write_text("saved")
    # Killed before it took anything over, the second leaves no gap for the third.
    second = Attempt.claim(run_dir, after=1, now=0.0)
    os.rename(second.dir / "checkpoints", first.dir / "checkpoints")
    third = Attempt.claim(run_dir, after=2, now=0.0)
    assert (third.dir / "metrics.jsonl").read_text() == "one\n"
    assert (third.dir / "checkpoints" / "state").read_text() == "saved"
    assert not (first.dir / "checkpoints").exists()
    with open(first.dir / "metrics.jsonl", "a") as late:
        late.write("late\n")
    assert (third.dir / "metrics.jsonl").read_text() == "one\n"


def test_metrics_are_taken_over_whole_or_not_at_all(run_dir, monkeypatch):
    """Ended in the middle of copying them, an attempt leaves those before it to the next."""
    first = Attempt.claim(run_dir, after=0, now=0.0)
    (first.dir / "metrics.jsonl").write_text("one\n")
    put_in_place = os.replace

    def end_before(source, target):
        if target.name == "metrics.jsonl":
            raise KeyboardInterrupt
        put_in_place(source, target)

    monkeypatch.setattr(os, "replace", end_before)
    with pytest.raises(KeyboardInterrupt):
        Attempt.claim(run_dir, after=1, now=0.0)
    monkeypatch.undo()
    third = Attempt.claim(run_dir, after=2, now=0.0)
    assert (third.dir / "metrics.jsonl").read_text() == "one\n"


def test_nothing_is_taken_over_from_before_a_divergence(run_dir):
    first = Attempt.claim(run_dir, after=0, now=0.0)
    (first.dir / "checkpoints").mkdir()
    first.end(Outcome(status="diverged", ended=0.0))
    second = Attempt.claim(run_dir, after=1, now=0.0)
    third = Attempt.claim(run_dir, after=2, now=0.0)
    assert not (second.dir / "checkpoints").exists()
    assert not (third.dir / "checkpoints").exists()


def test_a_fenced_attempt_publishes_nothing(run_dir):
    first = Attempt.claim(run_dir, after=0, now=0.0)
    write_json(first.dir / "record.json", {"from": "first"})
    second = Attempt.claim(run_dir, after=1, now=0.0)
    with pytest.raises(ClaimLost, match="was taken over"):
        first.publish()
    assert not (run_dir / "record.json").exists()
    write_json(second.dir / "record.json", {"from": "second"})
    second.publish()
    assert read_json(run_dir / "record.json") == {"from": "second"}


def test_a_frozen_worker_that_wakes_up_after_its_lease_stops_and_harms_nothing(
    run_dir, toy, start_toy
):
    toy.set(steps=400, step_s=0.02)
    frozen = start_toy(run_dir, 0)
    first = attempt_dir(run_dir, 1)
    wait_for(lambda: (first / "checkpoints" / "state.json").exists())
    os.kill(frozen.pid, signal.SIGSTOP)
    saved = json.loads((first / "checkpoints" / "state.json").read_text())["step"]

    toy.set(steps=400)
    assert start_toy(run_dir, 1).wait(timeout=120) == EXIT_OVER
    rows = (run_dir / "metrics.jsonl").read_text()
    assert len(rows.splitlines()) == 400

    os.kill(frozen.pid, signal.SIGCONT)
    assert frozen.wait(timeout=120) == EXIT_HELD
    assert os.readlink(run_dir / "record.json") == "attempts/0002/record.json"
    assert (run_dir / "metrics.jsonl").read_text() == rows
    assert read_outcome(first) is None
    own = (first / "metrics.jsonl").read_text().splitlines()
    assert saved <= len(own) < 400, "it went on to the end instead of stopping"


def test_a_dead_owner_is_known_at_once_a_zombie_and_a_reused_id_too(run_dir):
    assert not known_dead(this_process())
    child = subprocess.Popen(["sleep", "60"])
    ours = this_process()
    start = liveness._start(child.pid)
    assert isinstance(start, int)
    owner = Owner(host=ours.host, pid=child.pid, machine=ours.machine, start_ticks=start)
    assert not known_dead(owner)
    # The same process id at another time is another process.
    assert known_dead(Owner(host=ours.host, pid=child.pid, machine=ours.machine, start_ticks=1))
    child.kill()
    wait_for(lambda: known_dead(owner))  # a zombie: nobody has waited for it yet
    child.wait()
    assert known_dead(owner)
    # Another machine, or one that does not tell, is never known to be dead.
    assert not known_dead(Owner(host="far", pid=1, machine="other boot", start_ticks=1))
    assert not known_dead(Owner(host="far", pid=1, machine=None, start_ticks=None))


@pytest.mark.usefixtures("on_a_mac")
def test_on_a_mac_ps_tells_a_dead_owner_from_a_live_one(monkeypatch):
    ours = this_process()
    assert ours.machine == "6C1E0C4B-7C7E-4A55-9A4C-1F0D6A3B9E21"
    assert time.time() - 7200 < ours.start_ticks <= time.time()
    assert not known_dead(ours)
    monkeypatch.setenv("TZ", "Asia/Shanghai")  # a laptop travels, and its language is changed
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert this_process() == ours
    assert known_dead(replace(ours, start_ticks=ours.start_ticks - 60))  # an id used again
    assert not known_dead(replace(ours, machine="another boot", start_ticks=1))

    child = subprocess.Popen([sys.executable, "-c", "pass"])
    owner = replace(ours, pid=child.pid)
    wait_for(lambda: known_dead(owner))  # a zombie: nobody has waited for it yet
    child.wait()
    assert known_dead(owner)
    monkeypatch.setattr("model.system.SYSTEM_FOLDERS", "/nowhere")
    monkeypatch.setenv("PATH", "/nowhere")
    assert not known_dead(owner), "without ps nothing is known"


def test_only_a_beat_that_stands_still_for_a_lease_is_stale():
    now = 0.0
    watch = Watch(lease_s=10.0, clock=lambda: now)
    here = Path("attempts/0001")
    for now in range(10):  # noqa: B007 (the clock reads it; at the first look nothing is known)
        assert not watch.is_stale(here, 1)
    now = 11.0
    assert not watch.is_stale(here, 2)
    for now in (12.0, 14.0, 16.0, 18.0, 20.0, 20.9):  # noqa: B007
        assert not watch.is_stale(here, 2)
    now = 21.0
    assert watch.is_stale(here, 2)
    assert not watch.is_stale(here, 3)  # it was only slow
    assert not watch.is_stale(Path("attempts/0002"), None)


def test_a_watcher_that_stood_still_itself_takes_nobody_for_dead():
    now = 0.0
    watch = Watch(lease_s=10.0, clock=lambda: now)
    here = Path("attempts/0001")
    watch.is_stale(here, 1)
    now = 3600.0  # Ctrl-Z and fg: the worker wakes up with it and has not beaten yet
    assert not watch.is_stale(here, 1)
    now = 3601.0
    assert not watch.is_stale(here, 2)
    for _ in range(4):
        assert not watch.is_stale(here, 2)
        now += 3.0
    assert watch.is_stale(here, 2), "one that stays silent while the watcher is awake"


def elsewhere(run_dir: Path, beat: int, seconds_since_1970: float) -> None:
    """Make the newest attempt look like one of another machine."""
    folder = attempt_dir(run_dir, newest_attempt(run_dir))
    claim = read_json(folder / "claim.json")
    claim["owner"] |= {"host": "far", "machine": "another boot"}
    write_json(folder / "claim.json", claim)
    Attempt(run_dir, newest_attempt(run_dir)).beat(
        Heartbeat(beat=beat, time=seconds_since_1970, phase="training")
    )


def test_a_clock_that_jumps_steals_no_live_run(run_dir, toy):
    Attempt.claim(run_dir, after=0, now=0.0)
    now = 0.0
    watch = Watch(lease_s=10.0, clock=lambda: now)
    for beat, clock in enumerate((1e9, 0.0, 4e9, 5.0)):  # the other machine's clock is mad
        elsewhere(run_dir, beat, clock)
        for _ in range(3):
            now += 3.0
            assert toy.store.state(run_dir.name, watch).status == "running"
    for _ in range(5):
        state = toy.store.state(run_dir.name, watch)
        now += 2.5
    assert state.status == "interrupted"
    assert "on far has given no sign of life for 10 s" in state.reason


def test_states_follow_from_the_folder(toy, plan):
    name = plan.runs[0].run_id
    store: Store = toy.store
    assert store.state(name).status == "planned"
    run_dir = store.create(plan.runs[0].spec)
    assert store.state(name).status == "planned"
    attempt = Attempt.claim(run_dir, after=0, now=time.time())
    assert store.state(name).status == "running"
    attempt.end(Outcome(status="failed", reason="why", ended=0.0))
    state = store.state(name)
    assert (state.status, state.reason, state.attempt) == ("failed", "why", 1)
    (attempt.dir / "outcome.json").write_text("{damaged")
    assert store.state(name).status == "interrupted"
    assert "not valid JSON" in store.state(name).reason


def test_a_worker_started_by_hand_finds_its_attempt(run_dir, toy):
    toy.set(steps=3)
    assert subprocess.run([*TOY, str(run_dir)], check=False).returncode == EXIT_OVER
    assert newest_attempt(run_dir) == 1
    # Again: the record is there, so the second attempt only says so.
    done = subprocess.run([*TOY, str(run_dir)], check=False, capture_output=True, text=True)
    assert done.returncode == EXIT_OVER
    assert os.readlink(run_dir / "record.json") == "attempts/0001/record.json"


def test_an_error_after_the_run_was_taken_over_is_not_the_runs(run_dir):
    """Its checkpoints were moved away under it, so it may meet that before it knows why."""

    def measure(spec, folder, report):
        Attempt.claim(run_dir, after=1, now=0.0)
        (folder / "checkpoints" / "state").write_text("saved")

    assert run_worker(run_dir, after=0, measure=measure) == EXIT_HELD
    assert read_outcome(attempt_dir(run_dir, 1)) is None


def test_a_run_that_lost_one_of_its_processes_is_gone_on_with(run_dir, toy):
    def measure(spec, folder, report):
        raise RankLost("rank 1 was killed by signal 9")

    assert run_worker(run_dir, after=0, measure=measure) == EXIT_STOPPED
    state = toy.store.state(run_dir.name)
    assert (state.status, state.reason) == ("interrupted", "rank 1 was killed by signal 9")


def test_a_worker_that_is_told_to_stop_says_that_its_run_can_go_on(run_dir, toy):
    stop = threading.Event()

    def measure(spec, folder, report):
        for step in (1, 2, 3):
            report(Progress(step=step, num_steps=10, tokens_per_s=1.0, loss=None))
            stop.set()

    assert run_worker(run_dir, after=0, measure=measure, stop=stop) == EXIT_STOPPED
    state = toy.store.state(run_dir.name)
    assert (state.status, state.reason) == ("interrupted", "stopped on request")


def test_a_worker_started_by_hand_leaves_a_live_run_alone(run_dir, toy, plan, start_toy):
    toy.set(hold={plan.runs[0].run_id: [5]})
    start_toy(run_dir, 0)
    wait_for(lambda: (attempt_dir(run_dir, 1) / "heartbeat.json").exists())
    by_hand = subprocess.run([*TOY, str(run_dir)], check=False, capture_output=True, text=True)
    assert by_hand.returncode == EXIT_HELD
    assert "is alive elsewhere" in by_hand.stdout


def test_an_edited_spec_is_refused(run_dir, toy):
    spec = read_json(run_dir / "spec.json")
    spec["train"]["seed"] = 99
    write_json(run_dir / "spec.json", spec)
    done = subprocess.run([*TOY, str(run_dir)], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"not {run_dir.name}; it was edited or moved; plan the sweep again" in done.stderr
    assert newest_attempt(run_dir) == 0


def test_a_record_that_is_not_the_specs_is_not_published(run_dir, toy):
    def measure(spec, attempt_dir, report):
        record = toy_worker.toy_record(spec, 1.0)
        object.__setattr__(record, "tokens", 5)
        return record

    assert run_worker(run_dir, after=0, measure=measure) == 1
    state = toy.store.state(run_dir.name)
    assert state.status == "failed"
    assert state.reason.startswith("record.tokens: a run that is said to be done has 5 tokens")
    assert not (run_dir / "record.json").exists()


def test_the_store_may_be_away_for_a_while(run_dir, toy, monkeypatch):
    refusals = [OSError(30, "Read-only file system")] * 2
    publish = Attempt.publish

    def refuse_first(self):
        if refusals:
            raise refusals.pop()
        publish(self)

    monkeypatch.setattr(Attempt, "publish", refuse_first)
    monkeypatch.setattr("sweeps.trouble.time.sleep", lambda seconds: None)
    measure = lambda spec, folder, report: toy_worker.toy_record(spec, 1.0)  # noqa: E731
    assert run_worker(run_dir, after=0, measure=measure) == EXIT_OVER
    assert refusals == []
    assert toy.store.state(run_dir.name).status == "done"


def test_claims_tell_who_and_when(run_dir):
    Attempt.claim(run_dir, after=0, now=12.5)
    claim = read_claim(attempt_dir(run_dir, 1))
    assert claim.started == 12.5
    assert claim.owner == this_process()


def test_a_record_tells_every_attempt_by_whom_and_when(run_dir):
    first = Attempt.claim(run_dir, after=0, now=100.0)
    first.end(Outcome(status="interrupted", reason="killed", ended=150.0))
    claim = read_json(first.dir / "claim.json")
    claim["owner"]["host"] = "elsewhere"
    write_json(first.dir / "claim.json", claim)
    Attempt.claim(run_dir, after=1, now=200.0)
    told = provenance(run_dir, attempt=2, threads=3)
    assert told["started"] == 100.0
    assert told["attempts"] == [
        {
            "number": 1,
            "host": "elsewhere",
            "started": 100.0,
            "ended": 150.0,
            "outcome": "interrupted: killed",
        },
        {
            "number": 2,
            "host": this_process().host,
            "started": 200.0,
            "ended": None,
            "outcome": None,
        },
    ]
    assert told["hardware"]["threads"] == 3


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("git"),
        subprocess.CalledProcessError(128, "git"),
        subprocess.TimeoutExpired("git", 10),
    ],
)
def test_without_a_checkout_or_git_a_record_has_no_commit(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("sweeps.provenance._git", fail)
    assert git_state.__wrapped__() is None


def test_a_worker_that_finds_the_disk_full_says_so_by_its_code(run_dir, monkeypatch):
    def fail(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Attempt, "claim", fail)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # this process keeps its own
    assert work(run_dir, 0) == EXIT_DISK_FULL


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "file.json"
    write_json(path, {"old": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert read_json(path) == {"old": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_content_hash_is_canonical():
    assert content_hash({"a": 1, "b": [1.0, 2]}, 12) == content_hash({"b": [1, 2], "a": 1.0}, 12)
    assert content_hash({"a": 1}, 12) != content_hash({"a": "1"}, 12)
    assert content_hash({"a": True}, 12) != content_hash({"a": 1}, 12)
