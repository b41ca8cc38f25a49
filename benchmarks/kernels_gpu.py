"""One expert layer on a CUDA device, forward and backward: the ways there are, side by side.

    python benchmarks/kernels_gpu.py [shapes=all] [dtype=bf16] [rounds=10] [seconds=300]
                                     [autograd=caller|thread] [json=FILE]

`triton` is the project's own kernel, `triton recompute` the same keeping only its inputs, `triton
fp8` with FP8 products (its share is still that of the bfloat16 peak); `grouped_mm`, `grouped` and
`bmm` are those of benchmarks/experts.py; `liger`, `scattermoe` and `sonicmoe` are measured where
they are installed. All take turns within one run, timed by the device's own events after a
warm-up.

`ms` is a step as a program would call it, launches included, of it `host` on the host; `graph` the
same step replayed as a CUDA graph, without them, where it can be captured. `of peak` is the share
of a dense 8192³ product's speed measured in the same run, of the faster of the two. `error` is the
largest relative error of the output and all gradients against float64 (computed on the device).
autograd=caller has the backward pass of all ways made by the calling thread, as a run has it;
autograd=thread leaves it to the framework's thread for the device. `kept` is what autograd keeps
besides the inputs.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from experts import (
    Compute,
    Inputs,
    Shape,
    draw,
    grouped_mm,
    kept_bytes,
    padded_bmm,
    results,
    step,
    truth,
)
from measuring import options, write_json
from public_experts import found
from torch import Tensor

from model.experts import routed_experts
from model.kernels.select import fp8_experts, has_fused_fp8

SMALL = (
    Shape(4096, 64, 16, 2, 32),
    Shape(4096, 128, 64, 4, 64),
    Shape(4096, 128, 256, 8, 32),
    Shape(8192, 256, 256, 8, 64),
    Shape(8192, 512, 64, 8, 128),
)
MINI = (
    Shape(8192, 2048, 256, 8, 512),
    Shape(8192, 2048, 256, 8, 512, skew=2.0),
    Shape(16384, 2048, 256, 8, 512),
    Shape(65536, 2048, 256, 8, 512),
)
CHECKED_FLOPS = 2 * 10**12
"""Above this the comparison with float64 is left out, for its memory."""


SAMPLE_MS = 20.0
"""A sample is as many steps one behind the other as take this long, as in a training run: a
single one would begin with an idle device that waits for the host."""


def milliseconds(work: Callable[[], object], calls: int = 1) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(calls):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def median_ms(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Quartiles of each in turn: low, median, high."""
    times: dict[str, list[float]] = {name: [] for name in work}
    calls = {}
    for name, once in work.items():
        milliseconds(once)
        calls[name] = max(1, int(SAMPLE_MS / milliseconds(once)))
    for _ in range(rounds):
        for name, once in work.items():
            times[name].append(milliseconds(once, calls[name]))
    return {name: statistics.quantiles(values, n=4) for name, values in times.items()}


