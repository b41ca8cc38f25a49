"""A worker with several runs: one stacked model, but each run's claim, record and end its own."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from analysis.records import RunRecord
from model.errors import ConfigError
from sweeps.attempt import Attempt, ClaimLost, Progress
from sweeps.ending import interrupted, is_published, one_line, publish
from sweeps.packing import read_company
from sweeps.pulse import Pulse, Stopped, reporting
from sweeps.spec import RunSpec, read_spec
from sweeps.store import Store
from sweeps.trouble import EXIT_OVER, EXIT_STOPPED, store_trouble

Report = Callable[[Progress], None]
MeasurePack = Callable[
    [Sequence[RunSpec], Sequence[Path], Sequence[Report], Callable[[int, RunRecord], None]], None
]
"""See :func:`sweeps.measure.measure_pack`."""


@dataclass(frozen=True)
class Part:
    """One run of the pack, claimed."""

    spec: RunSpec
    attempt: Attempt
    pulse: Pulse


def claim_company(store: Store, run_dir: Path) -> list[Part]:
    """Claim whoever is listed in the run's ``pack.json`` and is neither over nor held."""
    parts = []
    for name, after in read_company(run_dir).runs.items():
        folder = store.run_dir(name)
        try:
            spec = read_spec(folder / "spec.json")
            state = store.state(name)
            if state.status in ("planned", "interrupted") and state.attempt >= after:
                attempt = Attempt.claim(folder, after=state.attempt, now=time.time())
                if is_published(store, attempt):
                    continue
                with open(folder / "log.txt", "a") as log:
                    print(f"attempt {attempt.number}: see the log of {run_dir.name}", file=log)
                pulse = Pulse(attempt)
                pulse.start()
                parts.append(Part(spec, attempt, pulse))
        except (ClaimLost, ConfigError, OSError) as error:
            print(f"{name} stays out of the pack: {error}")  # and is tried by itself
    return parts


def run_pack(parts: Sequence[Part], measure_pack: MeasurePack, stop: threading.Event) -> int:
    """Train all ``parts``; returns the exit code. Their folders say how each ended."""
    left = dict(enumerate(parts))

    def on_record(index: int, record: RunRecord) -> None:
        part = left[index]
        part.pulse.phase = "publishing"
        publish(part.attempt, part.spec, record)
        del left[index]
        part.pulse.end()

    reason = "stopped on request"
    try:
        measure_pack(
            [part.spec for part in parts],
            [part.attempt.dir for part in parts],
            [reporting(part.pulse, stop) for part in parts],
            on_record,
        )
        return EXIT_OVER
    except Stopped:
        return EXIT_STOPPED
    except KeyboardInterrupt:
        raise
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        trouble = store_trouble(parts[0].attempt.dir, error)
        if trouble is not None:
            reason = trouble.reason
            return trouble.exit_code
        # Whose fault it was shows when each is tried by itself.
        reason = f"while trained with {len(parts) - 1} others: {one_line(error)}"
        return EXIT_STOPPED
    finally:
        for part in left.values():
            with suppress(OSError):
                interrupted(part.attempt, reason)
            part.pulse.end()
