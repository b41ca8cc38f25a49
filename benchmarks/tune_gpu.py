"""Which tilings of the Triton expert kernels are fastest on this device, product by product.

    python benchmarks/tune_gpu.py [width=2048] [experts=256] [top_k=8] [expert_width=512]
                                  [tokens=8192,65536] [dtype=bf16] [workers=12] [json=FILE]

Every candidate of every product is compiled by processes beside each other first. What it prints
goes into ``TILINGS`` of model/kernels/triton_tiling.py, with the device it was measured on.
"""

from __future__ import annotations

import multiprocessing
import sys
import time
from collections.abc import Callable

import torch
import triton
from experts import Shape, draw
from measuring import options, write_json

from model.kernels import triton_layer, triton_tiling
from model.kernels.triton_layer import Factor
from model.kernels.triton_sort import Visits, sort_visits
from model.kernels.triton_tiling import Tiling

CANDIDATES = {
    ("gate_up", 64): ("256 64 8 4 4", "256 64 4 2 4", "128 64 4 4 4"),
    ("gate_up", 128): ("256 64 8 4 4", "256 64 8 4 64", "256 64 8 3 4", "128 64 4 3 4"),
    ("project", 64): ("256 64 4 2 4", "256 64 8 4 4", "128 64 4 4 4"),
    ("project", 128): ("256 64 8 4 4", "256 64 8 3 4", "128 64 4 3 4"),
    ("down_grad", 64): ("128 64 4 4 4", "256 64 8 4 4"),
    ("down_grad", 128): ("128 64 8 4 4", "256 64 8 4 4", "256 64 8 3 4"),
    ("weight_grad", 128): ("128 64 4 3 4", "256 64 8 5 4", "128 32 4 3 4"),
}
"""Columns, depth, warps, stages, programs a multiprocessor, by product and rows."""


def candidates(product: str, rows: int) -> list[Tiling]:
    return [Tiling(rows, *map(int, words.split())) for words in CANDIDATES.get((product, rows), ())]


class Layer:
    """Inputs of all products of one layer at one size of tile."""

    def __init__(self, shape: Shape, rows: int, dtype: torch.dtype) -> None:
        drawn = draw(shape)
        self.x, self.gate = drawn.x_TD.cuda().to(dtype), drawn.gate_TK.cuda()
        self.w_in, self.w_out = drawn.w_gate_up.cuda().to(dtype), drawn.w_down.cuda().to(dtype)
        self.visits: Visits = sort_visits(drawn.expert_TK.cuda(), shape.experts, rows)
        visits = shape.tokens * shape.top_k
        self.h = torch.randn(visits, 2 * shape.expert_width, device="cuda", dtype=dtype)
        self.a = torch.randn(visits, shape.expert_width, device="cuda", dtype=dtype)

    def works(self) -> dict[str, tuple[str, Callable[[], object]]]:
        """Name -> (product, its launch)."""
        layer, v = triton_layer, self.visits
        x, a, h = Factor(self.x), Factor(self.a), Factor(self.h)
        w_in, w_out = Factor(self.w_in), Factor(self.w_out)
        return {
            "gate_up": ("gate_up", lambda: layer.gate_up(v, x, w_in, keep=True)),
            "project down": ("project", lambda: layer.project(v, a, w_out)),
            "project dx": ("project", lambda: layer.project(v, h, w_in)),
            "down_grad": ("down_grad", lambda: layer.down_grad(v, x, w_out, self.h, self.gate)),
            "weight_grad down": ("weight_grad", lambda: layer.weight_grad(v, self.a, self.x)),
            "weight_grad up": ("weight_grad", lambda: layer.weight_grad(v, self.h, self.x)),
        }


def flops(name: str, shape: Shape) -> int:
    double = name in ("gate_up", "project dx", "weight_grad up")
    return (4 if double else 2) * shape.tokens * shape.top_k * shape.width * shape.expert_width


def set_tiling(product: str, tiling: Tiling) -> None:
    triton_tiling.tiling.cache_clear()
    triton_tiling.TILINGS[product, tiling.rows] = tiling
    if product == "weight_grad":  # its rows follow the matrix, not the visits
        triton_tiling.TILINGS[product, 128] = tiling


def compile_one(job: tuple[Shape, torch.dtype, str, Tiling]) -> str:
    shape, dtype, name, tiling = job
    try:
        product, launch = Layer(shape._replace(tokens=64), tiling.rows, dtype).works()[name]
        set_tiling(product, tiling)
        launch()
        torch.cuda.synchronize()
    except Exception as refusal:
        return f"{name} {tiling}: {str(refusal).splitlines()[0][:90]}"
    return ""


def main() -> int:
    defaults = {"width": "2048", "experts": "256", "top_k": "8", "expert_width": "512"}
    chosen = options(
        defaults | {"tokens": "8192,65536", "dtype": "bf16", "workers": "12", "json": ""}
    )
    if not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    dtype = torch.bfloat16 if chosen["dtype"] == "bf16" else torch.float32
    width, experts, top_k, expert_width = (int(chosen[key]) for key in defaults)
    shapes = [
        Shape(int(tokens), width, experts, top_k, expert_width)
        for tokens in chosen["tokens"].split(",")
    ]
    names = list(Layer(shapes[0]._replace(tokens=64), 64, dtype).works().items())
    jobs = [
        (shapes[0], dtype, name, tiling)
        for name, (product, _) in names
        for rows in (64, 128)
        for tiling in candidates(product, rows)
    ]
    begun = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(int(chosen["workers"])) as pool:
        for refusal in pool.imap_unordered(compile_one, jobs):
            if refusal:
                print(refusal)
    print(f"{len(jobs)} candidates compiled in {time.monotonic() - begun:.0f} s", flush=True)

    rows_out = []
    for shape in shapes:
        print(shape, flush=True)
        for rows in (64, 128):
            layer = Layer(shape, rows, dtype)
            for name, (product, launch) in layer.works().items():
                for tiling in candidates(product, rows):
                    set_tiling(product, tiling)
                    try:
                        elapsed = triton.testing.do_bench(
                            launch, warmup=5, rep=40, return_mode="median"
                        )
                    except Exception as refusal:
                        print(f"  {name} {tiling}: {str(refusal).splitlines()[0][:90]}")
                        continue
                    tflops = flops(name, shape) / elapsed / 1e9
                    print(
                        f"  {name:<18}{rows:>4} x{tiling.cols:>4} x{tiling.depth:>4} "
                        f"{tiling.warps} warps {tiling.stages} stages {tiling.programs} programs "
                        f"{elapsed:>8.3f} ms "
                        f"{tflops:>6.0f} TFLOP/s",
                        flush=True,
                    )
                    rows_out.append(
                        {**shape._asdict(), "name": name, **tiling._asdict(), "ms": elapsed}
                    )
            del layer
    write_json(chosen["json"], device=torch.cuda.get_device_name(), rows=rows_out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
