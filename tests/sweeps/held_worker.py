"""A real worker; at the run of seed 0 its first attempts wait after a step to be killed there."""

import sys
import time

from model.training import progress
from sweeps.measure import measure_run
from sweeps.worker import main

HELD_AT = {"0001": 3, "0002": 7}
"""Attempt to step."""


def measure(spec, attempt_dir, report):
    def report_and_wait(told):
        report(told)
        while spec.train.seed == 0 and told.step == HELD_AT.get(attempt_dir.name):
            time.sleep(0.02)

    return measure_run(spec, attempt_dir, report_and_wait)


if __name__ == "__main__":
    progress.PROGRESS_EVERY_S = 0.0  # here: tests import this file
    sys.exit(main(measure=measure))
