"""Runs of one shape trained in a stack, against each by itself: milliseconds of a step a run.

    python benchmarks/packed.py [members=2,4,8] [sizes=0,1,2,3,4] [steps=100] [rounds=3]
                                [batch=256] [threads=1] [device=cpu] [json=FILE]

Shapes and sequences are those of the quickstart's ladder, whose batch is 256 tokens. Whole runs are
trained, seeds apart, by the trainer itself, on a generated text with little held out; what is not
a step (opening, evaluation, checkpoint) is measured by runs of one step and taken off. Printed too:
the largest difference of a run's final loss in the stack from that by itself.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from measuring import clock_for, in_worker_environment, machine, options, write_json

from model.config import ModelConfig
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.corpora import SyntheticCorpus
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.packed import Member, train_packed
from model.training.trainer import train
from sweeps.shape import shape_for
from windtunnel.commands.sweep import Config
from windtunnel.composition import load

CONF = Path(__file__).resolve().parents[1] / "conf"


def shapes(corpus: PreparedCorpus) -> list[ModelConfig]:
    """Of the quickstart's rungs."""
    sweep = load("sweep", Config, ["sweep=quickstart"], [CONF])
    ladder = sweep.ladder
    targets = [ladder.smallest_flops_per_token * ladder.size_ratio**i for i in range(ladder.sizes)]
    return [shape_for(sweep.recipe.shape, flops, 128, corpus.vocab_size) for flops in targets]


def config_of(steps: int, batch: int) -> TrainConfig:
    return TrainConfig(
        tokens=steps * batch,
        batch_tokens=batch,
        sequence_length=128,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=3e-3),
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(heldout_tokens=1024, num_intermediate=0),
        checkpoint=CheckpointConfig(every_s=1e9),
    )


def main() -> None:
    chosen = options(
        {
            "members": "2,4,8",
            "sizes": "0,1,2,3,4",
            "steps": "100",
            "rounds": "3",
            "batch": "256",
            "threads": "1",
            "device": "cpu",
            "json": "",
        }
    )
    threads, steps, batch = int(chosen["threads"]), int(chosen["steps"]), int(chosen["batch"])
    in_worker_environment(threads)
    logging.disable()
    device = "cpu" if chosen["device"] == "cpu" else "cuda"
    runtime = RuntimeConfig(threads=threads, device=device)
    # On a GPU the processor's time is not the run's.
    clock = clock_for(threads if device == "cpu" else 2)
    counts = [1, *map(int, chosen["members"].split(","))]
    print(machine(), torch.cuda.get_device_name() if device == "cuda" else "", flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        corpus = prepare_corpus(SyntheticCorpus(tokens=400_000), root / "data")
        every_shape = shapes(corpus)

        def seconds(shape: ModelConfig, count: int, num_steps: int) -> tuple[float, list[float]]:
            """Of ``count`` runs in a stack (of one by itself), and their losses."""
            config = config_of(num_steps, batch)
            with tempfile.TemporaryDirectory(dir=root) as folder:
                began = clock()
                if count == 1:
                    loss = train(shape, config, corpus, runtime, Path(folder)).loss_nats
                    return clock() - began, [loss]
                losses: dict[int, float] = {}
                members = [
                    Member(config=replace(config, seed=seed), run_dir=Path(folder) / str(seed))
                    for seed in range(count)
                ]
                train_packed(
                    shape,
                    members,
                    corpus,
                    runtime,
                    lambda index, result: losses.__setitem__(index, result.loss_nats),
                )
                return clock() - began, [losses[index] for index in range(count)]

        for size in map(int, chosen["sizes"].split(",")):
            shape = every_shape[size]
            seconds(shape, max(counts), 2)  # whatever is compiled or imported once
            times: dict[int, list[float]] = {count: [] for count in counts}
            losses = {}
            for _ in range(int(chosen["rounds"])):
                for count in counts:
                    most, losses[count] = seconds(shape, count, steps + 1)
                    least, _ = seconds(shape, count, 1)
                    times[count].append((most - least) / steps / count)
            alone = statistics.median(times[1])
            apart = max(abs(losses[count][0] - losses[1][0]) for count in counts)
            print(f"width {shape.hidden_size}, {shape.num_layers} layers, {batch} tokens")
            for count in counts:
                took = statistics.median(times[count])
                print(f"  {count:>2} in a stack: {1e3 * took:>6.2f} ms, {alone / took:.2f}x")
                rows.append(
                    {"width": shape.hidden_size, "batch": batch, "members": count, "step_s": took}
                )
            print(f"  final losses apart by at most {apart:.1e} nats", flush=True)
    write_json(chosen["json"], machine=machine(), rows=rows)


if __name__ == "__main__":
    main()
