"""FP8 products on a Hopper GPU's units: do they agree with the emulation, and are they faster.

    python benchmarks/fp8_gpu.py [tokens=16384] [rounds=20] [quantize=kernel,plain] [json=FILE]

First small shapes with edges, then the linear layers of Ling-mini-2.0 by name. Of each layer the
three products of a step: y = x·wᵀ, dx = dy·w, dw = dyᵀ·x. `error` is the distance from the emulated
product of the same rounded operands, over its length: what the units' own sums add. `rounding` is
the emulation's distance from the product of the unrounded operands, for scale. Times are medians by
the device's own events, the ways in turn: `bf16` the product in bfloat16; `fp8` the product of
operands that are there in FP8; `round` what it takes to round both operands, and `rounded` the two
together (`kernel` or `plain`, by `quantize=`); `emulated` the product without the units.

A product that fails prints its error and the next is tried. Without a Hopper GPU it says so and
measures nothing; `device=cpu tokens=0` runs the emulation alone, on the shapes with edges, to try
the program out.
"""

from __future__ import annotations

import statistics
import sys
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from measuring import options, write_json
from torch import Tensor

from model import fp8
from model.fp8 import (
    Quantized,
    emulated,
    fp8_linear,
    quantize_blocks,
    quantize_blocks_plainly,
    quantize_tiles,
    quantize_tiles_plainly,
)


class Layer(NamedTuple):
    """A product's sizes."""

    name: str
    tokens: int
    outputs: int
    inputs: int


EDGES = (
    Layer("one tile", 128, 128, 128),
    Layer("rows left over", 100, 256, 384),
    Layer("all left over", 77, 200, 300),
    Layer("one row", 1, 128, 256),
)


def ling_mini(tokens: int) -> tuple[Layer, ...]:
    """Of conf/model/ling_mini.yaml; an expert sees 8 of 256 of the tokens. None of 0 tokens."""
    if not tokens:
        return ()
    visits = tokens * 8 // 256
    return (
        Layer("attention qkv", tokens, 3072, 2048),
        Layer("attention out", tokens, 2048, 2048),
        Layer("dense gate_up", tokens, 10240, 2048),
        Layer("dense down", tokens, 2048, 5120),
        Layer("shared gate_up", tokens, 1024, 2048),
        Layer("shared down", tokens, 2048, 512),
        Layer("expert gate_up", visits, 1024, 2048),
        Layer("expert down", visits, 2048, 512),
    )


PLAINLY: dict[str, Callable[[Tensor], Quantized]] = {
    "tiles": quantize_tiles_plainly,
    "blocks": quantize_blocks_plainly,
}


def distance(found: Tensor, expected: Tensor) -> float:
    found, expected = found.double(), expected.double()
    return ((found - expected).norm() / expected.norm().clamp(min=1e-30)).item()


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


class Operands(NamedTuple):
    """Of one product: as they are, and how each is rounded."""

    a: Tensor
    b: Tensor
    round_b: str
    dtype: torch.dtype

    def rounded(self, quantizers: dict[str, Callable[[Tensor], Quantized]]) -> tuple[Any, Any]:
        return quantizers["tiles"](self.a), quantizers[self.round_b](self.b)


