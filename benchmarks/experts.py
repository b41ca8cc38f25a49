"""One expert layer, forward and backward: every way to compute it, side by side in one run.

    python benchmarks/experts.py [shapes=quick|all|0,3,5] [dtype=fp32,bf16] [threads=1] [rounds=5]
        [compile=no] [json=FILE]

`loop` is the published modelling file's training path (a masked gather, a SwiGLU and a masked
scatter an expert); `grouped_mm` is `torch.nn.functional.grouped_mm` under autograd with the visits
sorted by expert; `grouped` is the same product with the project's written-out backward; `bmm` pads
all experts to the largest; `cpu` is the fused kernel as it would be chosen, `cpu vectors` and
`cpu tiles` on one unit of the CPU, `cpu recompute` keeps nothing for its backward; `compiled ...`
are the former under torch.compile (compile=yes, on the first shape only: it takes half a minute
each).

All run in the environment of a training process (memory kept by the allocator), so the framework's
own ways have their best here. One thread is timed in processor seconds, more in wall seconds.
`error` is the largest relative error of the output and all gradients against float64. `peak` is the
share of the multiply-adds that one core was seen to do in registers, in the row's number format,
times the threads: fp32 multiply-adds in vectors even for fp32 products on the tile unit, which can
do more; bf16 on the faster of both units. `memory` is what autograd keeps besides the inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from measuring import (
    ceiling,
    clock_for,
    in_worker_environment,
    interleaved,
    machine,
    options,
    write_json,
)
from torch import Tensor, nn

from model.experts import routed_experts
from model.kernels import cpu

# Shapes: T tokens, D model width, E experts, K experts per token, H expert width, P = T·K visits.


class Shape(NamedTuple):
    tokens: int
    width: int
    experts: int
    top_k: int
    expert_width: int
    skew: float = 0.0
    """Spread of the experts' popularity, in logits; at 2 the largest takes many times the mean."""

    @property
    def flops(self) -> int:
        return 18 * self.tokens * self.top_k * self.width * self.expert_width


SHAPES = (
    Shape(2048, 64, 16, 2, 32),
    Shape(4096, 128, 64, 4, 64),
    Shape(4096, 128, 256, 8, 32),
    Shape(4096, 128, 256, 8, 32, skew=2.0),
    Shape(2048, 256, 64, 4, 128),
    Shape(2048, 64, 64, 4, 16),
    Shape(8192, 64, 64, 4, 16),
    Shape(4096, 64, 256, 8, 16),
    Shape(4096, 128, 16, 2, 128),
    Shape(4096, 128, 64, 4, 64, skew=2.0),
    Shape(4096, 256, 64, 8, 64),
    Shape(4096, 256, 256, 8, 64),
    Shape(8192, 256, 64, 4, 128),
    Shape(2048, 512, 16, 2, 256),
    Shape(4096, 512, 64, 8, 128),
)
QUICK = SHAPES[:5]


def chosen_shapes(words: str) -> tuple[Shape, ...]:
    """``quick``, ``all``, or numbers in the list, as in ``5,6,9``."""
    named = {"quick": QUICK, "all": SHAPES}
    return named[words] if words in named else tuple(SHAPES[int(i)] for i in words.split(","))


class Inputs(NamedTuple):
    x_TD: Tensor
    expert_TK: Tensor
    gate_TK: Tensor
    w_gate_up: Tensor
    w_down: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        gate_dtype = torch.promote_types(dtype, torch.float32)
        return Inputs(
            *(
                tensor
                if tensor.dtype == torch.int64
                else tensor.detach().to(kind, copy=True).requires_grad_()
                for tensor, kind in zip(self, (dtype, dtype, gate_dtype, dtype, dtype), strict=True)
            )
        )

    @property
    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in self if tensor.requires_grad)


def draw(shape: Shape) -> Inputs:
    draw = torch.Generator().manual_seed(0)
    popularity = shape.skew * torch.randn(shape.experts, generator=draw)
    wish = popularity + torch.randn(shape.tokens, shape.experts, generator=draw)
    return Inputs(
        torch.randn(shape.tokens, shape.width, generator=draw),
        wish.topk(shape.top_k).indices,
        torch.rand(shape.tokens, shape.top_k, generator=draw),
        torch.randn(shape.experts, 2 * shape.expert_width, shape.width, generator=draw)
        / shape.width**0.5,
        torch.randn(shape.experts, shape.expert_width, shape.width, generator=draw)
        / shape.expert_width**0.5,
    )


