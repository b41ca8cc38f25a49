"""What a run is read out by, and what that does to the fitted exponents.

    windtunnel sweep sweep=readouts
    python benchmarks/readouts.py [--root tunnel]

Prints the held-out loss of every cell for the averages (linear: the mean), the decay branch from
the shared trunk, and the runs trained for their budget; then, for each, the exponents of
log L = c - a·log M - b·log D by least squares with their standard errors. Nine cells can't tell
a floor from an exponent, so there is none.
"""

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

from sweeps.plan_file import read_plan
from sweeps.store import Store

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--root", type=Path, default=Path("tunnel"))
store = Store(parser.parse_args().root)
plan = read_plan(store.plan_path("readouts"))

losses: dict[str, dict[tuple[float, int], float]] = defaultdict(dict)
noise: list[float] = []
for run in plan.measured:
    record = store.record(run.run_id)
    if record is None:
        raise SystemExit(f"{run.run_id} is not done; run `windtunnel sweep sweep=readouts` first")
    schedule = run.spec.train.schedule
    name = {"wsm": f"merge {schedule.decay_shape}", "cosine": "own cosine"}.get(
        schedule.kind, "branch" if schedule.trunk else "own wsd"
    )
    cell = (record.flops_per_token, record.tokens)
    if run.spec.role == "noise":
        noise.append(record.loss_nats)
        noise_at = (name, cell)
    else:
        losses[name][cell] = record.loss_nats
noise.append(losses[noise_at[0]][noise_at[1]])

names = sorted(losses)
print(f"{'M':>10} {'D':>8}", *(f"{name:>13}" for name in names))
for cell in sorted(losses["branch"]):
    row = [losses[name][cell] for name in names]
    print(f"{cell[0]:>10.3g} {cell[1]:>8}", *(f"{loss:>13.4f}" for loss in row))
print(f"{'mean less own wsd':>19}", end=" ")
for name in names:
    gaps = [losses[name][cell] - losses["own wsd"][cell] for cell in losses["own wsd"]]
    print(f"{np.mean(gaps):>+13.4f}", end=" ")
print(f"\nseeds of one cell differ by {np.std(noise, ddof=1):.4f} nats (standard deviation)")
for name in names:
    cells = sorted(losses[name])
    matrix = np.array([[1.0, -np.log(size), -np.log(tokens)] for size, tokens in cells])
    target = np.log([losses[name][cell] for cell in cells])
    fitted, rest, *_ = np.linalg.lstsq(matrix, target, rcond=None)
    covariance = np.linalg.inv(matrix.T @ matrix) * rest[0] / (len(cells) - 3)
    errors = np.sqrt(np.diag(covariance))
    print(
        f"{name:>14}: a = {fitted[1]:.4f} ± {errors[1]:.4f}, b = {fitted[2]:.4f} ± {errors[2]:.4f}"
    )
shared, separate = plan.train_flops, plan.separate_flops
print(
    f"training FLOPs {shared:.3g}; without sharing {separate:.3g} ({separate / shared:.2f} times)"
)