def products(layer: Layer, device: str, seed: int) -> dict[str, Operands]:
    """Tokens, weight and gradient at random, some numbers much larger than the rest."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(rows, columns, generator=generator, device=device)
        outliers = torch.rand(rows, columns, generator=generator, device=device) < 1e-3
        return torch.where(outliers, 30 * x, x).to(dtype)

    x = draw(layer.tokens, layer.inputs, torch.bfloat16)
    w = draw(layer.outputs, layer.inputs, torch.float32) * 0.006
    dy = draw(layer.tokens, layer.outputs, torch.bfloat16) * 1e-4
    return {
        "y": Operands(x, w, "blocks", torch.bfloat16),
        "dx": Operands(dy, w.t(), "blocks", torch.bfloat16),
        "dw": Operands(dy.t(), x.t(), "tiles", torch.float32),
    }


def agreement(layer: Layer, device: str) -> list[dict[str, Any]]:
    """Every product of a layer on the units, against the emulation."""
    rows = []
    for name, operands in products(layer, device, seed=layer.tokens).items():
        a, b = operands.rounded(PLAINLY)
        expected = emulated(a, b, torch.float32)
        exact = operands.a.float() @ operands.b.float().t()
        row: dict[str, Any] = {**layer._asdict(), "product": name}
        row["rounding"] = distance(expected, exact)
        for dtype in (torch.bfloat16, torch.float32) if device == "cuda" else ():
            key = f"scaled_mm {str(dtype).removeprefix('torch.')}"
            try:
                row[key] = distance(fp8.on_units(a, b, dtype), expected)
            except Exception as trouble:
                row[key] = f"{type(trouble).__name__}: {str(trouble).strip().splitlines()[0]}"
        rows.append(row)
        shown = [
            f"{key}: {value:.1e}" if isinstance(value, float) else f"{key}: {value[:160]}"
            for key, value in row.items()
            if key not in ("name", "tokens", "outputs", "inputs", "product")
        ]
        print(f"  {layer.name:<16}{name:<4}" + "  ".join(shown), flush=True)
    return rows


def whole_layer(device: str) -> dict[str, Any]:
    """fp8_linear with its gradients: on the GPU against on the CPU, where it is emulated."""
    layer = products(Layer("", 1000, 1024, 512), "cpu", seed=3)
    x, w, dy = layer["y"].a.float(), layer["y"].b, layer["dx"].a
    results = []
    for where in ("cpu", device):
        inputs = [t.detach().to(where).requires_grad_() for t in (x, w)]
        y = fp8_linear(*inputs)
        y.backward(dy.to(where))
        results.append([y.detach().cpu(), *(t.grad.cpu() for t in inputs)])
    names = ("y", "dx", "dw")
    return {name: distance(b, a) for name, a, b in zip(names, *results, strict=True)}


def quantizers(names: list[str]) -> dict[str, dict[str, Callable[[Tensor], Quantized]]]:
    """The ways to round that were asked for."""
    found: dict[str, dict[str, Callable[[Tensor], Quantized]]] = {}
    for name in names:
        if name == "kernel":
            found[name] = {"tiles": quantize_tiles, "blocks": quantize_blocks}
        elif name == "plain":
            found[name] = {"tiles": quantize_tiles_plainly, "blocks": quantize_blocks_plainly}
        else:
            raise SystemExit(f"quantize={name}: give kernel or plain")
    return found


def times(layer: Layer, rounds: int, ways: dict[str, Any]) -> list[dict[str, Any]]:
    """A layer's three products, timed."""
    rows = []
    for name, operands in products(layer, "cuda", seed=1).items():
        a, b = operands.rounded(PLAINLY)
        a16, b16 = operands.a.bfloat16(), operands.b.bfloat16()
        work: dict[str, Callable[[], object]] = {
            "bf16": lambda a16=a16, b16=b16: a16 @ b16.t(),
            "fp8": lambda a=a, b=b, o=operands: fp8.on_units(a, b, o.dtype),
        }
        for label, rounding in ways.items():
            try:
                found = operands.rounded(rounding)
                for mine, plain in zip(found, (a, b), strict=True):
                    apart = (mine.values.float() != plain.values.float()).float().mean().item()
                    if apart or not torch.equal(mine.scale, plain.scale):
                        print(f"  {label}: {apart:.1e} of the numbers differ from the plain way")
                work[f"round {label}"] = lambda o=operands, r=rounding: o.rounded(r)
                work[f"rounded {label}"] = lambda o=operands, r=rounding: fp8.on_units(
                    *o.rounded(r), o.dtype
                )
            except Exception:
                traceback.print_exc(limit=3, file=sys.stdout)
        if layer.tokens <= 4096:
            work["emulated"] = lambda a=a, b=b, o=operands: emulated(a, b, o.dtype)
        ms = median_ms(work, rounds)
        flops = 2 * layer.tokens * layer.outputs * layer.inputs
        rows.append({**layer._asdict(), "product": name, "ms": ms})
        print(
            f"  {layer.name:<16}{name:<4}"
            + "  ".join(f"{key} {value:.3f} ms" for key, value in ms.items())
            + f"   fp8 {flops / ms['fp8'] / 1e9:.0f} TFLOP/s, {ms['bf16'] / ms['fp8']:.2f} x bf16",
            flush=True,
        )
    return rows


def main() -> int:
    chosen = options(
        {
            "tokens": "16384",
            "rounds": "20",
            "quantize": "kernel,plain",
            "device": "cuda",
            "json": "",
        }
    )
    device = chosen["device"]
    if device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing was measured")
        return 1
    where = torch.device(device, 0) if device == "cuda" else torch.device("cpu")
    reason = fp8.why_emulated(where)
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    print(f"{name}, torch {torch.__version__}, CUDA {torch.version.cuda}: {reason or 'FP8 units'}")
    layers = ling_mini(int(chosen["tokens"]))
    print("agreement with the emulation")
    rows = []
    for layer in (*EDGES, *layers):
        try:
            rows += agreement(layer, device)
        except Exception:
            traceback.print_exc(file=sys.stdout)
    linear: dict[str, Any] = {}
    try:
        linear = whole_layer(device)
        print(
            "fp8_linear against its emulation: "
            + ", ".join(f"{k} {v:.1e}" for k, v in linear.items())
        )
    except Exception:
        traceback.print_exc(file=sys.stdout)
    timed = []
    if device == "cuda" and not reason:
        print("times")
        for layer in layers:
            try:
                ways = quantizers(chosen["quantize"].split(","))
                timed += times(layer, int(chosen["rounds"]), ways)
            except Exception:
                traceback.print_exc(file=sys.stdout)
    write_json(chosen["json"], device=name, agreement=rows, linear=linear, times=timed)
    errors = [row[k] for row in rows for k in row if k.startswith("scaled_mm")]
    bad = [e for e in errors if not isinstance(e, float) or not e < 1e-2]
    good = len(errors) - len(bad)
    print(f"{good} of {len(errors)} products through scaled_mm within 1e-2 of the emulation")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
