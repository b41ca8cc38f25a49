"""Ling-mini-2.0's real shape, 16 billion parameters, trained for a few steps on one GPU.

    python benchmarks/ling_mini_gpu.py [sequences=8] [recompute=true] [in_backward=false]
        [kernel=] [steps=12] [settle=24] [warmup_steps=2000] [seconds=120] [profile=false]
        [json=FILE] ...

Weights and gradients in bfloat16, moments of one byte (`optimizer.kind=adamw8bit`): 98 GB before
the first activation; `in_backward=true` updates every parameter when its gradient is there and
drops that, 66 GB. The model, the losses, the balance rule and the optimizer are those of every run
(precision `bf16_weights`); only the initial values are drawn on the GPU. The tokens are drawn from
Zipf's law, so there is something to learn: how often each is.

The start is a real run's. The learning rate climbs over `warmup_steps`, Ling's 2,000; at its peak
from the first step on, all tokens choose the same experts within two steps, since draws have
nothing in common but how often each comes. Before the first case `settle` forward passes move the
selection biases, in steps that shrink from 0.03 to the run's own 0.001, as the balance rule does by
itself in the first hundred steps. Even loads that does not make: an untrained attention averages,
so that all positions of a sequence look alike to a deep router. At width 256 with 5 layers and
Ling's 256 experts the largest load falls from 14 times the mean above it to 7; a trained model is
nearer to 1. `settle=0 warmup_steps=0` is the worst case, a few experts with all the tokens.

`sequences`, `recompute`, `in_backward` and `kernel` take several values, `sequences=8,16`: all
combinations are tried in turn on the one model that was built, and one that does not fit is said
and left out. Tokens a second and model FLOPs (every product of the model once forward and twice
backward, attention by the causal half; nothing for what is computed again) stand beside the plan's
estimate, the measured peak of memory beside the plan's too.

`device=cpu model=tiny length=64 sequences=2 steps=3` tries it out anywhere.
"""

from __future__ import annotations

import itertools
import statistics
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measuring import options, write_json, yaml_values

from model.accounting import count_params, flops_per_token
from model.balance import load_metrics, update_biases
from model.config import ModelConfig
from model.experts import RoutedExperts
from model.kernels.select import select
from model.training.adamw8bit import AdamW8bit, update_in_backward
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.optim import build_optimizer, clip_gradients, set_learning_rate
from model.training.whole import forward_backward
from model.transformer import Transformer, build_model
from model.typed import build, to_plain
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import OneGpuPlan, one_gpu_plan

CONF = Path(__file__).resolve().parents[1] / "conf"
WARM_UP = 2
"""Steps that are not timed: kernels are compiled, the allocator finds its sizes."""
FIRST_BIAS_STEP = 0.03
"""A tenth of what the sigmoid scores of an untrained router spread over."""
DEFAULTS = {
    "model": "ling_mini",
    "device": "cuda",
    "hardware": "",
    "length": "4096",
    "sequences": "8",
    "recompute": "true",
    "in_backward": "false",
    "kernel": "",
    "steps": "12",
    "seconds": "120",
    "peak_lr": "3.36e-4",
    "warmup_steps": "2000",
    "settle": "24",
    "profile": "false",
    "json": "",
}


@dataclass(frozen=True)
class Case:
    """One way to spend the memory."""

    sequences: int
    recompute: bool
    in_backward: bool
    kernel: str

    def __str__(self) -> str:
        return (
            f"{self.sequences} sequences, blocks {'computed again' if self.recompute else 'kept'}, "
            f"updates {'within' if self.in_backward else 'after'} the backward pass, "
            f"kernel {self.kernel or 'chosen'}"
        )


def cases(chosen: dict[str, str]) -> Iterator[Case]:
    """All combinations of the values given."""
    lists = [
        chosen[name].split(",") for name in ("sequences", "recompute", "in_backward", "kernel")
    ]
    for sequences, recompute, in_backward, kernel in itertools.product(*lists):
        yield Case(int(sequences), recompute == "true", in_backward == "true", kernel)


class Clock:
    """Seconds of a stretch of work on either device."""

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"

    def now(self) -> float:
        if self.is_gpu:
            torch.cuda.synchronize()
        return time.perf_counter()


def training(config: ModelConfig, case: Case, length: int, peak_lr: float) -> TrainConfig:
    batch = case.sequences * length
    return TrainConfig(
        tokens=batch,
        batch_tokens=batch,
        sequence_length=length,
        seed=0,
        optimizer=OptimizerConfig(kind="adamw8bit", peak_lr=peak_lr),
        schedule=ScheduleConfig(kind="constant"),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        precision="bf16_weights",
    )