def host_ms(work: Callable[[], object], calls: int = 20) -> float:
    """What the host spends on a step; the device is far behind where its work takes longer."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    for _ in range(calls):
        work()
    elapsed = time.perf_counter() - begun
    torch.cuda.synchronize()
    return 1e3 * elapsed / calls


def dense_tflops() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / median_ms({"dense": lambda: a @ b}, 20)["dense"][1] / 1e9


def alternatives(inputs: Inputs) -> tuple[dict[str, tuple[Compute, Inputs]], dict[str, str]]:
    """Name -> (function, its inputs in its own layout), and what there is not."""

    def of_door(**settings: object) -> Compute:
        return lambda *tensors: routed_experts(*tensors, **settings)  # type: ignore[arg-type]

    ways: dict[str, tuple[Compute, Inputs]] = {
        "triton": (of_door(kernel="triton"), inputs),
        "triton recompute": (of_door(kernel="triton", recompute=True), inputs),
        "grouped_mm": (grouped_mm, inputs),
        "grouped": (of_door(kernel="grouped"), inputs),
        "bmm": (padded_bmm, inputs),
    }
    if has_fused_fp8(inputs.x_TD, inputs.w_down):
        ways["triton fp8"] = (fp8_experts, inputs)
    public, missing = found()
    for name, (compute, own_layout) in public.items():
        w_in, w_out = (
            w.detach().requires_grad_() for w in own_layout(inputs.w_gate_up, inputs.w_down)
        )
        ways[name] = compute, inputs._replace(w_gate_up=w_in, w_down=w_out)
    return ways, missing


def as_graph(compute: Compute, inputs: Inputs, aim: Tensor) -> Callable[[], object] | None:
    """The step as a CUDA graph, or None where it waits for the host."""
    graph = torch.cuda.CUDAGraph()
    aside = torch.cuda.Stream()
    try:
        with torch.cuda.stream(aside):
            for _ in range(2):
                step(compute, inputs, aim)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=aside):
            # Not backward(), which adds up on the stream that a leaf was first used on.
            torch.autograd.grad(compute(*inputs), inputs.leaves, aim)
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def measure(shape: Shape, dtype: torch.dtype, peak_tflops: float, rounds: int) -> list[dict]:
    drawn = draw(shape)
    drawn = Inputs(*(tensor.cuda() for tensor in drawn))
    inputs = drawn.to(dtype)
    towards = torch.randn(shape.tokens, shape.width, generator=torch.Generator().manual_seed(1))
    aim = towards.cuda().to(dtype)
    exact = truth(inputs, aim) if shape.flops < CHECKED_FLOPS else None
    ways, missing = alternatives(inputs)
    for name, reason in missing.items():
        print(f"  {name:<18} not measured: {reason}")
    rows: dict[str, dict] = {}
    work: dict[str, Callable[[], object]] = {}
    for name, (compute, own) in ways.items():
        try:
            y = step(compute, own, aim)
            # The public kernels' weights lie in another order: their first three results count.
            comparable = 5 if own.w_down is inputs.w_down else 3
            got = results(compute, own, y)[:comparable]
            row = {**shape._asdict(), "way": name, "kept_bytes": kept_bytes(compute, own)}
        except Exception as refusal:
            print(f"  {name:<18} {str(refusal).strip().splitlines()[0][:100]}", flush=True)
            continue
        if exact is not None:
            row["error"] = max(
                float((mine.double() - true).norm() / true.norm())
                for mine, true in zip(got, exact, strict=False)
            )
        rows[name] = row
        work[name] = lambda compute=compute, own=own: step(compute, own, aim)
    times = median_ms(work, rounds)
    replays = {}
    for name in work:
        if name.startswith("triton") and (replay := as_graph(*ways[name], aim)) is not None:
            replays[name] = replay
    for name, quartiles in median_ms(replays, rounds).items():
        rows[name]["graph_ms"] = quartiles[1]
    for name, (low, median, high) in times.items():
        best = min(median, rows[name].get("graph_ms", median))
        tflops = shape.flops / best / 1e9
        rows[name] |= {
            "ms": median,
            "ms_low": low,
            "ms_high": high,
            "host_ms": host_ms(work[name]),
            "tflops": tflops,
            "of_peak": tflops / peak_tflops,
            "speedup_vs_grouped": times["grouped_mm"][1] / median,
        }
        show(rows[name])
    return list(rows.values())


def show(row: dict) -> None:
    graph = f"{row['graph_ms']:>8.3f}" if "graph_ms" in row else f"{'-':>8}"
    error = f"{row['error']:.1e}" if "error" in row else "not checked"
    print(
        f"  {row['way']:<18}{row['ms']:>9.3f} ms ({row['ms_low']:.3f} to {row['ms_high']:.3f}) "
        f"host {row['host_ms']:.3f} graph {graph}  {row['tflops']:>6.1f} TFLOP/s "
        f"{row['of_peak']:>4.0%} of peak {row['speedup_vs_grouped']:>5.2f}x grouped_mm "
        f"{row['kept_bytes'] / 2**20:>8.1f} MiB kept   error {error}",
        flush=True,
    )


def main() -> int:
    chosen = options(
        {
            "shapes": "all",
            "dtype": "bf16",
            "rounds": "10",
            "seconds": "300",
            "autograd": "caller",
            "json": "",
        }
    )
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    begun = time.monotonic()
    name, peak = torch.cuda.get_device_name(), dense_tflops()
    print(
        f"{name}, torch {torch.__version__}, dense bfloat16 product {peak:.0f} TFLOP/s", flush=True
    )
    rows = []
    shapes = {"small": SMALL, "mini": MINI, "all": SMALL + MINI}[chosen["shapes"]]
    torch.autograd.set_multithreading_enabled(chosen["autograd"] == "thread")
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen["dtype"]]
    for shape in shapes:
        if time.monotonic() - begun > float(chosen["seconds"]):
            print(f"{shape}: not measured, the time is over")
            continue
        print(shape, flush=True)
        rows += measure(shape, dtype, peak, int(chosen["rounds"]))
        torch.cuda.empty_cache()
        write_json(chosen["json"], device=name, dense_tflops=peak, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
