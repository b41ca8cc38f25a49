"""The run that every engine of ``engines.py`` is given: ten steps of a tenth of a second.

The steps sleep, so that an engine's own cost is seen whatever else the machine does. Torch is
imported as any training does, once a process. Every step leaves a line in ``FOLDER/steps.txt`` and
every result a file in ``FOLDER/results``; both are counted from outside. It saves nothing, as a
user's function does who relies on the engine.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

STEPS, STEP_S = 10, 0.1
torch.set_num_threads(1)


def run(
    folder: Path, number: int, first: int = 0, done: Callable[[int], None] = lambda _: None
) -> float:
    """Run ``number`` from step ``first`` on; ``done`` is called after each step."""
    working = folder / "working" / str(number)
    working.parent.mkdir(exist_ok=True)
    written = folder / f"pid-{os.getpid()}"
    written.write_text(str(os.getpid()))
    written.replace(working)
    for step in range(first, STEPS):
        time.sleep(STEP_S)
        with open(folder / "steps.txt", "a") as file:
            file.write(f"{number} {step}\n")
        done(step + 1)
    results = folder / "results"
    results.mkdir(exist_ok=True)
    (results / str(number)).write_text(f"{torch.tensor(float(number)).item()}\n")
    working.unlink()
    return float(number)
