"""One run from its folder: ``python -m sweeps.worker RUN_DIR``.

Claims the run, trains it, writes its record and says how it ended. Started by an executor, by a
cluster's scheduler or by hand; on any machine that sees the folder. Without ``--after`` it looks
for itself whether an earlier attempt is over, and waits a lease where only that can tell.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.records import RunRecord
from model.errors import ConfigError
from model.lifeline import end_with
from model.training.distributed.job import RankLost
from sweeps.attempt import Attempt, ClaimLost, Progress, newest_attempt
from sweeps.ending import failed, interrupted, is_published, publish
from sweeps.executors.forkserver import serve
from sweeps.liveness import BEAT_S, PARENT_VARIABLE, Watch
from sweeps.measure import measure_pack, measure_run
from sweeps.pack_worker import MeasurePack, Part, claim_company, run_pack
from sweeps.provenance import git_state
from sweeps.pulse import Pulse, Stopped, reporting
from sweeps.spec import RunSpec, read_spec, run_id
from sweeps.store import Store
from sweeps.trouble import (
    EXIT_FAILED,
    EXIT_HELD,
    EXIT_OVER,
    EXIT_STOPPED,
    EXIT_USAGE,
    store_trouble,
)

Report = Callable[[Progress], None]
Measure = Callable[[RunSpec, Path, Report], RunRecord]
"""Trains ``spec`` in the attempt's folder, resuming from what lies there, and reports each step."""


def run_worker(
    run_dir: Path,
    *,
    after: int | None = None,
    measure: Measure = measure_run,
    measure_pack: MeasurePack = measure_pack,
    stop: threading.Event | None = None,
) -> int:
    """Claim and train the run in ``run_dir`` and those in its pack; returns the exit code."""
    stop = stop or threading.Event()
    spec = read_spec(run_dir / "spec.json")
    if run_id(spec) != run_dir.name:
        raise ConfigError(
            f"{run_dir / 'spec.json'}: describes run {run_id(spec)}, not {run_dir.name}; "
            "it was edited or moved; plan the sweep again"
        )
    store = Store(run_dir.parent.parent)
    try:
        if after is None:
            after = _wait_until_over(store, run_dir)
        attempt = Attempt.claim(run_dir, after=after, now=time.time())
    except ClaimLost as lost:
        print(lost)
        return EXIT_HELD
    print(f"attempt {attempt.number} by process {os.getpid()} on {os.uname().nodename}", flush=True)
    pulse = Pulse(attempt)
    pulse.start()
    try:
        if is_published(store, attempt):
            return EXIT_OVER
        if company := claim_company(store, run_dir):
            return run_pack([Part(spec, attempt, pulse), *company], measure_pack, stop)
        return _run_attempt(spec, attempt, pulse, measure, stop)
    finally:
        pulse.end()


def _run_attempt(
    spec: RunSpec, attempt: Attempt, pulse: Pulse, measure: Measure, stop: threading.Event
) -> int:
    report = reporting(pulse, stop)
    try:
        record = measure(spec, attempt.dir, report)
        pulse.phase = "publishing"
        publish(attempt, spec, record)
        return EXIT_OVER
    except ClaimLost as lost:
        print(lost)
        return EXIT_HELD
    except (Stopped, KeyboardInterrupt) as stopped:
        interrupted(attempt, "stopped on request")
        if isinstance(stopped, KeyboardInterrupt):
            raise
        return EXIT_STOPPED
    except RankLost as lost:
        print(lost, file=sys.stderr)
        interrupted(attempt, str(lost))
        return EXIT_STOPPED
    except Exception as error:
        return failed(attempt, spec, error)


def _wait_until_over(store: Store, run_dir: Path) -> int:
    """The newest attempt, once it is over; ClaimLost if it finishes or goes on."""
    watch = Watch()
    state = store.state(run_dir.name, watch)
    beats = set()
    while state.status == "running":
        beats.add(state.heartbeat.beat if state.heartbeat else None)
        if len(beats) > 2:
            raise ClaimLost(f"attempt {state.attempt} of {run_dir.name} is alive elsewhere")
        time.sleep(BEAT_S)
        state = store.state(run_dir.name, watch)
    return newest_attempt(run_dir)


def die_with_driver() -> None:
    """End this process when the driver that started it is gone.

    Where the kernel does not (see :mod:`model.lifeline`), :class:`Pulse` sees the parent change.
    """
    driver = os.environ.get(PARENT_VARIABLE)
    if driver is None:
        return
    if not end_with(int(driver)):
        sys.exit(EXIT_STOPPED)


def work(
    run_dir: Path,
    after: int | None,
    measure: Measure = measure_run,
    measure_pack: MeasurePack = measure_pack,
) -> int:
    """The whole life of a worker process; returns its exit code."""
    die_with_driver()
    stop = threading.Event()
    # SIGUSR2 is how Slurm warns of a time limit; it signals every process of a job.
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda *_: stop.set())
    try:
        return run_worker(
            run_dir.resolve(), after=after, measure=measure, measure_pack=measure_pack, stop=stop
        )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    except OSError as error:
        trouble = store_trouble(run_dir, error)
        traceback.print_exc()
        return trouble.exit_code if trouble else EXIT_FAILED


def main(
    argv: Sequence[str] | None = None,
    measure: Measure = measure_run,
    measure_pack: MeasurePack = measure_pack,
) -> int:
    """The command line of a worker, and of the server that forks workers."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.worker", description=__doc__)
    parser.add_argument("run_dir", type=Path, nargs="?", help="a folder with a spec.json")
    parser.add_argument("--after", type=int, help="claim the attempt after this one, or give up")
    parser.add_argument("--serve", action="store_true", help="fork a worker for each request")
    arguments = parser.parse_args(argv)
    if arguments.serve:
        die_with_driver()
        if measure is measure_run:
            _import_trainer()
            git_state()  # with the code, which its children have from here, not from the checkout
        return serve(lambda run_dir, after: work(run_dir, after, measure, measure_pack))
    if arguments.run_dir is None:
        parser.error("give it a run's folder")
    return work(arguments.run_dir, arguments.after, measure, measure_pack)


def _import_trainer() -> None:
    """What the forked workers are spared; importing computes nothing and starts no thread."""
    import torch._dynamo  # noqa: F401  (where AdamW is the framework's own it imports this, a second)

    import model.training.packed
    import model.training.trainer  # noqa: F401


if __name__ == "__main__":
    sys.exit(main())
