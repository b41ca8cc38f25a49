"""A whole training step, forward, backward, clipping and AdamW: tokens per second, side by side.

    python benchmarks/step.py [rungs=small|ladder|all] [rounds=5] [threads=1] [compile=no]
                              [profile=no] [json=FILE]

`ours` is what a run does, without multi-token prediction, which the published loop lacks; `by
autograd` the same without playing back captured passes; `grouped` with `grouped_mm` for the
experts; `bf16` what a run with precision=bf16 does, `bf16, autocast` the framework's way of it;
`published` the published modelling code's way of computing (benchmarks/published.py) with the same
weights, in eager mode, clipped and stepped by the framework (fused AdamW), its loss checked against
ours; `dense` our own model without experts whose
feed-forward is as wide as makes its FLOPs per token equal: the price of sparsity is its tokens per
second over ours. All take turns in one run, in the environment of a training process. rungs=ladder
are the laptop's ladder's, and one wider still. compile=yes adds the published way under
`torch.compile`, which takes minutes. profile=yes lists the operations of a step of ours
that take more than 2 % of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from measuring import clock_for, in_worker_environment, interleaved, machine, options, write_json
from published import PublishedModel
from torch import Tensor, nn

from model.accounting import flops_per_token
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.captured import Captured
from model.training.config import OptimizerConfig, Precision
from model.training.optim import build_optimizer, clip_gradients
from model.training.precision import computing_here, computing_in
from model.transformer import Transformer, build_model


class Rung(NamedTuple):
    width: int
    layers: int
    experts: int
    top_k: int
    expert_width: int
    sequences: int
    length: int
    vocabulary: int = 256
    ladder: bool = False
    """With the laptop recipe's heads of 16 that each have keys of their own, and no dense layer."""


