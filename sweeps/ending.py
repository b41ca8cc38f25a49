"""How an attempt ends on disk: its record published, or the reason why there is none."""

from __future__ import annotations

import sys
import time
import traceback

from analysis.records import RunRecord
from model.errors import ConfigError
from model.files import write_atomic
from model.typed import to_plain
from sweeps.attempt import Attempt, Outcome, Status, attempt_dir, read_outcome
from sweeps.files import write_json
from sweeps.measure import check_record
from sweeps.memory import can_be_halved
from sweeps.spec import RunSpec
from sweeps.store import Store
from sweeps.trouble import (
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_MEMORY,
    is_out_of_memory,
    patiently,
    store_trouble,
)


def is_published(store: Store, attempt: Attempt) -> bool:
    """Whether an attempt before measured the run and this one has but to say so.

    It was ended between publishing and its last word, or the folder was copied without its links.
    """
    if store.record(attempt.run_dir.name) is None and (found := _measured_before(attempt)):
        write_atomic(attempt.dir / "record.json", found)
        attempt.publish()
    earlier = store.record(attempt.run_dir.name)
    if earlier is None or earlier.status != "done":
        return False
    attempt.end(Outcome(status="done", ended=time.time()))
    return True


def _measured_before(attempt: Attempt) -> bytes | None:
    """The record of the attempt that said it was done."""
    for number in range(attempt.number - 1, 0, -1):
        folder = attempt_dir(attempt.run_dir, number)
        outcome, path = read_outcome(folder), folder / "record.json"
        if outcome is not None and outcome.status == "done" and path.exists():
            return path.read_bytes()
    return None


def publish(attempt: Attempt, spec: RunSpec, record: RunRecord) -> None:
    """Check the record, make it the run's, and say that the attempt is over.

    Raises:
        ConfigError: the record is no sane measurement of ``spec``.
        ClaimLost: the attempt was taken over.
    """
    check_record(record, spec)
    patiently(lambda: write_json(attempt.dir / "record.json", to_plain(record)))
    patiently(attempt.publish)
    outcome = Outcome(status=record.status, reason=record.reason, ended=time.time())
    patiently(lambda: attempt.end(outcome))


def interrupted(attempt: Attempt, reason: str) -> None:
    """Say that the attempt was ended from outside; the run can be resumed."""
    attempt.end(Outcome(status="interrupted", reason=reason, ended=time.time()))


def failed(attempt: Attempt, spec: RunSpec, error: Exception) -> int:
    """Say how the attempt failed, if the store still takes a word; returns the exit code.

    An attempt that was taken over has not failed: its checkpoints were moved away under it, and it
    may meet that before its next beat tells it why.
    """
    if _was_taken_over(attempt):
        print(f"attempt {attempt.number} was taken over ({one_line(error)})")
        return EXIT_HELD
    trouble = store_trouble(attempt.dir, error)
    if isinstance(error, ConfigError):
        print(error, file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stderr.flush()
    reason = trouble.reason if trouble else one_line(error)
    status: Status = "interrupted" if trouble else "failed"
    exit_code = trouble.exit_code if trouble else EXIT_FAILED
    out_of_memory = trouble is None and is_out_of_memory(error)
    if out_of_memory and can_be_halved(attempt.run_dir, spec.train, attempt.number):
        status, exit_code = "interrupted", EXIT_MEMORY
        reason = f"out of memory; the batch is gone through in smaller parts next ({reason})"
    outcome = Outcome(status=status, reason=reason, ended=time.time(), out_of_memory=out_of_memory)
    try:
        attempt.end(outcome)
    except OSError:
        print(f"{reason}; the outcome could not be written", file=sys.stderr)
    return exit_code


def _was_taken_over(attempt: Attempt) -> bool:
    try:
        return attempt.is_fenced()
    except OSError:
        return False  # the store is away: that is what it failed of


def one_line(error: Exception) -> str:
    """The error as a reason."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