def batches(config: ModelConfig, case: Case, length: int, device: torch.device) -> Iterator[Any]:
    """Windows of tokens by Zipf's law, without end."""
    generator = torch.Generator(device).manual_seed(0)
    ranks = torch.arange(1, config.vocab_size + 1, device=device, dtype=torch.float64)
    reach = (1 / ranks).cumsum(0)
    while True:
        shape = case.sequences, length + 1
        draws = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        tokens = torch.searchsorted(reach, draws * reach[-1])
        yield tokens.clamp_(max=config.vocab_size - 1)


def settle(model: Transformer, source: Iterator[Any], passes: int) -> None:
    """Even the loads by the balance rule alone; weights stay as they are."""
    last = BalanceConfig().update_rate
    for turn in range(passes):
        rate = FIRST_BIAS_STEP * (last / FIRST_BIAS_STEP) ** (turn / max(1, passes - 1))
        batch = next(source)
        with torch.no_grad():
            routing = model(batch[:, :-1], batch[:, 1:]).routing
        loads = [stats.load_E for stats in routing]
        update_biases(model, loads, replace(BalanceConfig(), update_rate=rate))
        if loads and turn in (0, passes - 1):
            vio = load_metrics(torch.stack(loads).float()).max_vio
            print(
                f"  pass {turn:>3} of the biases alone: max vio {vio.mean():.2f}, "
                f"{vio.max():.2f} in the worst layer",
                flush=True,
            )


def measure(
    model: Transformer,
    optimizer: AdamW8bit,
    case: Case,
    chosen: dict[str, str],
    until: float,
) -> dict[str, Any]:
    """Steps of one case: their times, losses and memory."""
    config, device = model.config, model.embedding.weight.device
    length = int(chosen["length"])
    train = training(config, case, length, float(chosen["peak_lr"]))
    model.recompute = case.recompute
    for module in model.modules():
        if isinstance(module, RoutedExperts):
            module.kernel = case.kernel or None
    source = batches(config, case, length, device)
    handles = update_in_backward(model, optimizer) if case.in_backward else []
    clock = Clock(device)
    if clock.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps: list[dict[str, Any]] = []
    peaks: dict[str, int] = {}
    try:
        for step in range(int(chosen["steps"])):
            if time.perf_counter() > until:
                print(f"  out of time after {step} steps")
                break
            batch = next(source)
            warmed = (step + 1) / max(1, int(chosen["warmup_steps"]))
            set_learning_rate(optimizer, float(chosen["peak_lr"]) * min(1.0, warmed))
            began = clock.now()
            optimizer.zero_grad(set_to_none=True)
            gave = forward_backward(model, batch, train)
            passed = clock.now()
            norm = None  # of a gradient that never exists as a whole
            if not case.in_backward:
                norm = clip_gradients(model.parameters(), train.optimizer.clip_norm)
                optimizer.step()
            updated = clock.now()
            update_biases(model, gave.loads, train.balance)
            vio = (
                load_metrics(torch.stack(gave.loads).float()).max_vio.mean().item()
                if gave.loads
                else 0.0
            )
            ended = clock.now()
            steps.append(
                {
                    "loss_nats": gave.loss_nats,
                    "grad_norm": norm,
                    "max_vio": vio,
                    "step_s": ended - began,
                    "passes_s": passed - began,
                    "update_s": updated - passed,
                }
            )
            print(
                f"  step {step:>3}  loss {gave.loss_nats:7.4f}  grad norm "
                f"{'-' if norm is None else format(norm, '.3g'):>8}  max vio {vio:6.2f}  "
                f"{ended - began:7.3f} s ({passed - began:.3f} passes, "
                f"{updated - passed:.3f} update)",
                flush=True,
            )
        if clock.is_gpu:
            peaks["peak_bytes"] = torch.cuda.max_memory_allocated()
            peaks["peak_reserved_bytes"] = torch.cuda.max_memory_reserved()
        if chosen["profile"] == "true" and clock.is_gpu:
            optimizer.zero_grad(set_to_none=True)
            profile(model, optimizer, next(source), train)
    finally:
        for handle in handles:
            handle.remove()
        optimizer.zero_grad(set_to_none=True)
    if not steps:
        raise RuntimeError("no step was done")
    timed = [s["step_s"] for s in steps[WARM_UP:]] or [s["step_s"] for s in steps]
    found: dict[str, Any] = {
        "steps": len(steps),
        "step_s": statistics.median(timed),
        "step_s_range": [min(timed), max(timed)],
        "first_loss_nats": steps[0]["loss_nats"],
        "last_loss_nats": steps[-1]["loss_nats"],
        "by_step": steps,
        **peaks,
    }
    found["tokens_per_s"] = train.batch_tokens / found["step_s"]
    return found