SMALL = (
    Rung(48, 3, 32, 4, 12, 1, 128),
    Rung(96, 3, 32, 4, 24, 4, 128),
    Rung(128, 4, 64, 4, 64, 8, 256, 4096),
)
LADDER = tuple(
    Rung(width, 2, 32, 4, width // 4, 2, 128, 257, ladder=True)
    for width in (16, 32, 48, 64, 80, 112)
)
ALL = (*SMALL, Rung(128, 4, 256, 8, 32, 8, 256, 4096), Rung(256, 4, 64, 8, 64, 8, 256, 4096))
RUNGS = {"small": SMALL, "ladder": LADDER, "all": (*ALL, *LADDER)}
"""By the word of the command line."""


def model_config(rung: Rung) -> ModelConfig:
    head = 16 if rung.ladder else max(8, rung.width // 8)
    heads = rung.width // head
    return ModelConfig(
        vocab_size=rung.vocabulary,
        hidden_size=rung.width,
        num_layers=rung.layers,
        num_dense_layers=0 if rung.ladder else 1,
        dense_width=3 * rung.width,
        attention=AttentionConfig(
            num_heads=heads,
            num_kv_heads=heads if rung.ladder else 1,
            head_dim=head,
            rotary_dim=head // 2,
        ),
        moe=MoEConfig(
            num_experts=rung.experts,
            experts_per_token=rung.top_k,
            expert_width=rung.expert_width,
            num_groups=8,
            groups_per_token=4,
        ),
        init_std=0.02,
    )


def equally_dense(config: ModelConfig, length: int) -> ModelConfig:
    """Without experts, and with the feed-forward width whose FLOPs per token come nearest."""
    aim = flops_per_token(config, length).house

    def miss(width: int) -> float:
        dense = replace(config, moe=None, dense_width=width)
        return abs(flops_per_token(dense, length).house - aim)

    return replace(
        config, moe=None, dense_width=min(range(4, 40 * config.hidden_size, 4), key=miss)
    )


def trained(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    rung: Rung,
    *,
    by_framework: bool = False,
    captured: Captured | None = None,
) -> Callable:
    """One step of training as a function; returns the loss."""
    optimizer: torch.optim.Optimizer = build_optimizer(model, OptimizerConfig(peak_lr=1e-3))
    if by_framework:
        optimizer = torch.optim.AdamW(optimizer.param_groups, fused=True)
    draw = torch.Generator().manual_seed(0)
    parameters = list(model.parameters())

    def forward_backward(windows: Tensor) -> float:
        found = None if captured is None else captured.forward_backward(windows)
        if found is not None:
            return found.loss_nats
        optimizer.zero_grad(set_to_none=True)
        nats = loss(windows[:, :-1], windows[:, 1:])
        nats.backward()
        return nats.item()

    def step() -> float:
        windows = torch.randint(rung.vocabulary, (rung.sequences, rung.length + 1), generator=draw)
        nats = forward_backward(windows)
        if by_framework:
            nn.utils.clip_grad_norm_(parameters, 1.0)
        else:
            optimizer.clip(1.0) or clip_gradients(parameters, 1.0)
        optimizer.step()
        return nats

    return step


def ways(rung: Rung, *, compile_too: bool) -> dict[str, Callable]:
    config = model_config(rung)
    found: dict[str, Callable] = {}

    def add(
        name: str,
        model: Transformer,
        *,
        precision: Precision = "fp32",
        context: Callable = computing_here,
        capture: bool = True,
    ) -> None:
        def loss(tokens_BT: Tensor, targets_BT: Tensor) -> Tensor:
            with context(precision, torch.device("cpu")):
                return model(tokens_BT, targets_BT).loss_nats

        captured = Captured(model, precision) if capture else None
        found[name] = trained(model, loss, rung, captured=captured)

    published = PublishedModel(build_model(config, seed=0))
    add("ours", build_model(config, seed=0))
    add("by autograd", build_model(config, seed=0), capture=False)
    add("bf16", build_model(config, seed=0), precision="bf16")
    autocast = build_model(config, seed=0)
    add("bf16, autocast", autocast, precision="bf16", context=computing_in, capture=False)
    add("grouped", build_model(config, seed=0, kernel="grouped"))
    found["published"] = trained(published, published, rung, by_framework=True)
    add("dense", build_model(equally_dense(config, rung.length), seed=0))
    if compile_too:
        published = PublishedModel(build_model(config, seed=0))
        compiled = torch.compile(published)
        found["published, compiled"] = trained(published, compiled, rung, by_framework=True)
    return found


def profiled(step: Callable) -> None:
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(3):
            step()
    events = sorted(
        recorded.key_averages(), key=lambda event: event.self_cpu_time_total, reverse=True
    )
    total = sum(event.self_cpu_time_total for event in events)
    for event in events:
        if event.self_cpu_time_total > 0.02 * total:
            share = event.self_cpu_time_total / total
            print(f"    {share:>5.1%}  {event.count / 3:>6.0f} calls a step  {event.key}")
    calls = sum(event.count for event in events if event.key.startswith("aten::")) / 3
    print(f"    {calls:.0f} framework operations a step, nested ones counted each")


def main() -> None:
    chosen = options(
        {
            "rungs": "small",
            "rounds": "5",
            "threads": "1",
            "compile": "no",
            "profile": "no",
            "json": "",
        }
    )
    threads = int(chosen["threads"])
    in_worker_environment(threads)
    torch.set_num_threads(threads)
    print(machine(), flush=True)
    rows = []
    for rung in RUNGS[chosen["rungs"]]:
        steps = ways(rung, compile_too=chosen["compile"] == "yes")
        losses = {name: step() for name, step in steps.items()}
        miss = abs(losses["published"] - losses["ours"]) / losses["ours"]
        print(f"{rung}\n    first loss of published and ours apart by {miss:.1e}", flush=True)
        assert miss < 1e-5, "the published way and ours do not compute the same model"
        times = interleaved(steps, clock=clock_for(threads), rounds=int(chosen["rounds"]))
        tokens = rung.sequences * rung.length
        for name, timing in times.items():
            row = {
                **rung._asdict(),
                "way": name,
                "threads": threads,
                "tokens_per_s": tokens / timing.median,
                "tokens_per_s_low": tokens / timing.high,
                "tokens_per_s_high": tokens / timing.low,
                "vs_published": times["published"].median / timing.median,
                "time_of_dense": timing.median / times["dense"].median,
            }
            rows.append(row)
            print(
                f"  {name:<20}{row['tokens_per_s']:>9.0f} tokens/s "
                f"({row['tokens_per_s_low']:.0f} to {row['tokens_per_s_high']:.0f})"
                f"{row['vs_published']:>7.2f}x published"
                f"{row['time_of_dense']:>7.2f} of dense's time",
                flush=True,
            )
        if chosen["profile"] == "yes":
            profiled(steps["ours"])
    write_json(chosen["json"], machine=machine(), rows=rows)


if __name__ == "__main__":
    main()
