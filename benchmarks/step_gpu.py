"""A whole training step on a CUDA device: tokens per second, side by side.

    python benchmarks/step_gpu.py [rungs=small,large] [rounds=5] [seconds=200] [compile=no]
                                  [profile=no] [json=FILE]

`ours` and `ours, bf16` are what a run does with precision fp32 and bf16: forward and backward pass,
clipping, update, balance of the experts, counts of their use. Small models' passes are CUDA graphs;
`by autograd` is the same without them, `grouped` with `grouped_mm` for the experts. `published` is
the published modelling code's way of computing (benchmarks/published.py) with the same weights,
under bfloat16 autocast in `published, bf16`, clipped and stepped by the framework (fused AdamW),
free to leave other bits every time, which ours is not; compile=yes adds it under `torch.compile`.
`dense` is our own model without experts, with the feed-forward width that makes its FLOPs per token
equal. All take turns in one run; the first losses of ours and the published way are compared.
`device busy` is how long its kernels took, by the profiler. profile=yes lists what a step of ours
launches.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import torch
from measuring import interleaved, options, write_json
from published import PublishedModel
from step import LADDER, SMALL, Rung, equally_dense, model_config

from model.config import ModelConfig
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    Precision,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.graphed import Graphed
from model.training.health import Health
from model.training.run import initial_state
from model.training.runtime import set_up
from model.training.stages import Stage
from model.training.step import take_step
from model.training.whole import WholeModel
from model.transformer import build_model

RUNGS = {
    "ladder": LADDER[::2],
    "small": (LADDER[2], SMALL[2]),
    "large": (
        Rung(512, 8, 128, 8, 128, 16, 1024, 32768),
        Rung(256, 6, 64, 8, 64, 16, 512, 16384),
    ),
}
"""By the word of the command line."""


def train_config(rung: Rung, precision: Precision) -> TrainConfig:
    tokens = rung.sequences * rung.length
    return TrainConfig(
        tokens=tokens * 1_000_000,
        batch_tokens=tokens,
        sequence_length=rung.length,
        seed=0,
        precision=precision,
        optimizer=OptimizerConfig(peak_lr=1e-3),
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(heldout_tokens=rung.length, num_intermediate=0),
        checkpoint=CheckpointConfig(every_s=1e9),
    )


def drawn(rung: Rung) -> Callable[[], torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    shape = (rung.sequences, rung.length + 1)
    return lambda: torch.randint(rung.vocabulary, shape, generator=draw)


def ours(
    config: ModelConfig,
    rung: Rung,
    precision: Precision = "fp32",
    *,
    graph: bool = True,
    kernel: str | None = None,
) -> Callable[[], float]:
    """One step of a run."""
    device = set_up(RuntimeConfig())
    train = train_config(rung, precision)
    state = initial_state(config, train, device)
    with nullcontext() if graph else patch.object(Graphed, "serves", return_value=False):
        learner = WholeModel(config, train, state, device)
    if kernel is not None:
        for block in learner.model.blocks:
            if hasattr(block.feed_forward, "experts"):
                block.feed_forward.experts.kernel = kernel
    health = Health(config, train.num_steps)
    stage = Stage(
        name="",
        last_step=train.num_steps,
        sequence_length=rung.length,
        attention=config.attention,
        lr_factor=1.0,
        balance=train.balance,
    )
    windows = drawn(rung)

    def step() -> float:
        before = state.line_nats
        reason = take_step(learner, windows(), train, stage, 1e-3, health)
        assert not reason, reason
        return state.line_nats - before

    return step


def published(
    config: ModelConfig, rung: Rung, *, bf16: bool = False, compiled: bool = False
) -> Callable[[], float]:
    model = PublishedModel(build_model(config, seed=0)).cuda()
    compute = torch.compile(model) if compiled else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.1, fused=True)
    windows = drawn(rung)

    def step() -> float:
        torch.use_deterministic_algorithms(False)
        batch = windows().cuda()
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=bf16):
            nats = compute(batch[:, :-1], batch[:, 1:])
        nats.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        torch.use_deterministic_algorithms(True)
        return nats.item()

    return step


def ways(rung: Rung, *, compile_too: bool) -> dict[str, Callable[[], float]]:
    config = model_config(rung)
    found = {
        "ours": ours(config, rung),
        "ours, by autograd": ours(config, rung, graph=False),
        "ours, bf16": ours(config, rung, "bf16"),
        "ours, bf16, by autograd": ours(config, rung, "bf16", graph=False),
        "published": published(config, rung),
        "published, bf16": published(config, rung, bf16=True),
        "dense": ours(equally_dense(config, rung.length), rung),
        "dense, bf16": ours(equally_dense(config, rung.length), rung, "bf16"),
    }
    if rung.expert_width % 8 == 0:  # grouped_mm takes rows of whole 16 bytes
        found["ours, bf16, grouped"] = ours(config, rung, "bf16", graph=False, kernel="grouped")
    if compile_too:
        found["published, bf16, compiled"] = published(config, rung, bf16=True, compiled=True)
    return found


def device_ms(step: Callable[[], object], calls: int = 10) -> tuple[float, list[tuple[str, float]]]:
    """What the device is busy with in a step, in all and by kernel."""
    from torch.profiler import ProfilerActivity, profile

    step()
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(calls):
            step()
        torch.cuda.synchronize()
    by_kernel = [
        (event.key, event.self_device_time_total / 1e3 / calls, event.count / calls)
        for event in recorded.key_averages()
    ]
    by_kernel.sort(key=lambda row: -row[1])
    total = sum(row[1] for row in by_kernel)
    return total, [(f"{count:>5.0f} x {key[:90]}", ms) for key, ms, count in by_kernel]


def main() -> int:
    chosen = options(
        {
            "rungs": "small,large",
            "rounds": "5",
            "seconds": "200",
            "compile": "no",
            "profile": "no",
            "json": "",
        }
    )
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    begun = time.monotonic()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}", flush=True)
    rows = []
    for rung in (rung for word in chosen["rungs"].split(",") for rung in RUNGS[word]):
        if time.monotonic() - begun > float(chosen["seconds"]):
            print(f"{rung}: not measured, the time is over")
            continue
        steps = ways(rung, compile_too=chosen["compile"] == "yes")
        losses = {}
        for way, step in [*steps.items()]:
            try:
                losses[way] = step()
            except RuntimeError as refusal:
                print(f"  {way:<26}{str(refusal).splitlines()[0][:120]}", flush=True)
                del steps[way]
        miss = abs(losses["published"] - losses["ours"]) / losses["ours"]
        print(f"{rung}\n    first loss of published and ours apart by {miss:.1e}", flush=True)
        assert miss < 1e-4, "the published way and ours do not compute the same model"
        times = interleaved(
            steps, clock=time.perf_counter, rounds=int(chosen["rounds"]), at_least_s=0.1
        )
        tokens = rung.sequences * rung.length
        for way, timing in times.items():
            busy, kernels = device_ms(steps[way]) if way in ("ours", "ours, bf16") else (0.0, [])
            base = "published, bf16" if "bf16" in way else "published"
            dense = "dense, bf16" if "bf16" in way else "dense"
            row = {
                **rung._asdict(),
                "way": way,
                "step_ms": 1e3 * timing.median,
                "step_ms_low": 1e3 * timing.low,
                "step_ms_high": 1e3 * timing.high,
                "tokens_per_s": tokens / timing.median,
                "device_ms": busy,
                "vs_published": times[base].median / timing.median,
                "time_of_dense": timing.median / times[dense].median,
            }
            rows.append(row)
            print(
                f"  {way:<26}{row['step_ms']:>9.3f} ms ({row['step_ms_low']:.3f} to "
                f"{row['step_ms_high']:.3f}), device busy {busy:>8.3f}"
                f"{row['tokens_per_s']:>10.0f} tokens/s{row['vs_published']:>7.2f}x {base}"
                f"{row['time_of_dense']:>7.2f} of {dense}'s time",
                flush=True,
            )
            if chosen["profile"] == "yes" and way in ("ours", "ours, bf16"):
                for key, ms in kernels[:14]:
                    print(f"      {ms:>7.3f} ms {key}")
        write_json(chosen["json"], device=name, rows=rows)
        del steps
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