def grouped_mm(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    order_P = expert.flatten().argsort()
    token_P = order_P // expert.shape[1]
    ends_E = torch.bincount(expert.flatten(), minlength=w_out.shape[0]).cumsum(0, dtype=torch.int32)
    gate_half, up_half = F.grouped_mm(x[token_P], w_in.mT, offs=ends_E).chunk(2, dim=-1)
    answer = F.grouped_mm(F.silu(gate_half) * up_half, w_out, offs=ends_E)
    answer = answer * gate.flatten()[order_P, None].to(answer.dtype)
    return torch.zeros_like(x).index_add(0, token_P, answer)


def padded_bmm(x: Tensor, expert: Tensor, gate: Tensor, w_in: Tensor, w_out: Tensor) -> Tensor:
    num_experts = w_out.shape[0]
    expert_P = expert.flatten()
    load_E = torch.bincount(expert_P, minlength=num_experts)
    order_P = expert_P.argsort()
    token_P, capacity = order_P // expert.shape[1], int(load_E.max())
    first_E = load_E.cumsum(0) - load_E
    group_P = expert_P[order_P]
    place_P = group_P * capacity + torch.arange(len(order_P), device=x.device) - first_E[group_P]
    padded = x.new_zeros(num_experts * capacity, x.shape[1]).index_put((place_P,), x[token_P])
    padded = padded.view(num_experts, capacity, -1)
    gate_half, up_half = torch.bmm(padded, w_in.mT).chunk(2, dim=-1)
    answer = torch.bmm(F.silu(gate_half) * up_half, w_out).flatten(0, 1)[place_P]
    answer = answer * gate.flatten()[order_P, None].to(answer.dtype)
    return torch.zeros_like(x).index_add(0, token_P, answer)


class Loop(nn.Module):
    """The published training path: one module an expert, masks over all visits."""

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        halves = [w.detach().chunk(2) for w in inputs.w_gate_up]
        self.gate, self.up, self.down = (
            nn.ParameterList([w.clone() for w in matrices])
            for matrices in (
                [gate for gate, _ in halves],
                [up for _, up in halves],
                [w.detach().T for w in inputs.w_down],
            )
        )

    def forward(self, x: Tensor, expert: Tensor, gate: Tensor) -> Tensor:
        visits = x.repeat_interleave(expert.shape[1], dim=0)
        expert_P = expert.flatten()
        y = torch.empty_like(visits)
        for i in range(len(self.gate)):
            mine = visits[expert_P == i]
            inner = F.silu(F.linear(mine, self.gate[i])) * F.linear(mine, self.up[i])
            y[expert_P == i] = F.linear(inner, self.down[i])
        return (y.view(*expert.shape, -1) * gate[..., None]).sum(1).to(x.dtype)

    def weight_gradients(self) -> tuple[Tensor, Tensor]:
        d_in = [torch.cat([g.grad, u.grad]) for g, u in zip(self.gate, self.up, strict=True)]
        return torch.stack(d_in), torch.stack([w.grad.T for w in self.down])


Compute = Callable[..., Tensor]


def alternatives(inputs: Inputs, dtype: torch.dtype, *, compiled: bool) -> dict[str, Compute]:
    """Name -> function of :class:`Inputs` in the type that alternative wants."""
    loop = Loop(inputs.to(dtype))

    def of_door(**settings: object) -> Compute:
        return lambda *tensors: routed_experts(*tensors, dtype=dtype, **settings)  # type: ignore[arg-type]

    ways: dict[str, Compute] = {
        "loop": loop,
        "grouped_mm": grouped_mm,
        "grouped": of_door(kernel="grouped"),
        "bmm": padded_bmm,
        "cpu": of_door(kernel="cpu"),
        "cpu recompute": of_door(kernel="cpu", recompute=True),
    }
    ways |= {
        f"cpu {unit}": lambda *tensors, unit=unit: cpu.routed_experts(
            *tensors, dtype=dtype, unit=unit
        )
        for unit in cpu.units(dtype)
    }
    if compiled:
        ways["compiled loop"] = compiled_loop = Loop(inputs.to(dtype))
        compiled_loop.compile()  # in place: it stays a Loop
        for name in ("grouped_mm", "bmm"):
            ways[f"compiled {name}"] = torch.compile(ways[name])
    return ways


def step(compute: Compute, inputs: Inputs, towards: Tensor) -> Tensor:
    for leaf in inputs.leaves:
        leaf.grad = None
    if isinstance(compute, Loop):
        compute.zero_grad(set_to_none=True)
        y = compute(*inputs[:3])
    else:
        y = compute(*inputs)
    y.backward(towards)
    return y


def results(compute: Compute, inputs: Inputs, y: Tensor) -> list[Tensor]:
    weights = (inputs.w_gate_up.grad, inputs.w_down.grad)
    if isinstance(compute, Loop):
        weights = compute.weight_gradients()
    return [y.detach(), inputs.x_TD.grad, inputs.gate_TK.grad, *weights]  # type: ignore[list-item]


def kept_bytes(compute: Compute, inputs: Inputs) -> int:
    """Bytes of the storages that autograd keeps and that are not the caller's own."""
    given = {tensor.untyped_storage().data_ptr() for tensor in inputs}
    if isinstance(compute, Loop):
        given |= {p.untyped_storage().data_ptr() for p in compute.parameters()}
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in given:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = compute(*(inputs[:3] if isinstance(compute, Loop) else inputs))
    del y
    return sum(seen.values())


def truth(inputs: Inputs, towards: Tensor) -> list[Tensor]:
    exact = inputs.to(torch.float64)
    y = step(lambda *tensors: routed_experts(*tensors, kernel="reference"), exact, towards.double())
    return results(lambda: y, exact, y)


def measure(
    shape: Shape, dtype_name: str, *, threads: int, rounds: int, compiled: bool
) -> list[dict]:
    dtype = torch.float32 if dtype_name == "fp32" else torch.bfloat16
    inputs = draw(shape)
    towards = torch.randn(shape.tokens, shape.width, generator=torch.Generator().manual_seed(1))
    exact = truth(inputs, towards)
    work, rows = {}, {}
    for name, compute in alternatives(inputs, dtype, compiled=compiled).items():
        # The fused kernel rounds by itself; everything else is given tensors of the type.
        own = inputs.to(torch.float32 if name.startswith("cpu") else dtype)
        aim = towards.to(own.x_TD.dtype)
        try:
            y = step(compute, own, aim)
        except Exception as refusal:
            rows[name] = {"refused": str(refusal).strip().splitlines()[0][:100]}
            continue
        found = results(compute, own, y)
        rows[name] = {
            "error": max(
                float((mine.double() - true).norm() / true.norm())
                for mine, true in zip(found, exact, strict=True)
            ),
            "kept_bytes": kept_bytes(compute, own),
        }
        work[name] = lambda compute=compute, own=own, aim=aim: step(compute, own, aim)
    times = interleaved(work, clock=clock_for(threads), rounds=rounds)
    common = {**shape._asdict(), "dtype": dtype_name, "threads": threads}
    return [
        common
        | {"way": name}
        | row
        | (
            {
                "seconds": times[name].median,
                "seconds_low": times[name].low,
                "seconds_high": times[name].high,
                "gflops": shape.flops / times[name].median / 1e9,
                "speedup_vs_grouped": times["grouped_mm"].median / times[name].median,
                "speedup_vs_loop": times["loop"].median / times[name].median,
            }
            if name in times
            else {}
        )
        for name, row in rows.items()
    ]


def show(row: dict, peak_gflops: float) -> None:
    if "refused" in row:
        print(f"  {row['way']:<22} {row['refused']}")
        return
    row["of_peak"] = row["gflops"] / peak_gflops / row["threads"] if peak_gflops else 0.0
    spread = f"({1e3 * row['seconds_low']:.2f} to {1e3 * row['seconds_high']:.2f})"
    print(
        f"  {row['way']:<22}{1e3 * row['seconds']:>9.2f} ms {spread:<20}"
        f"{row['gflops']:>7.0f} GFLOP/s {row['of_peak']:>5.0%} of peak "
        f"{row['speedup_vs_grouped']:>6.2f}x grouped_mm {row['speedup_vs_loop']:>6.1f}x loop "
        f"{row['kept_bytes'] / 2**20:>8.1f} MiB kept   error {row['error']:.1e}",
        flush=True,
    )


def main() -> None:
    chosen = options(
        {
            "shapes": "quick",
            "dtype": "fp32,bf16",
            "threads": "1",
            "rounds": "5",
            "compile": "no",
            "json": "",
        }
    )
    threads = int(chosen["threads"])
    in_worker_environment(threads)
    torch.set_num_threads(threads)
    most = ceiling()
    print(f"{machine()}\none core at most: {most}")
    rows = []
    for i, shape in enumerate(chosen_shapes(chosen["shapes"])):
        for dtype in chosen["dtype"].split(","):
            print(f"{shape} {dtype}, {threads} thread(s)")
            found = measure(
                shape,
                dtype,
                threads=threads,
                rounds=int(chosen["rounds"]),
                compiled=chosen["compile"] == "yes" and i == 0,
            )
            for row in found:
                show(row, most.gflops(dtype))
            rows += found
    write_json(chosen["json"], machine=machine(), ceiling=most.__dict__, rows=rows)


if __name__ == "__main__":
    main()
