"""Kill a small training run at random moments, resume it, and compare every bit of the end.

    python benchmarks/resume_kills.py --trials 200

Each trial trains the same run, of three stages: the text's mixture, its sequence length, the rotary
embedding, the learning rate and the balance rate change on the way. It is killed (SIGKILL) at a
random moment between its start and its end, up to ``--kills`` times, and then left to finish. It
has a checkpoint after every step, so that many kills fall into the writing of one. Compared are all
tensors of the last checkpoint (weights, optimizer, biases, random state) and all lines of
metrics.jsonl, wall-clock fields left out. Prints how many trials were identical; exits with 1
unless all were.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "model" / "training"))

import toy_runs
from toy_runs import RUNTIME, last_tensors, lines_without_clock

from model.training.config import BalanceConfig, OptimizerConfig, StageConfig
from model.training.corpora import SyntheticCorpus
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.sources import DataStage
from model.training.trainer import train

MODEL = replace(toy_runs.MODEL, moe=replace(toy_runs.MODEL.moe, num_groups=2, groups_per_token=1))
TRAIN = replace(
    toy_runs.TRAIN,
    tokens=128 * 16,
    optimizer=OptimizerConfig(peak_lr=3e-3),
    balance=BalanceConfig(),
    evaluation=replace(toy_runs.TRAIN.evaluation, heldout_tokens=512, num_intermediate=3),
    checkpoint=replace(toy_runs.TRAIN.checkpoint, every_s=0.0),
    stages=(
        StageConfig(name="long", rope_base=1e5, yarn_factor=2.0, lr_factor=0.5, balance_rate=1e-4),
    ),
)
ALL = {"synthetic": 1.0}
CORPUS = SyntheticCorpus(
    tokens=20_000,
    num_symbols=16,
    stages=(
        DataStage(name="first", frac=0.4, weights=ALL),
        DataStage(name="long", frac=0.35, weights=ALL, sequence_length=64),
        DataStage(name="last", frac=0.25, weights=ALL),
    ),
)


def main() -> int:
    """Run the trials and say how they went."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--kills", type=int, default=3, help="kills in a trial, at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # before any thread exists: the children are forks
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        corpus = prepare_corpus(CORPUS, Path(folder))
        # In this process, so that what torch loads at the first step is there before the forks.
        train(MODEL, TRAIN, corpus, RUNTIME, Path(folder, "reference"))
        expected = measured(Path(folder, "reference"))
        began = time.monotonic()
        if attempt(corpus, Path(folder, "unbroken"), None) != 0:
            raise SystemExit("the unbroken run failed")
        duration_s = time.monotonic() - began
        num_identical = num_kills = 0
        for trial in range(options.trials):
            run_dir = Path(folder, f"trial-{trial}")
            for _ in range(rng.randint(1, options.kills)):
                status = attempt(corpus, run_dir, rng.uniform(0, duration_s))
                num_kills += status == -signal.SIGKILL
            began = time.monotonic()
            if attempt(corpus, run_dir, None) != 0:
                print(f"trial {trial}: did not finish")
                continue
            # What else the machine does changes: follow it, or the kills come too late or too soon.
            duration_s = 0.7 * duration_s + 0.3 * 2 * (time.monotonic() - began)
            num_identical += difference(expected, measured(run_dir), f"trial {trial}") == ""
            shutil.rmtree(run_dir)
    print(f"{options.trials} trials, {num_kills} kills: {num_identical} identical finals")
    return 0 if num_identical == options.trials else 1


def attempt(corpus: PreparedCorpus, run_dir: Path, kill_after_s: float | None) -> int:
    """Train in a child process; its exit code, negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            train(MODEL, TRAIN, corpus, RUNTIME, run_dir)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def measured(run_dir: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Last tensors and all lines, without what a clock decides."""
    return last_tensors(run_dir), lines_without_clock(run_dir)


def difference(
    expected: tuple[dict[str, torch.Tensor], list[dict[str, Any]]],
    found: tuple[dict[str, torch.Tensor], list[dict[str, Any]]],
    name: str,
) -> str:
    """What differs, also printed; empty when nothing does."""
    tensors, lines = expected
    for key, tensor in tensors.items():
        if key not in found[0] or not torch.equal(tensor, found[0][key]):
            print(f"{name}: {key} differs")
            return key
    if lines != found[1]:
        print(f"{name}: metrics.jsonl differs: {len(lines)} lines expected, {len(found[1])} found")
        return "metrics.jsonl"
    return ""


if __name__ == "__main__":
    sys.exit(main())
