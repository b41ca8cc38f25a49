"""How an attempt ends on disk: its record published, or the reason why there is none."""

from __future__ import annotations

import sys
import time
import traceback

from analysis.records import RunRecord
from model.errors import ConfigError
from model.typed import to_plain
from sweeps.attempt import Attempt, Outcome, Status
from sweeps.files import write_json
from sweeps.measure import check_record
from sweeps.spec import RunSpec
from sweeps.store import Store
from sweeps.trouble import EXIT_FAILED, patiently, store_trouble


def is_published(store: Store, attempt: Attempt) -> bool:
    """Whether an attempt before published the run and was ended before it could say so.

    Then this one says it.
    """
    earlier = store.record(attempt.run_dir.name)
    if earlier is None or earlier.status != "done":
        return False
    attempt.end(Outcome(status="done", ended=time.time()))
    return True


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


def failed(attempt: Attempt, error: Exception) -> int:
    """Say how the attempt failed, if the store still takes a word."""
    trouble = store_trouble(attempt.dir, error)
    if isinstance(error, ConfigError):
        print(error, file=sys.stderr)
    else:
        traceback.print_exc()
    sys.stderr.flush()
    reason = trouble.reason if trouble else one_line(error)
    status: Status = "interrupted" if trouble else "failed"
    try:
        attempt.end(Outcome(status=status, reason=reason, ended=time.time()))
    except OSError:
        print(f"{reason}; the outcome could not be written", file=sys.stderr)
    return trouble.exit_code if trouble else EXIT_FAILED


def one_line(error: Exception) -> str:
    """The error as a reason."""
    text = " ".join(str(error).split())
    return text if isinstance(error, ConfigError) else f"{type(error).__name__}: {text}"