def profile(
    model: Transformer, optimizer: AdamW8bit, batch: torch.Tensor, train: TrainConfig
) -> None:
    """Where the time of one more step goes, by kernel."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        forward_backward(model, batch, train)
        optimizer.step()
        torch.cuda.synchronize()
    print(
        seen.key_averages().table(
            sort_by="self_device_time_total", row_limit=25, max_name_column_width=70
        )
    )


def hardware_of(name: str, device: torch.device) -> Hardware:
    """``conf/hardware``'s entry for this GPU, or the one asked for."""
    if not name:
        found = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        name = next((key for key in ("h200", "h800", "b200") if key.upper() in found), "h100")
    return build(Hardware, yaml_values(CONF / "hardware" / f"{name}.yaml"), where=name)


def report(
    found: dict[str, Any], plan: OneGpuPlan, config: ModelConfig, hardware: Hardware, length: int
) -> None:
    """A case's figures beside the plan's."""
    flops = flops_per_token(config, length)
    causal = flops.others["all_matmuls"] - (flops.house - flops.others["causal_attention"])
    found["utilisation"] = causal * found["tokens_per_s"] / hardware.peak_flops_per_s
    found["utilisation_house_m"] = flops.house * found["tokens_per_s"] / hardware.peak_flops_per_s
    rows = [
        ("step, s", f"{found['step_s']:.3f}", f"{plan.step_s:.3f}"),
        ("tokens a second", f"{found['tokens_per_s']:,.0f}", f"{plan.tokens_per_s:,.0f}"),
        ("model FLOPs utilisation", f"{found['utilisation']:.1%}", f"{plan.utilisation:.1%}"),
        ("  by the house's M", f"{found['utilisation_house_m']:.1%}", ""),
    ]
    if "peak_bytes" in found:
        apart = plan.memory_bytes / found["peak_bytes"] - 1
        rows += [
            (
                "peak memory, GB",
                f"{found['peak_bytes'] / 1e9:.2f}",
                f"{plan.memory_bytes / 1e9:.2f} ({apart:+.1%})",
            ),
            ("  reserved by the allocator", f"{found['peak_reserved_bytes'] / 1e9:.2f}", ""),
        ]
    for part in ("weights", "moments", "gradients", "activations", "temporaries"):
        rows.append((f"  of it {part}", "", f"{getattr(plan, part) / 1e9:.2f}"))
    print(f"  {'':<28}{'measured':>14}{'plan':>22}")
    for name, measured, planned in rows:
        print(f"  {name:<28}{measured:>14}{planned:>22}")
    print(
        f"  {found['steps']} steps, loss {found['first_loss_nats']:.4f} -> "
        f"{found['last_loss_nats']:.4f} nats",
        flush=True,
    )


def main() -> int:
    chosen = options(DEFAULTS)
    began = time.perf_counter()
    until = began + float(chosen["seconds"])
    if chosen["device"] == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    device = torch.device(chosen["device"])
    config = build(ModelConfig, yaml_values(CONF / "model" / f"{chosen['model']}.yaml"))
    hardware = hardware_of(chosen["hardware"], device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, planned as {hardware.name}")
    model = build_model(config, seed=0, device=device, dtype=torch.bfloat16, drawn_on=device)
    optimizer = build_optimizer(
        model, OptimizerConfig(kind="adamw8bit", peak_lr=float(chosen["peak_lr"]))
    )
    assert isinstance(optimizer, AdamW8bit)
    params = count_params(config).total
    assert params == sum(p.numel() for p in model.parameters())
    print(f"{chosen['model']}: {params:,} parameters, built in {Clock(device).now() - began:.1f} s")
    if config.moe is not None:
        choice = select(
            torch.bfloat16, config.hidden_size, config.moe.expert_width, device=device.type
        )
        print(f"expert kernel where none is named: {choice.name} ({choice.reason})")
    length, rows = int(chosen["length"]), []
    first = batches(config, next(cases(chosen)), length, device)
    settle(model, first, int(chosen["settle"]))
    for case in cases(chosen):
        print(case, flush=True)
        plan = one_gpu_plan(
            config,
            hardware,
            sequence_length=length,
            sequences=case.sequences,
            recompute=case.recompute,
            updates_in_backward=case.in_backward,
        )
        row: dict[str, Any] = {
            **vars(case),
            "plan": {**to_plain(plan), "memory_bytes": plan.memory_bytes},
        }
        rows.append(row)
        try:
            found = measure(model, optimizer, case, chosen, until)
            report(found, plan, config, hardware, length)
            row |= found
        except Exception as trouble:
            row["trouble"] = f"{type(trouble).__name__}: {trouble}"
            if isinstance(trouble, torch.OutOfMemoryError):
                print(f"  does not fit: {str(trouble).splitlines()[0]}")
                print(f"  planned {plan.memory_bytes / 1e9:.1f} GB", flush=True)
            else:
                traceback.print_exc(file=sys.stdout)
        write_json(
            chosen["json"], device=name, torch=torch.__version__, hardware=hardware.name, cases=rows
        )
    print(f"{time.perf_counter() - began:.0f} s in all")
    return 0 if any("step_s" in row for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
