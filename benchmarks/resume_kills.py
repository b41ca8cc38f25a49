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
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.checkpoint import checkpoint_paths, read_checkpoint
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    StageConfig,
    SyntheticCorpus,
    TrainConfig,
)
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.sources import DataStage
from model.training.trainer import train

WALL_CLOCK = ("tokens_per_s", "wall_s")

MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=16,
    num_layers=2,
    dense_width=32,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=8, experts_per_token=2, expert_width=8, num_groups=2, groups_per_token=1
    ),
    init_std=0.02,
)
TRAIN = TrainConfig(
    tokens=128 * 16,
    batch_tokens=128,
    sequence_length=32,
    seed=3,
    optimizer=OptimizerConfig(peak_lr=3e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(heldout_tokens=512, num_intermediate=3),
    checkpoint=CheckpointConfig(every_s=0.0),
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
        train(MODEL, TRAIN, corpus, RuntimeConfig(), Path(folder, "reference"))
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
            train(MODEL, TRAIN, corpus, RuntimeConfig(), run_dir)
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
    text = (run_dir / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        for name in WALL_CLOCK:
            line.pop(name, None)
    newest = checkpoint_paths(run_dir / "checkpoints")[0]
    return read_checkpoint(newest).tensors, lines


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
