"""A real worker whose training is a toy: no torch, quick steps, checkpoints every few steps.

The claim, the heartbeat, the fence and the publishing are the product's own code; only what happens
between them is replaced. The "loss" is a hash chain over the steps, so that it comes out right only
if every step was done once, in order, across any number of interruptions.

What a run does besides is told by ``toy.json`` beside the runs' folder: how long a step takes,
which seeds fail, diverge or fill the disk, and under ``hold`` by run the step at which its first,
second, ... attempt waits until it is ended from outside: a blow then falls where it should, however
slow the machine is.
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from analysis.records import DomainLoss, RunRecord
from model.files import write_atomic
from sweeps import pulse
from sweeps.attempt import Progress
from sweeps.described import described
from sweeps.files import write_json
from sweeps.spec import RunSpec, run_id
from sweeps.worker import Report, main

CHECKPOINT_STEPS = 5
pulse.BEAT_S = 0.1


def measure(spec: RunSpec, attempt_dir: Path, report: Report) -> RunRecord:
    settings = json.loads((attempt_dir.parents[3] / "toy.json").read_text())
    folder = attempt_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    saved = folder / "state.json"
    step, chain = 0, run_id(spec)
    if saved.exists():
        state = json.loads(saved.read_text())
        step, chain = state["step"], state["chain"]
    metrics = attempt_dir / "metrics.jsonl"
    rows = metrics.read_text().splitlines()[:step] if metrics.exists() else []
    write_atomic(metrics, "".join(f"{row}\n" for row in rows).encode(), durable=False)
    num_steps = settings.get("steps", 20)
    holds = settings.get("hold", {}).get(run_id(spec), [])
    number = int(attempt_dir.name)
    held_at = holds[number - 1] if number <= len(holds) else 0
    with open(metrics, "a", buffering=1) as file:
        while step < num_steps:
            time.sleep(settings.get("step_s", 0.0))
            step += 1
            chain = hashlib.sha256(f"{chain} {step}".encode()).hexdigest()
            file.write(json.dumps({"step": step, "chain": chain}) + "\n")
            if step % CHECKPOINT_STEPS == 0:
                write_json(saved, {"step": step, "chain": chain}, durable=False)
            if step == num_steps // 2 + 1:
                _misbehave(spec.train.seed, settings)
            progress = Progress(step=step, num_steps=num_steps, tokens_per_s=1e3, loss=2.0)
            report(progress)
            while step == held_at:
                time.sleep(0.02)
                report(progress)
    loss = 1 + int(chain[:8], 16) / 2**32
    return toy_record(spec, loss, diverged=spec.train.seed in settings.get("diverge", []))


def measure_pack(
    specs: Sequence[RunSpec],
    attempt_dirs: Sequence[Path],
    reports: Sequence[Report],
    on_record: Callable[[int, RunRecord], None],
) -> None:
    """One after the other, as far as each is: what is shared besides the process is no concern."""
    for index, (spec, folder, report) in enumerate(zip(specs, attempt_dirs, reports, strict=True)):
        on_record(index, measure(spec, folder, report))


def _misbehave(seed: int, settings: dict) -> None:
    if seed in settings.get("fail", []):
        raise ValueError("the toy was told to fail")
    if seed in settings.get("disk_full", []):
        raise OSError(28, "No space left on device")
    if seed in settings.get("die", []):
        os.kill(os.getpid(), 9)


def toy_record(spec: RunSpec, loss: float, *, diverged: bool = False) -> RunRecord:
    return RunRecord(
        **described(spec),
        status="diverged" if diverged else "done",
        reason="the toy was told to diverge" if diverged else "",
        loss_nats=loss,
        bits_per_byte=loss / 0.6931,
        train_loss_nats=loss,
        by_domain={"toy": DomainLoss(loss_nats=loss, bits_per_byte=loss / 0.6931, tokens=1)},
        load_by_layer=(),
        wall_s=1.0,
        tokens_per_s=1.0,
    )


if __name__ == "__main__":
    sys.exit(main(measure=measure, measure_pack=measure_pack))
