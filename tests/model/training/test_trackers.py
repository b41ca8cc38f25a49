"""The metrics file: whole lines only; and a mirror that may break without being noticed."""

import json
import resource
import subprocess
import sys
import types

import pytest

from model.training.config import JsonlTracker, WandbTracker
from model.training.mirrors import NoMirror, flat, mirror_failure
from model.training.trackers import MetricsFile, open_mirror
from model.training.wandb_mirror import WandbMirror


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_lines_are_appended_and_cut_back_to_an_offset(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write({"step": 1, "loss": 0.1})
    offset = file.synced_offset()
    file.write({"step": 2, "loss": 1 / 3})
    file.close()
    with path.open("ab") as torn:
        torn.write(b'{"step": 3, "lo')  # a kill in the middle of a line

    again = MetricsFile(path, offset)
    again.write({"step": 2, "loss": 1 / 3})
    again.close()

    assert lines(path) == [{"step": 1, "loss": 0.1}, {"step": 2, "loss": 1 / 3}]


def test_each_line_is_there_as_soon_as_it_is_written(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    for step in range(3):
        file.write({"step": step})
        assert len(lines(tmp_path / "metrics.jsonl")) == step + 1
    file.close()


def test_a_line_that_finds_no_room_leaves_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path, 0)
    file.write({"step": 1})
    _, most = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, most))
    try:
        with pytest.raises(OSError, match="File too large"):  # after five bytes of it
            file.write({"step": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert lines(path) == [{"step": 1}]
    file.write({"step": 3})
    file.close()
    assert lines(path) == [{"step": 1}, {"step": 3}]


def test_a_number_that_is_none_is_refused(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl", 0)
    with pytest.raises(ValueError, match="not JSON compliant"):
        file.write({"loss": float("nan")})
    file.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_flat_names_layers_and_domains():
    line = {
        "kind": "train",
        "step": 3,
        "lr": 0.1,
        "layers": (1, 2),
        "max_vio": [0.5, 0.25],
        "by_domain": {"code": {"loss_nats": 2.0}},
    }
    assert flat(line) == {
        "lr": 0.1,
        "max_vio/layer1": 0.5,
        "max_vio/layer2": 0.25,
        "by_domain/code/loss_nats": 2.0,
    }


class FakeRun:
    def __init__(self, fails_at=()):
        self.fails_at, self.logged, self.summary, self.is_finished = fails_at, [], self, False

    def define_metric(self, name, **_):
        pass

    def log(self, values, step):
        if "log" in self.fails_at:
            raise RuntimeError("no connection")
        self.logged.append((step, values))

    def update(self, values):
        self.logged.append(values)

    def finish(self):
        self.is_finished = True
        if "finish" in self.fails_at:
            raise OSError("gone")


def install(monkeypatch, init):
    fake = types.ModuleType("wandb")
    fake.init = init
    fake.Settings = dict
    monkeypatch.setitem(sys.modules, "wandb", fake)


def test_a_resumed_run_goes_on_under_its_id(tmp_path, monkeypatch):
    calls = []
    run = FakeRun()
    install(monkeypatch, lambda **arguments: calls.append(arguments) or run)

    first = open_mirror(WandbTracker(), tmp_path, "", {})
    first.log({"kind": "train", "step": 1, "tokens": 8, "lr": 0.5})
    first.summary({"loss_nats": 2.0})
    first.close()
    second = open_mirror(WandbTracker(), tmp_path, first.id, {}, "w64l3-s0")

    assert [c["name"] for c in calls] == [tmp_path.name, "w64l3-s0"]
    assert first.id == second.id != ""
    assert [c["id"] for c in calls] == [first.id] * 2
    assert {c["resume"] for c in calls} == {"allow"}
    assert {c["mode"] for c in calls} == {"offline"}
    assert run.logged == [(1, {"tokens": 8, "train/lr": 0.5}), {"loss_nats": 2.0}]
    assert run.is_finished


def test_no_failure_of_the_mirror_reaches_the_run(tmp_path, monkeypatch, caplog):
    def refuse(**_):
        raise ConnectionError("no network")

    install(monkeypatch, refuse)
    mirror = WandbMirror(WandbTracker(), tmp_path, "id", {})
    mirror.log({"step": 1})
    mirror.summary({})
    mirror.close()
    assert "W&B did not start (no network); the run continues" in caplog.text
    assert mirror_failure(tmp_path) in caplog.text

    run = FakeRun(fails_at=("log",))
    install(monkeypatch, lambda **_: run)
    mirror = WandbMirror(WandbTracker(), tmp_path, "id", {})
    caplog.clear()
    for step in range(3):
        mirror.log({"step": step})
    mirror.close()
    assert caplog.text.count("W&B") == 1

    run = FakeRun(fails_at=("finish",))
    install(monkeypatch, lambda **_: run)
    WandbMirror(WandbTracker(), tmp_path, "id", {}).close()
    assert "does not finish (gone)" in caplog.text


def test_a_failure_is_noted_with_what_to_do_until_an_attempt_is_mirrored(tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("while retrying:\nconnection refused")

    install(monkeypatch, refuse)
    WandbMirror(WandbTracker(mode="online"), tmp_path, "id", {})
    assert mirror_failure(tmp_path) == (
        "W&B did not start (while retrying: connection refused); the run continues, metrics.jsonl "
        "has everything. Without tracker.mode=online W&B's lines of the runs to come are kept on "
        "disk, to be uploaded later"
    )
    install(monkeypatch, lambda **_: FakeRun())
    WandbMirror(WandbTracker(mode="online"), tmp_path, "id", {}).close()
    assert mirror_failure(tmp_path) == ""


def test_a_machine_without_wandb_trains_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)

    WandbMirror(WandbTracker(), tmp_path, "id", {}).log({"step": 1})

    assert "W&B did not start" in caplog.text


OFFLINE = """
import sys
from pathlib import Path
from model.training.config import WandbTracker
from model.training.trackers import open_mirror

folder, run_id, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
tracker = WandbTracker(entity="us", group="ladder", job_type="noise", tags=("r0",), dir=folder)
settings = {"train": {"tokens": 64, "lr": 0.5}, "size": {"flops_per_token": 100.0}}
mirror = open_mirror(tracker, folder / "attempt", run_id, settings, "w16-s1")
for one in (step, step + 1):
    mirror.log({"kind": "train", "step": one, "tokens": 8 * one, "layers": [2], "max_vio": [0.25]})
mirror.log({"kind": "eval", "step": step + 1, "tokens": 8 * (step + 1), "loss_nats": 2.5})
mirror.summary({"loss_nats": 2.0})
mirror.close()
print(mirror.id)
"""


@pytest.mark.slow
def test_the_real_one_offline_without_a_word(tmp_path, wandb_files):
    """Two attempts of one run, as two processes: one W&B run, nothing on the screen."""
    run_id = ""
    for step in (1, 3):
        command = [sys.executable, "-W", "error", "-c", OFFLINE, str(tmp_path), run_id, str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        assert run_id in ("", done.stdout.strip())
        run_id = done.stdout.strip()

    attempts = [wandb_files.read(f) for f in sorted((tmp_path / "wandb").glob("offline-run-*"))]
    assert len(attempts) == 2
    for kept in attempts:
        assert kept.run.run_id == run_id
        assert (kept.run.project, kept.run.entity) == ("windtunnel", "us")
        assert (kept.run.run_group, kept.run.job_type) == ("ladder", "noise")
        assert (kept.run.display_name, list(kept.run.tags)) == ("w16-s1", ["r0"])
        assert kept.config["train"] == {"tokens": 64, "lr": 0.5}
        assert kept.metrics == ["tokens", "*"]
        assert kept.summary["loss_nats"] == 2.0
        assert kept.exit_code == 0
    rows = [row for kept in attempts for row in kept.history]
    assert [row["_step"] for row in rows] == [1, 2, 3, 4]
    assert [row["train_flops"] for row in rows] == [800, 1600, 2400, 3200]
    assert {row["train/max_vio/layer2"] for row in rows} == {0.25}
    assert rows[-1]["eval/loss_nats"] == 2.5


def test_without_a_mirror_nobody_is_told(tmp_path):
    mirror = open_mirror(JsonlTracker(), tmp_path, "", {})
    assert isinstance(mirror, NoMirror)
    mirror.log({"step": 1})
    mirror.summary({})
    mirror.close()
