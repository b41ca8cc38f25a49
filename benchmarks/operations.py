"""Where a training step's time goes: its compiled operations one by one, ours beside dense.

    python benchmarks/operations.py [rungs=small|ladder|all] [rounds=20] [threads=1]
        [precision=fp32|bf16] [json=FILE]

The calls of one step into compiled code, forward, backward, clipping and AdamW, are written down as
they are made and made again in their order, each with a clock around it: `in place` is what an
operation takes between its neighbours, `at once` the same call directly after itself, with its data
in the caches and, where it multiplies on the tile unit, with that awake. The difference is what a
benchmark of the operation alone does not show. `dense` is the model without experts of equal FLOPs
per token (benchmarks/step.py): what the mixture takes more, operation by operation, is the price of
sparsity. Microseconds a step, medians over rounds, calls of one name added up.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from measuring import in_worker_environment, machine, options, write_json
from step import RUNGS, Rung, equally_dense, model_config

from model.config import ModelConfig
from model.kernels.recording import Call, recorded
from model.training.adamw import AdamW
from model.training.config import OptimizerConfig, Precision
from model.training.optim import build_optimizer
from model.training.precision import computing_here
from model.transformer import build_model


class Step(NamedTuple):
    """Every call into compiled code that one step makes, in its order."""

    calls: list[Call]
    alive: tuple[object, ...]
    """Whose memory the calls read and write."""


def one_step(config: ModelConfig, rung: Rung, precision: Precision) -> Step:
    model = build_model(config, seed=0)
    optimizer = build_optimizer(model, OptimizerConfig(peak_lr=1e-3))
    assert isinstance(optimizer, AdamW)
    draw = torch.Generator().manual_seed(0)
    windows = torch.randint(rung.vocabulary, (rung.sequences, rung.length + 1), generator=draw)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with computing_here(precision, windows.device):
            model(windows[:, :-1], windows[:, 1:]).loss_nats.backward()
        optimizer.clip(1.0)
        optimizer.step()

    step()  # compiles, and makes room for the moments
    with recorded() as calls:
        step()
    return Step([call.ready() for call in calls], (model, optimizer))


def name_of(call: Call) -> str:
    return call.function.__name__.removeprefix("wt_")


def microseconds(once: Callable[[], object]) -> float:
    began = time.perf_counter()
    once()
    return 1e6 * (time.perf_counter() - began)


def by_name(calls: Sequence[Call], times: Sequence[float]) -> dict[str, float]:
    found: dict[str, float] = defaultdict(float)
    for call, us in zip(calls, times, strict=True):
        found[name_of(call)] += us
    return found


def medians(rounds: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}


def in_place(call: Call) -> float:
    return microseconds(call.again)


def at_once(call: Call) -> float:
    call.again()
    return microseconds(call.again)


def measure(calls: Sequence[Call], how: Callable[[Call], float], rounds: int) -> dict[str, float]:
    """Microseconds of each operation in a step."""
    return medians([by_name(calls, [how(call) for call in calls]) for _ in range(rounds)])


def rows_of(rung: Rung, precision: Precision, rounds: int) -> list[dict]:
    config = model_config(rung)
    ours = one_step(config, rung, precision)
    dense = one_step(equally_dense(config, rung.length), rung, precision)
    ours_us = measure(ours.calls, in_place, rounds)
    alone_us = measure(ours.calls, at_once, rounds)
    dense_us = measure(dense.calls, in_place, rounds)
    count = Counter(map(name_of, ours.calls))
    return [
        {
            **rung._asdict(),
            "precision": precision,
            "operation": name,
            "calls": count[name],
            "in_place_us": ours_us.get(name, 0.0),
            "at_once_us": alone_us.get(name, 0.0),
            "dense_us": dense_us.get(name, 0.0),
        }
        for name in sorted(
            ours_us.keys() | dense_us.keys(), key=lambda name: -ours_us.get(name, 0.0)
        )
    ]


def show(rung: Rung, rows: Sequence[dict]) -> None:
    print(f"{rung}\n  {'operation':<26} calls   in place   at once     dense, us a step")
    totals = [sum(row[key] for row in rows) for key in ("in_place_us", "at_once_us", "dense_us")]
    for row in rows:
        if max(row["in_place_us"], row["dense_us"]) > 0.01 * totals[0]:
            print(
                f"  {row['operation']:<26} {row['calls']:>5} {row['in_place_us']:>10.0f}"
                f"{row['at_once_us']:>10.0f}{row['dense_us']:>10.0f}"
            )
    print(
        f"  {'all':<26}      {totals[0]:>11.0f}{totals[1]:>10.0f}{totals[2]:>10.0f}"
        f"   price of sparsity {totals[0] / totals[2]:.2f}",
        flush=True,
    )


def main() -> None:
    chosen = options(
        {"rungs": "small", "rounds": "20", "threads": "1", "precision": "fp32", "json": ""}
    )
    threads = int(chosen["threads"])
    in_worker_environment(threads)
    torch.set_num_threads(threads)
    print(machine(), flush=True)
    precision: Precision = "bf16" if chosen["precision"] == "bf16" else "fp32"
    found = []
    for rung in RUNGS[chosen["rungs"]]:
        rows = rows_of(rung, precision, int(chosen["rounds"]))
        show(rung, rows)
        found += rows
    write_json(chosen["json"], machine=machine(), threads=threads, rows=found)


if __name__ == "__main__":
    main()
