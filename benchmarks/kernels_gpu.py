"""One expert layer on a CUDA device, bfloat16, forward and backward: the ways there are.

    python benchmarks/kernels_gpu.py [rounds=10] [json=FILE]

`grouped_mm`, `grouped` and `bmm` are those of benchmarks/experts.py; each is timed with the
device's own events, in turn, after a warm-up. `peak` is the share of a dense 8192³ product's speed
measured in the same run. Without a CUDA device it says so and measures nothing. Not yet run on one.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable

import torch
from experts import Shape, draw, grouped_mm, padded_bmm, step, truth
from measuring import options, write_json

from model.experts import routed_experts

SHAPES = (
    Shape(4096, 128, 64, 4, 64),
    Shape(4096, 128, 256, 8, 32),
    Shape(4096, 256, 256, 8, 64),
    Shape(8192, 2048, 256, 8, 512),
    Shape(8192, 2048, 256, 8, 512, skew=2.0),
    Shape(65536, 2048, 256, 8, 512),
)
LARGEST_CHECKED = 10**12
"""FLOPs above which the comparison with float64 is left out: it would take minutes."""


def milliseconds(work: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def median_ms(work: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 3):
        for name, once in work.items():
            elapsed = milliseconds(once)
            if turn >= 3:
                times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


def dense_tflops() -> float:
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / median_ms({"dense": lambda: a @ b}, 10)["dense"] / 1e9


def grouped(*tensors: torch.Tensor) -> torch.Tensor:
    return routed_experts(*tensors, kernel="grouped")


def measure(shape: Shape, peak_tflops: float, rounds: int) -> list[dict]:
    drawn = draw(shape)
    towards = torch.randn(shape.tokens, shape.width, generator=torch.Generator().manual_seed(1))
    inputs = drawn._replace(**{name: tensor.cuda() for name, tensor in drawn._asdict().items()}).to(
        torch.bfloat16
    )
    aim = towards.to("cuda", torch.bfloat16)
    ways = {"grouped_mm": grouped_mm, "grouped": grouped, "bmm": padded_bmm}
    exact = truth(drawn, towards)[0] if shape.flops < LARGEST_CHECKED else None
    work, rows = {}, {}
    for name, compute in ways.items():
        try:
            y = step(compute, inputs, aim)
        except Exception as refusal:
            print(f"  {name:<12} {str(refusal).strip().splitlines()[0][:100]}")
            continue
        rows[name] = {**shape._asdict(), "way": name}
        if exact is not None:
            rows[name]["error"] = float((y.detach().cpu().double() - exact).norm() / exact.norm())
        work[name] = lambda compute=compute: step(compute, inputs, aim)
    for name, elapsed in median_ms(work, rounds).items():
        tflops = shape.flops / elapsed / 1e9
        rows[name] |= {"ms": elapsed, "tflops": tflops, "of_peak": tflops / peak_tflops}
        error = rows[name].get("error", float("nan"))
        print(
            f"  {name:<12}{elapsed:>9.3f} ms {tflops:>7.1f} TFLOP/s "
            f"{tflops / peak_tflops:>5.0%} of peak   error {error:.1e}",
            flush=True,
        )
    return list(rows.values())


def main() -> int:
    chosen = options({"rounds": "10", "json": ""})
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    name, peak = torch.cuda.get_device_name(), dense_tflops()
    print(f"{name}, dense bfloat16 product {peak:.0f} TFLOP/s")
    rows = []
    for shape in SHAPES:
        print(shape, flush=True)
        rows += measure(shape, peak, int(chosen["rounds"]))
    write_json(chosen["json"], device=name, dense_tflops=peak, rows=rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
