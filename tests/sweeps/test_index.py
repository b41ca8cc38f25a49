"""The index says what the folders say, whatever happens to it."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from sweeps.attempt import Attempt, Outcome
from sweeps.index import VERSION, OutcomeIndex
from sweeps.status import sweep_status
from sweeps.store import RunState, Store

ENDINGS = ("failed", "diverged", "interrupted", "done", "failed", None)
REASON = "because \N{SNOWMAN} \udcff"
"""With a byte of a file name that is no UTF-8, as a worker may print it."""


def end(store, run, status, after=0, reason=REASON):
    attempt = Attempt.claim(store.create(run.spec), after=after, now=time.time())
    if status == "done":
        (attempt.dir / "record.json").touch()
        attempt.publish()
    if status is not None:
        attempt.end(Outcome(status=status, reason=reason, ended=time.time()))


@pytest.fixture
def store(plan, tmp_path):
    """A run for every way to end, and one that runs."""
    store = Store(tmp_path)
    for run, status in zip(plan.runs, ENDINGS, strict=True):
        end(store, run, status)
    return store


@pytest.fixture
def reads(monkeypatch):
    """The folders whose outcome was read past the index."""
    read: list[str] = []
    genuine = OutcomeIndex.outcome.__globals__["read_outcome"]

    def spy(folder):
        read.append(folder)
        return genuine(folder)

    monkeypatch.setattr("sweeps.index.read_outcome", spy)
    return read


def shown(plan, store) -> list[RunState]:
    """Through the index; always the same as straight from the folders."""
    states = [report.state for report in sweep_status(plan, store).runs]
    assert states == [store.state(run.run_id) for run in plan.runs]
    return states


def test_an_outcome_is_read_once(plan, store, reads):
    first = shown(plan, store)
    assert [state.status for state in first] == [ending or "running" for ending in ENDINGS]
    assert len(reads) == 4  # neither the one that is done nor the one that runs
    assert shown(plan, store) == first
    assert len(reads) == 4


def test_what_changes_is_seen_at_once(plan, store, reads):
    shown(plan, store)
    failed, diverged, interrupted, done, other, _running = plan.runs
    reads.clear()
    end(store, failed, "failed", after=1, reason="again")  # retried, another reason
    end(store, diverged, None, after=1)  # retried, and running
    end(store, interrupted, "done", after=1)
    store.redo(done.run_id)
    outcome = store.run_dir(other.run_id) / "attempts" / "0001" / "outcome.json"
    before = outcome.stat()
    outcome.write_text(outcome.read_text().replace("because", "BECAUSE"))  # by hand, same length
    os.utime(outcome, ns=(before.st_atime_ns, before.st_mtime_ns))  # and by a copy that keeps times
    after = shown(plan, store)
    assert [state.status for state in after] == [
        "failed",
        "running",
        "done",
        "planned",
        "failed",
        "running",
    ]
    assert after[0].reason == "again"
    assert after[4].reason.startswith("BECAUSE")
    assert len(reads) == 2
    assert shown(plan, store) == after
    assert len(reads) == 2, "what is new takes the old one's place"


def test_a_run_that_ends_is_seen_at_once(plan, store):
    shown(plan, store)
    running = plan.runs[-1]
    Attempt(store.run_dir(running.run_id), 1).end(Outcome(status="failed", ended=time.time()))
    assert shown(plan, store)[-1].status == "failed"


def test_folders_made_anew_are_read_anew(plan, store):
    """Deleted by hand and trained again: same names, same size, perhaps the same inodes."""
    shown(plan, store)
    shutil.rmtree(store.runs_dir)
    for run, status in zip(plan.runs, ENDINGS, strict=True):
        end(store, run, status, reason=REASON.swapcase())
    assert {state.reason for state in shown(plan, store)} == {REASON.swapcase(), ""}


@pytest.mark.parametrize("garbage", [b"", b"not a database, " * 999, b"SQLite format 3\0"])
def test_an_index_of_garbage_is_made_anew(plan, store, reads, garbage):
    states = shown(plan, store)
    index = store.root / "index.sqlite"
    index.write_bytes(garbage)
    assert shown(plan, store) == states
    reads.clear()
    assert shown(plan, store) == states
    assert not reads


def test_an_index_of_another_version_is_made_anew(plan, store, reads):
    states = shown(plan, store)
    with closing(sqlite3.connect(store.root / "index.sqlite")) as database, database:
        database.execute("UPDATE outcomes SET outcome = 'of another form'")
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    assert shown(plan, store) == states
    reads.clear()
    assert shown(plan, store) == states
    assert not reads


def test_no_flipped_byte_changes_a_status(plan, store):
    states = shown(plan, store)
    index = store.root / "index.sqlite"
    whole = index.read_bytes()
    places = random.Random(0)
    used = [place for place, byte in enumerate(whole) if byte]  # most of the file is empty
    for _ in range(150):
        damaged = bytearray(whole)
        for place in places.sample(used, 3):
            damaged[place] = places.randrange(256)
        index.write_bytes(damaged)
        assert shown(plan, store) == states


def test_a_locked_index_is_done_without(plan, store, reads):
    states = shown(plan, store)
    holder = sqlite3.connect(store.root / "index.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    reads.clear()
    assert shown(plan, store) == states
    assert len(reads) == 4
    holder.close()
    assert shown(plan, store) == states
    assert len(reads) == 4


def test_a_place_for_no_index_is_done_without(plan, store):
    (store.root / "index.sqlite").mkdir()
    assert shown(plan, store) == shown(plan, store)
    assert (store.root / "index.sqlite").is_dir()


LOOK = """
import sys
from pathlib import Path
from sweeps.index import OutcomeIndex
for _ in range(40):
    index = OutcomeIndex(Path(sys.argv[1]))
    for folder in sys.argv[2:]:
        index.outcome(folder)
    index._read = index._read or [("x", "", "{}")]  # so that every round writes
    index.save()
"""


def test_two_writers_at_once_leave_a_whole_index(plan, store, reads):
    names = [run.run_id for run in plan.runs]
    folders = [
        [f"{store.runs_dir}/{name}/attempts/0001" for name in half] for half in (names, names[::-1])
    ]
    looking = [
        subprocess.Popen([sys.executable, "-c", LOOK, str(store.root), *half], cwd=Path.cwd())
        for half in folders
    ]
    assert [process.wait(timeout=600) for process in looking] == [0, 0]
    with closing(sqlite3.connect(store.root / "index.sqlite")) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    shown(plan, store)
    reads.clear()
    shown(plan, store)
    assert not reads
