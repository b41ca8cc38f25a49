"""What a step of each optimizer takes, alone and as a part of a training step.

    python benchmarks/optimizers.py [rungs=small|ladder|all] [rounds=9] [threads=1] [json=FILE]

`adamw`: the compiled pass over all parameters. `muon`: hidden matrices by the compiled step, one
matrix in one visit; `batched`: the same by the framework's batched products. `torch.optim.Muon`:
the framework's optimizer, which takes matrices one at a time, on as many parameters as there are
matrices, with its AdamW for the rest. All take turns. `x muon` is a time over the compiled step's.

`GFLOP/s`: five iterations of X Xᵀ, its square and their polynomial times X, counted whole, in the
compiled step's time; the kernel computes half of the two symmetric products. `training` is a whole
step, forward and backward and clipping included, with Muon over one with AdamW.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measuring import clock_for, in_worker_environment, interleaved, machine, options, write_json
from step import RUNGS, Rung, model_config
from torch import nn

from model.config import ModelConfig
from model.kernels import muon as kernel
from model.muon_rule import update_flops
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.matrices import hidden_matrices
from model.training.optim import build_optimizer
from model.training.run import initial_state
from model.training.whole import WholeModel
from model.transformer import build_model

OPTIMIZERS = {
    "adamw": OptimizerConfig(peak_lr=1e-3),
    "muon": OptimizerConfig(kind="muon", muon=MuonConfig(), peak_lr=1e-3),
}


def with_gradients(model: nn.Module) -> None:
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=draw)


def by_the_framework(config: ModelConfig) -> Callable[[], None]:
    """Every hidden matrix as a parameter of its own."""
    model = build_model(config, seed=0)
    matrices = [
        nn.Parameter(torch.randn(stack.rows, stack.cols))
        for stacks in hidden_matrices(model, per_head=False).values()
        for stack in stacks
        for _ in range(stack.num)
    ]
    hidden = set(hidden_matrices(model, per_head=False))
    rest = [parameter for parameter in model.parameters() if parameter not in hidden]
    muon = torch.optim.Muon(matrices, lr=1e-3, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=1e-3, fused=True)
    for parameter in (*matrices, *rest):
        parameter.grad = torch.randn_like(parameter)

    def step() -> None:
        muon.step()
        adamw.step()

    return step


def steps(config: ModelConfig) -> dict[str, Callable[[], object]]:
    found: dict[str, Callable[[], object]] = {}
    for name, optimizer in OPTIMIZERS.items():
        model = build_model(config, seed=0)
        with_gradients(model)
        found[name] = build_optimizer(model, optimizer).step
    compiled = found["muon"]

    def batched() -> None:
        serves, kernel.serves = kernel.serves, lambda slots: False
        try:
            compiled()
        finally:
            kernel.serves = serves

    return {**found, "batched": batched, "torch.optim.Muon": by_the_framework(config)}


def training(config: ModelConfig, rung: Rung, optimizer: OptimizerConfig) -> Callable[[], object]:
    tokens = rung.sequences * rung.length
    train = TrainConfig(
        tokens=tokens * 100,
        batch_tokens=tokens,
        sequence_length=rung.length,
        seed=0,
        optimizer=optimizer,
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
    )
    device = torch.device("cpu")
    learner = WholeModel(config, train, initial_state(config, train, device), device)
    draw = torch.Generator().manual_seed(0)
    windows = torch.randint(rung.vocabulary, (rung.sequences, rung.length + 1), generator=draw)

    def step() -> None:
        learner.forward_backward(windows)
        learner.clip(1.0)
        learner.update(1e-3)

    return step


def main() -> None:
    chosen = options({"rungs": "ladder", "rounds": "9", "threads": "1", "json": ""})
    threads, rounds = int(chosen["threads"]), int(chosen["rounds"])
    in_worker_environment(threads)
    torch.set_num_threads(threads)
    rows = []
    for rung in RUNGS[chosen["rungs"]]:
        config = model_config(rung)
        times = interleaved(steps(config), clock=clock_for(threads), rounds=rounds)
        ways = {name: training(config, rung, each) for name, each in OPTIMIZERS.items()}
        whole = interleaved(ways, clock=clock_for(threads), rounds=rounds)
        muon_s = times["muon"].median
        gflops = update_flops(config, per_head=False).total / muon_s / 1e9
        price = whole["muon"].median / whole["adamw"].median
        print(f"{rung}\n    {gflops:.0f} GFLOP/s, training x {price:.2f}", flush=True)
        for name, timing in times.items():
            spread = f"{timing.low * 1e6:,.0f} to {timing.high * 1e6:,.0f}"
            over = timing.median / muon_s
            print(f"    {name:17s} {timing.median * 1e6:9,.0f} us ({spread})  x muon {over:.2f}")
            rows.append(
                {
                    **rung._asdict(),
                    "optimizer": name,
                    "threads": threads,
                    "step_s": timing.median,
                    "low_s": timing.low,
                    "high_s": timing.high,
                    "muon_gflops": gflops,
                    "training_over_adamw": price,
                }
            )
    write_json(chosen["json"], machine=machine(), rows=rows)


if __name__ == "__main__":
    main()
