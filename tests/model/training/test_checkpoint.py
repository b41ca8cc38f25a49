"""Checkpoints: what comes back is what was saved, and damage is found, said and survived."""

import itertools
import json
import logging
import multiprocessing
import os
import signal

import pytest
import torch

from model.training.checkpoint import (
    BrokenCheckpoint,
    Checkpoint,
    by_step,
    checkpoint_paths,
    keep_checkpoint,
    load_newest,
    read_checkpoint,
    relabel,
    save_checkpoint,
    write_body,
)


def checkpoint(step):
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "w": torch.randn(5, 3, generator=generator),
        "half": torch.randn(4, generator=generator).bfloat16(),
        "load": torch.arange(6).view(2, 3),
        "rng": torch.get_rng_state(),
        "empty": torch.zeros(0, 4),
    }
    return Checkpoint(step, tensors, {"loss": 0.1 + step, "third": 1 / 3, "none": None, "id": "x"})


def assert_same(found, expected):
    assert found is not None
    assert (found.step, found.state) == (expected.step, expected.state)
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)


def test_round_trip_and_the_newest_two_are_kept(tmp_path):
    for step in (9, 10, 11, 100):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)

    assert [path.name for path in checkpoint_paths(tmp_path)] == ["step-00000100", "step-00000011"]
    assert_same(load_newest(tmp_path), checkpoint(100))
    assert load_newest(tmp_path / "nothing here") is None


HARMS = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "empty": lambda path: path.write_bytes(b""),
    "changed": lambda path: path.write_bytes(flip(path.read_bytes())),
    "gone": lambda path: path.unlink(),
}


def flip(content):
    where = len(content) // 2
    return content[:where] + bytes([content[where] ^ 4]) + content[where + 1 :]


@pytest.mark.parametrize("file", ["state.json", "tensors.safetensors"])
@pytest.mark.parametrize("harm", HARMS)
def test_a_broken_one_is_said_and_the_one_before_is_taken(tmp_path, caplog, file, harm):
    save_checkpoint(tmp_path, checkpoint(1), keep=2)
    newest = save_checkpoint(tmp_path, checkpoint(2), keep=2)
    HARMS[harm](newest / file)

    with pytest.raises(BrokenCheckpoint):
        read_checkpoint(newest)
    with caplog.at_level(logging.WARNING):
        assert_same(load_newest(tmp_path), checkpoint(1))
    assert "step-00000002 is unusable" in caplog.text
    # The run comes to step 2 again.
    save_checkpoint(tmp_path, checkpoint(2), keep=2)
    assert_same(load_newest(tmp_path), checkpoint(2))


def test_every_single_changed_byte_of_the_state_is_found(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(1), keep=1) / "state.json"
    content = path.read_bytes()
    body = json.loads(content)
    for where in range(len(content)):
        path.write_bytes(content[:where] + bytes([content[where] ^ 1]) + content[where + 1 :])
        try:
            read_checkpoint(path.parent)
        except BrokenCheckpoint:
            continue
        assert json.loads(path.read_bytes()) == body  # white space


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_save_that_fails_leaves_the_old_ones_alone(tmp_path, monkeypatch, moment):
    """As on a full disk, or a kill between any two steps of a save."""
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    victim = {"write": "fsync", "rename": "rename"}[moment]

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, victim, fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, checkpoint(2), keep=1)

    assert_same(load_newest(tmp_path), checkpoint(1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_what_a_kill_left_half_written_is_swept_away(tmp_path):
    save_checkpoint(tmp_path, checkpoint(1), keep=1)
    (tmp_path / ".tmp-dead").mkdir()
    (tmp_path / ".tmp-dead" / "tensors.safetensors").write_bytes(b"half")

    assert_same(load_newest(tmp_path), checkpoint(1))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_kill_at_any_moment_of_a_replacement_costs_no_step(tmp_path):
    """A run went back and comes to step 2 again: the old checkpoint of it or the new is left."""
    old, new = checkpoint(2), Checkpoint(2, checkpoint(20).tensors, {"loss": 0.5})
    found = []
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        for before in (checkpoint(1), old):
            save_checkpoint(folder, before, keep=2)
        process = multiprocessing.get_context("fork").Process(
            target=save_and_die, args=(folder, new, moment)
        )
        process.start()
        process.join()
        seen = by_step(folder)
        assert list(seen) == [1, 2], "one who only reads sees it, too"
        assert_same(read_checkpoint(seen[2]), load_newest(folder))
        newest = load_newest(folder)
        assert_same(newest, new if newest.state == new.state else old)
        assert [path.name for path in sorted(folder.iterdir())] == [
            "step-00000001",
            "step-00000002",
        ]
        found.append(newest.state == new.state)
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL

    assert found == sorted(found), "from one moment on it is the new one"
    assert len(found) > 10


def save_and_die(folder, contents, moment):
    """Save, killed before the file system call of that number."""
    calls = itertools.count()

    def or_die(call):
        def wrapped(*args, **kwargs):
            if next(calls) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapped

    for name in ("mkdir", "open", "fsync", "rename", "unlink", "rmdir"):
        setattr(os, name, or_die(getattr(os, name)))
    save_checkpoint(folder, contents, keep=2)


def test_a_replacement_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(2), keep=1)
    rename = os.rename

    def fail(source, target):
        if ".tmp-" in str(source):
            raise OSError(28, "No space left on device")
        rename(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", fail)
        with pytest.raises(OSError, match="No space left"):
            save_checkpoint(tmp_path, Checkpoint(2, {}, {"loss": 0.5}), keep=1)

    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    assert_same(load_newest(tmp_path), checkpoint(2))


def test_one_that_does_not_fit_is_passed_over_with_its_reason(tmp_path, caplog):
    for step in (1, 2):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)

    found = load_newest(tmp_path, lambda c: "too new" if c.step == 2 else "")

    assert_same(found, checkpoint(1))
    assert "unusable (too new)" in caplog.text


def test_one_that_is_kept_for_good_is_not_replaced(tmp_path):
    """Others may be reading it: a trunk's."""
    keep_checkpoint(tmp_path, checkpoint(2))
    keep_checkpoint(tmp_path, Checkpoint(2, {}, {"loss": 0.5}))
    assert_same(load_newest(tmp_path), checkpoint(2))
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_one_of_another_format_is_not_read(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(1), keep=1)
    body = json.loads((path / "state.json").read_text())
    del body["sha256"]
    (path / "state.json").unlink()
    write_body(path, {**body, "format": 2})
    with pytest.raises(BrokenCheckpoint, match="format 2, this program reads 1"):
        read_checkpoint(path)


def test_another_label_is_put_on_whole_or_not_at_all(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path, Checkpoint(1, {}, {"identity": "old"}), keep=1)

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space left"):
            relabel(path, "new")
    assert read_checkpoint(path).state == {"identity": "old"}
    relabel(path, "new")
    assert read_checkpoint(path).state == {"identity": "new"}
