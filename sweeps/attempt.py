"""One attempt at a run: the claim that makes it the only one, and the fence behind it.

    runs/<run id>/
        spec.json                       what to do
        log.txt                         what every attempt printed
        attempts/0001/claim.json        who holds it: the first attempt
        attempts/0001/heartbeat.json    replaced every second: that it lives, and how far it is
        attempts/0001/...               everything this attempt writes: checkpoints, metrics, record
        attempts/0001/outcome.json      how it ended; absent while it runs, or if it was killed
        record.json -> attempts/...     the published result, likewise metrics.jsonl, checkpoints
        outcome.json -> attempts/...    of a run that is done

The attempt's number is the fencing token. A claim appears by renaming a prepared folder to the next
number, which a file system lets exactly one process do. A worker that was taken over (frozen, cut
off, then awake again) can only write into its own attempt's folder, which nobody reads any more; it
finds the next number there, and stops. So no check has to come before each write: late writes have
nowhere to do harm.
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from model.errors import ConfigError
from model.files import durable_folder, sync_folder, write_atomic
from model.typed import build, to_plain
from sweeps.files import read_json, write_json
from sweeps.liveness import Owner, this_process

Status = Literal["done", "diverged", "failed", "interrupted"]


class ClaimLost(RuntimeError):
    """Another worker holds the run, or has taken it over."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """``claim.json``: who made this attempt, and when by its own clock."""

    owner: Owner
    started: float
    """Seconds since 1970."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is."""

    step: int
    num_steps: int
    tokens_per_s: float
    loss: float | None
    """Training loss of the last step, nats per token."""

    @property
    def frac(self) -> float:
        """Share of the steps that are done."""
        return self.step / max(1, self.num_steps)


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """``heartbeat.json``."""

    beat: int
    """Rises with every beat; a watcher looks only at whether it changes."""
    time: float
    """Seconds since 1970 by the worker's clock, for people."""
    phase: str
    """What the worker is doing, in a word or two."""
    progress: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """``outcome.json``: how an attempt ended."""

    status: Status
    reason: str = ""
    ended: float
    """Seconds since 1970."""
    done_frac: float = 0.0
    """Share of its steps that it had done, by its last beat; of one that is done nobody asks."""
    out_of_memory: bool = False
    """It needed more memory than there was: the next attempt goes through its batch in halves."""


PUBLISHED = ("metrics.jsonl", "checkpoints", "record.json")
"""What :meth:`Attempt.publish` makes visible in the run's folder; the record last."""


