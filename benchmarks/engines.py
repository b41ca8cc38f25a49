"""A sweep of 60 second-long runs by three engines: ``python benchmarks/engines.py [runs=60]``.

    python benchmarks/engines.py [runs=60] [slots=2] [peers=PYTHON] [engines=ours,hydra,ray]
                                 [parts=calm,struck]

This engine, Hydra's multirun with its joblib launcher, and Ray Tune are given the same runs and as
many slots (benchmarks/engine_race/). Each sweeps twice: undisturbed; and with one worker killed
(SIGKILL) once a third of the results are there, after which the same command is given again until
nothing changes. Printed: seconds, results after the blow, and how many of the steps were done more
than once in the end.

``peers`` is an interpreter that has hydra-core, hydra-joblib-launcher and ray[tune]; an engine that
is not installed there is left out, and said so.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from measuring import options

RACE = Path(__file__).resolve().parent / "engine_race"
STEPS = 10
GIVE_UP_S = 900.0


class Engine(NamedTuple):
    name: str
    needs: str
    """A module that is there exactly if the engine is."""
    command: tuple[str, ...]
    """With {folder}, {runs}, {last} and {slots} to be filled in."""


ENGINES = {
    "ours": Engine(
        "this engine", "sweeps", (str(RACE / "ours.py"), "{folder}", "{runs}", "{slots}")
    ),
    "hydra": Engine(
        "Hydra + joblib",
        "hydra_plugins.hydra_joblib_launcher",
        (
            str(RACE / "hydra_joblib.py"),
            "-m",
            "hydra/launcher=joblib",
            "hydra.launcher.n_jobs={slots}",
            "hydra.sweep.dir={folder}/multirun",
            "number=range({runs})",
            "folder={folder}",
        ),
    ),
    "ray": Engine(
        "Ray Tune", "ray.tune", (str(RACE / "ray_tune.py"), "{folder}", "{runs}", "{slots}")
    ),
}


class Sweep(NamedTuple):
    wall_s: float
    exit_code: int
    results: int


def sweep(command: Sequence[str], folder: Path, kill_at: int = 0) -> Sweep:
    """Run the command to its end; at ``kill_at`` results a worker that is in a run is killed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_AIR_NEW_OUTPUT": "0"}
    with open(folder / "log.txt", "ab") as log:
        began = time.monotonic()
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        while process.poll() is None:
            time.sleep(0.01)
            if kill_at and count(folder) >= kill_at and kill_one(folder):
                kill_at = 0
            if time.monotonic() - began > GIVE_UP_S:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Sweep(time.monotonic() - began, process.returncode, count(folder))


def count(folder: Path) -> int:
    """Results that are there."""
    results = folder / "results"
    return len(list(results.iterdir())) if results.exists() else 0


def kill_one(folder: Path) -> bool:
    """Kill the worker of a run that is in its middle."""
    steps = (folder / "steps.txt").read_text().splitlines()
    for path in (folder / "working").iterdir():
        if f"{path.name} {STEPS // 2}" in steps:
            os.kill(int(path.read_text()), signal.SIGKILL)
            return True
    return False


def repeated(folder: Path) -> int:
    """Steps that were done again, or in vain."""
    lines = (folder / "steps.txt").read_text().splitlines()
    return len(lines) - len(set(lines))


def race(engine: Engine, python: str, num_runs: int, slots: int, parts: Sequence[str]) -> None:
    def command(folder: Path) -> list[str]:
        values = {"folder": folder, "runs": num_runs, "slots": slots}
        return [python, *(word.format(**values) for word in engine.command)]

    print(engine.name)
    if "calm" in parts:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            calm = sweep(command(Path(name)), Path(name))
            assert calm.results == num_runs, (Path(name) / "log.txt").read_text()[-3000:]
        print(f"    undisturbed: {calm.wall_s:.1f} s", flush=True)
    if "struck" not in parts:
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        folder = Path(name)
        struck = sweep(command(folder), folder, kill_at=num_runs // 3)
        print(
            f"    one worker killed: ended after {struck.wall_s:.1f} s with exit code "
            f"{struck.exit_code}, {struck.results} of {num_runs} results"
        )
        for _ in range(3):
            if count(folder) == num_runs:
                break
            more = sweep(command(folder), folder)
            print(
                f"    the same command again: {more.wall_s:.1f} s, exit code {more.exit_code}, "
                f"{more.results} of {num_runs} results"
            )
        total = STEPS * num_runs
        print(f"    steps done more than once: {repeated(folder)} of {total}", flush=True)


def main() -> None:
    chosen = options(
        {
            "runs": "60",
            "slots": "2",
            "peers": sys.executable,
            "engines": ",".join(ENGINES),
            "parts": "calm,struck",
        }
    )
    num_runs, slots = int(chosen["runs"]), int(chosen["slots"])
    print(f"{num_runs} runs of 1 s on {slots} slots: at best {num_runs / slots:.0f} s")
    for name in chosen["engines"].split(","):
        engine = ENGINES[name]
        python = sys.executable if name == "ours" else chosen["peers"]
        found = subprocess.run([python, "-c", f"import {engine.needs}"], capture_output=True)
        if found.returncode:
            print(f"{engine.name}: not installed for {python}, left out")
            continue
        race(engine, python, num_runs, slots, chosen["parts"].split(","))


if __name__ == "__main__":
    main()
