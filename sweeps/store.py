"""The runs on disk: one folder each, on any shared file system, with no server and no lock service.

A run's status follows from its folder alone (see :mod:`sweeps.attempt`), so a crash cannot leave a
stale status behind. Reading 10,000 of them takes a fraction of a second; a cache of how attempts
ended (:mod:`sweeps.index`) makes failed ones as fast.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from model.errors import ConfigError
from model.files import durable_folder
from model.typed import build, to_plain
from sweeps.attempt import (
    Heartbeat,
    Outcome,
    attempt_dir,
    attempt_text,
    newest_attempt,
    read_claim,
    read_done,
    read_heartbeat,
    read_outcome,
)
from sweeps.files import write_json
from sweeps.liveness import LEASE_S, Watch, known_dead
from sweeps.spec import RunSpec, read_spec, run_id

if TYPE_CHECKING:
    from analysis.records import RecordSet, RunRecord

RunStatus = Literal["planned", "running", "interrupted", "done", "failed", "diverged"]


@dataclass(frozen=True, kw_only=True)
class RunState:
    """What the folder of a run says about it."""

    run_id: str
    status: RunStatus
    attempt: int = 0
    """Newest attempt, 0 before the first."""
    reason: str = ""
    """Why it failed, diverged or was interrupted."""
    heartbeat: Heartbeat | None = None
    """Of one that has not said how it ended."""
    done_frac: float = 0.0
    """Of one that is not done: the share of its steps it had done when it ended, or found done by
    the attempts before it and has not spoken of yet."""


class Store:
    """``root/runs``: makes run folders, says what state each is in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs_dir = root / "runs"
        self._runs = str(self.runs_dir)

    def run_dir(self, name: str) -> Path:
        """The folder of run ``name``."""
        return Path(f"{self._runs}/{name}")

    def plan_path(self, sweep: str) -> Path:
        """The plan of a sweep."""
        return self.root / "sweeps" / sweep / "plan.json"

    def plan_paths(self) -> list[Path]:
        """The plans there are, by the names of their sweeps."""
        return sorted(self.root.glob("sweeps/*/plan.json"), key=lambda path: path.parent.name)

    def create(self, spec: RunSpec) -> Path:
        """Make the run's folder with its ``spec.json``; one of a run that has begun is left alone.

        What does not change a run's id may still be corrected until then: its device, its threads.
        """
        folder = self.run_dir(run_id(spec))
        path = folder / "spec.json"
        if not path.exists():
            durable_folder(folder)
            write_json(path, to_plain(spec))
        elif not self.has_begun(run_id(spec)):
            with suppress(ConfigError):  # a damaged one is its worker's to name
                if read_spec(path) != spec:
                    write_json(path, to_plain(spec))
        return folder

    def has_begun(self, name: str) -> bool:
        """Whether a worker is on the run, or one has left something to go on from."""
        folders = list(self.attempts(name))
        return any(
            read_outcome(folder) is None or (folder / "metrics.jsonl").exists()
            for folder in folders
        )

    def state(
        self,
        name: str,
        watch: Watch | None = None,
        outcome_of: Callable[[str], Outcome | None] = read_outcome,
    ) -> RunState:
        """The state of run ``name``.

        An attempt without an outcome is running until it is known to be dead: at once where this
        machine's kernel says so, otherwise when ``watch`` has seen no beat for a lease. Without a
        watch the heartbeat's own time is believed instead: good enough to show, not to act on.
        ``outcome_of`` reads how an attempt ended, given its folder.
        """
        # The common case first, and by text: making 10,000 paths takes longer than reading them.
        run_dir = f"{self._runs}/{name}"
        if finished := read_done(run_dir):
            return RunState(run_id=name, status="done", attempt=finished)
        newest = newest_attempt(run_dir)
        if newest == 0:
            return RunState(run_id=name, status="planned")
        outcome = outcome_of(attempt_text(run_dir, newest))
        if outcome is not None and outcome.status == "done" and not _has_record(run_dir):
            # The next attempt publishes what this one measured, or measures it again.
            return RunState(
                run_id=name,
                status="interrupted",
                attempt=newest,
                reason="it is done, but its record was not copied with the folder",
                done_frac=1.0,
            )
        if outcome is not None:
            return RunState(
                run_id=name,
                status=outcome.status,
                attempt=newest,
                reason=outcome.reason,
                done_frac=outcome.done_frac or _taken_over(Path(run_dir), newest),
            )
        folder = attempt_dir(Path(run_dir), newest)
        heartbeat = read_heartbeat(folder)
        reason = _why_over(folder, heartbeat, watch)
        is_telling = heartbeat is not None and heartbeat.progress is not None
        return RunState(
            run_id=name,
            status="interrupted" if reason else "running",
            attempt=newest,
            reason=reason,
            heartbeat=heartbeat,
            done_frac=0.0 if is_telling else _taken_over(Path(run_dir), newest),
        )

    def record(self, name: str) -> RunRecord | None:
        """The published record, None if there is none yet.

        Raises:
            ConfigError: it can't be read, or is another run's; the message says how to go on.
        """
        from analysis import records  # here: a status reads none, and spares numpy

        path = self.run_dir(name) / "record.json"
        try:
            mapping = records.record_mapping(path)
        except FileNotFoundError:
            return None
        record = build(records.RunRecord, mapping, where=str(path))
        if record.run_id != name:
            raise ConfigError(
                f"{path}: holds the record of run {record.run_id}, copied or renamed by hand? "
                f"{records.anew(name)}"
            )
        return record

    def records(self, names: Collection[str]) -> RecordSet:
        """The records of these runs, which have one each, and those that can't be analysed.

        Raises:
            ConfigError: one can't be read, or is another run's.
        """
        from analysis.records import load_records  # here, as above

        loaded = load_records(self.run_dir(name) for name in names)
        if {record.run_id for record in loaded.records} - set(names):
            for name in names:
                self.record(name)  # raises at the one that is misplaced
        return loaded

    def log_tail(self, name: str, lines: int = 15) -> str:
        """The end of the run's log, for a person; empty if nothing was printed."""
        try:
            with open(self.run_dir(name) / "log.txt", "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 16_384))
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines:])

    def attempts(self, name: str) -> Iterator[Path]:
        """The folders of all attempts, oldest first."""
        run_dir = self.run_dir(name)
        for number in range(1, newest_attempt(run_dir) + 1):
            yield attempt_dir(run_dir, number)

    def redo(self, name: str) -> None:
        """Set a run's folder aside under ``root/redone``, whole, so that it is measured anew."""
        state = self.state(name)
        if state.status == "running":
            raise ConfigError(f"run {name} is running; stop it before it is redone")
        if state.status == "planned":
            return
        folder = self.root / "redone"
        folder.mkdir(exist_ok=True)
        number = sum(1 for old in folder.iterdir() if old.name.startswith(f"{name}."))
        os.rename(self.run_dir(name), folder / f"{name}.{number + 1}")