class Attempt:
    """A claim this process holds."""

    def __init__(self, run_dir: Path, number: int) -> None:
        self.run_dir = run_dir
        self.number = number
        self.dir = attempt_dir(run_dir, number)

    @classmethod
    def claim(cls, run_dir: Path, *, after: int, now: float) -> Attempt:
        """Make attempt ``after + 1`` ours and take over what the attempts before it left.

        Args:
            run_dir: the run's folder.
            after: the newest attempt, which the caller knows to be over; 0 for none.
            now: seconds since 1970.

        Raises:
            ClaimLost: another worker was quicker.
        """
        attempt = cls(run_dir, after + 1)
        durable_folder(attempt.dir.parent)
        staging = attempt.dir.parent / f".claim-{uuid.uuid4().hex}"
        staging.mkdir()
        claim = Claim(owner=this_process(), started=now)
        write_json(staging / "claim.json", to_plain(claim))
        try:
            # Fails if the number is taken: a folder with something in it is never replaced.
            os.rename(staging, attempt.dir)
        except OSError as error:
            shutil.rmtree(staging, ignore_errors=True)
            # Some file systems say no more than that it is not permitted (SFTP).
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST) or attempt.dir.exists():
                raise ClaimLost(f"attempt {attempt.number} of {run_dir.name} is taken") from None
            raise
        sync_folder(attempt.dir.parent)
        attempt._adopt()
        return attempt

    def _adopt(self) -> None:
        """Take the newest metrics and checkpoints of the attempts since the last diverged one.

        The metrics are copied: a worker that is not quite dead may still append to its own. The
        checkpoints are moved, so that such a worker finds its folder gone. Metrics go first, and
        whole: a checkpoint without the curve up to it would lose the curve.
        """
        earlier = []
        for number in range(self.number - 1, 0, -1):
            folder = attempt_dir(self.run_dir, number)
            outcome = read_outcome(folder)
            if outcome is not None and outcome.status == "diverged":
                break
            earlier.append(folder)
        for folder in earlier:
            if (folder / "metrics.jsonl").exists():
                write_atomic(self.dir / "metrics.jsonl", (folder / "metrics.jsonl").read_bytes())
                break
        for folder in earlier:
            try:
                os.rename(folder / "checkpoints", self.dir / "checkpoints")
            except FileNotFoundError:
                continue
            break
        sync_folder(self.dir)

    def is_fenced(self) -> bool:
        """Whether a later attempt exists: this one was taken over and must stop."""
        # A listing, not a stat: a network file system may remember that a name was absent.
        return newest_attempt(self.run_dir) > self.number

    def beat(self, heartbeat: Heartbeat) -> None:
        """Replace ``heartbeat.json``."""
        write_json(self.dir / "heartbeat.json", to_plain(heartbeat), durable=False)

    def publish(self) -> None:
        """Make this attempt's record the run's, once; the record must be written and validated.

        Raises:
            ClaimLost: the attempt was taken over.
        """
        for name in PUBLISHED:
            if self.is_fenced():
                raise ClaimLost(f"attempt {self.number} of {self.run_dir.name} was taken over")
            if (self.dir / name).exists():
                _link(self.run_dir / name, Path("attempts") / self.dir.name / name)
        sync_folder(self.run_dir)

    def end(self, outcome: Outcome) -> None:
        """Write ``outcome.json``: the attempt is over.

        A run that is done stays so; its outcome is shown in the run's folder too, where a status
        finds it without a look at the attempts.
        """
        if outcome.status != "done":
            heartbeat = read_heartbeat(self.dir)
            if heartbeat is not None and heartbeat.progress is not None:
                outcome = replace(outcome, done_frac=heartbeat.progress.frac)
        write_json(self.dir / "outcome.json", to_plain(outcome))
        if outcome.status == "done":
            _link(self.run_dir / "outcome.json", Path("attempts") / self.dir.name / "outcome.json")
            sync_folder(self.run_dir)


def attempt_dir(run_dir: Path, number: int) -> Path:
    """The folder of an attempt, counted from 1."""
    return Path(attempt_text(run_dir, number))


def attempt_text(run_dir: Path | str, number: int) -> str:
    """The folder of an attempt as text: a status looks at 10,000 of them."""
    return f"{run_dir}/attempts/{number:04d}"


def newest_attempt(run_dir: Path | str) -> int:
    """The highest attempt's number, 0 if there is none."""
    try:
        names = os.listdir(f"{run_dir}/attempts")
    except FileNotFoundError:
        return 0
    return max((int(name) for name in names if name.isdigit()), default=0)


def read_claim(folder: Path) -> Claim:
    """Who holds or held the attempt."""
    return build(Claim, read_json(folder / "claim.json"), where=str(folder / "claim.json"))


def read_heartbeat(folder: Path) -> Heartbeat | None:
    """The last beat, None before the first."""
    try:
        mapping = read_json(folder / "heartbeat.json")
    except FileNotFoundError:
        return None
    return build(Heartbeat, mapping, where=str(folder / "heartbeat.json"))


def read_outcome(folder: Path | str) -> Outcome | None:
    """How the attempt ended, None if it did not (yet)."""
    path = Path(f"{folder}/outcome.json")
    try:
        return Outcome(**read_json(path))  # not by ``build``: a status reads 10,000 of these
    except FileNotFoundError:
        return None
    except (ConfigError, TypeError) as error:
        # Written whole or not at all, so this is damage from outside: the attempt counts as over.
        return Outcome(status="interrupted", reason=str(error), ended=path.stat().st_mtime)


def read_done(run_dir: str) -> int:
    """The attempt that finished the run, 0 if it is not done; by text, for speed.

    It is done only with its record: of a folder that was copied in part the link may be there and
    what it leads to not. In one that was copied with its links followed there is a file.
    """
    try:
        finished = int(os.readlink(f"{run_dir}/outcome.json").split("/")[1])
        os.stat(f"{run_dir}/record.json")
    except FileNotFoundError:
        return 0
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return newest_attempt(run_dir) if os.path.exists(f"{run_dir}/record.json") else 0
    return finished


def _link(path: Path, target: Path) -> None:
    """Point ``path`` at ``target``, atomically, whatever it pointed at before."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)  # of a folder copied with its links followed: an attempt has the same
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    os.symlink(target, temporary)
    os.replace(temporary, path)