def _has_record(run_dir: str) -> bool:
    return os.path.exists(f"{run_dir}/record.json")


def _taken_over(run_dir: Path, number: int) -> float:
    """The share of the steps that attempt ``number`` found done, by the last beat of those before:
    until its own first word on it."""
    for earlier in range(number - 1, 0, -1):
        folder = attempt_dir(run_dir, earlier)
        outcome = read_outcome(folder)
        if outcome is not None and outcome.status == "diverged":
            break  # it began anew
        heartbeat = read_heartbeat(folder)
        if heartbeat is not None and heartbeat.progress is not None:
            return heartbeat.progress.frac
    return 0.0


def _why_over(folder: Path, heartbeat: Heartbeat | None, watch: Watch | None) -> str:
    """Why the attempt's worker must be dead; empty while it may live."""
    claim = read_claim(folder)
    owner = f"worker {claim.owner.pid} on {claim.owner.host}"
    if known_dead(claim.owner):
        return f"{owner} was killed"
    if watch is not None:
        if watch.is_stale(folder, heartbeat.beat if heartbeat else None):
            return f"{owner} has given no sign of life for {watch.lease_s:.0f} s"
        return ""
    age_s = time.time() - (heartbeat.time if heartbeat else claim.started)
    return f"{owner} has given no sign of life for {age_s:.0f} s" if age_s > LEASE_S else ""
