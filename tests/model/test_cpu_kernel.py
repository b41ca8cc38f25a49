"""The fused CPU kernel agrees with the plain loop in float64: outputs and every gradient."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.kernels import compiled, cpu
from model.kernels.cpu import _kernel, has_bfloat16, has_tiles, routed_experts
from model.kernels.reference import reference

# Norm of the difference over norm of the truth. fp32 rounds at 6e-8; sums over up to 600 terms.
# bfloat16 factors round at 2e-3 each, and a gradient goes through three products.
RELATIVE_ERROR = {torch.float32: 2e-6, torch.bfloat16: 1e-2}

try:
    compiled.load_library()
except compiled.NoCompiledKernel as error:
    pytest.skip(f"no compiled kernel here: {error}", allow_module_level=True)

needs_bfloat16 = pytest.mark.skipif(not has_bfloat16(), reason="this CPU has no bfloat16 units")
needs_tiles = pytest.mark.skipif(not has_tiles(), reason="this CPU has no tile unit (AMX-BF16)")
WAYS = [
    pytest.param("vectors", torch.float32, id="vectors, fp32"),
    pytest.param("vectors", torch.bfloat16, id="vectors, bf16", marks=needs_bfloat16),
    pytest.param("tiles", torch.float32, id="tiles, fp32", marks=needs_bfloat16),
    pytest.param("tiles", torch.bfloat16, id="tiles, bf16", marks=needs_bfloat16),
]

SHAPES = {
    "tokens, width, experts, top-k, expert width": (64, 32, 8, 2, 16),
    "one token": (1, 33, 5, 2, 7),
    "widths of no multiple": (100, 50, 4, 3, 9),
    "width below a vector": (40, 5, 3, 1, 3),
    "most experts empty": (9, 64, 256, 8, 16),
    "one expert takes all": (200, 16, 1, 1, 8),
    "several tiles an expert": (257, 96, 6, 4, 24),
    "wide": (70, 300, 4, 2, 130),
    # Gradients past the caches; in fp32 too wide to be packed a block ahead.
    "wide, several blocks an expert": (700, 256, 8, 2, 176),
}


def make_inputs(shape: tuple[int, ...], seed: int = 0) -> tuple[Tensor, ...]:
    num_tokens, width, num_experts, top_k, expert_width = shape
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(num_tokens, width, generator=draw),
        torch.randn(num_tokens, num_experts, generator=draw).topk(top_k).indices,
        torch.rand(num_tokens, top_k, generator=draw),
        torch.randn(num_experts, 2 * expert_width, width, generator=draw) / width**0.5,
        torch.randn(num_experts, expert_width, width, generator=draw) / expert_width**0.5,
    )


def output_and_gradients(
    function, inputs: tuple[Tensor, ...], leaf_dtype: torch.dtype, **settings: object
) -> list[Tensor]:
    x, expert, *others = inputs
    leaves = [t.detach().to(leaf_dtype, copy=True).requires_grad_() for t in (x, *others)]
    y = function(leaves[0], expert, *leaves[1:], **settings)
    draw = torch.Generator().manual_seed(1)
    y.backward(torch.randn(y.shape, generator=draw).to(leaf_dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves)]


@pytest.fixture
def threads(request: pytest.FixtureRequest, small_is_shared: None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize(("unit", "dtype"), WAYS)
@pytest.mark.parametrize("threads", [1, 2, 3], indirect=True)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_agrees_with_the_plain_loop(
    shape: tuple[int, ...], threads: int, unit: cpu.Unit, dtype: torch.dtype
) -> None:
    if dtype == torch.bfloat16 and unit == "vectors":
        shape = (*shape[:4], shape[4] + shape[4] % 2)
    inputs = make_inputs(shape)
    truth = output_and_gradients(reference, inputs, torch.float64)
    for recompute in (False, True):
        got = output_and_gradients(
            routed_experts, inputs, torch.float32, dtype=dtype, recompute=recompute, unit=unit
        )
        for name, mine, exact in zip(
            ("y", "dx", "dgate", "dw_gate_up", "dw_down"), got, truth, strict=True
        ):
            error = (mine.double() - exact).norm() / exact.norm()
            assert error < RELATIVE_ERROR[dtype], (name, threads, recompute, float(error))


@pytest.mark.parametrize(("unit", "dtype"), WAYS)
@pytest.mark.parametrize("threads", [1, 2], indirect=True)
def test_the_same_bits_on_every_repeat(threads: int, unit: cpu.Unit, dtype: torch.dtype) -> None:
    inputs = make_inputs((500, 48, 16, 4, 12))
    settings = {"dtype": dtype, "unit": unit}
    first = output_and_gradients(routed_experts, inputs, torch.float32, **settings)
    for _ in range(5):
        again = output_and_gradients(routed_experts, inputs, torch.float32, **settings)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("unit", ["vectors", pytest.param("tiles", marks=needs_bfloat16)])
def test_recomputing_gives_the_same_bits_and_keeps_only_the_inputs(unit: cpu.Unit) -> None:
    inputs = make_inputs((200, 48, 16, 4, 12))
    kept = output_and_gradients(routed_experts, inputs, torch.float32, unit=unit)
    again = output_and_gradients(routed_experts, inputs, torch.float32, unit=unit, recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))

    def bytes_kept(**settings: object) -> int:
        total = 0

        def count(t: Tensor) -> Tensor:
            nonlocal total
            total += t.nbytes
            return t

        x, expert, gate, *weights = inputs
        x = x.clone().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            routed_experts(x, expert, gate, *weights, unit=unit, **settings)
        return total - sum(t.nbytes for t in inputs)

    assert bytes_kept(recompute=True) == 0
    assert bytes_kept() >= 200 * 4 * 2 * 12 * 4


@needs_tiles
def test_fp32_takes_tiles_where_an_expert_has_much_to_do() -> None:
    """As measured, LOG.md, 2026-11-26; the points here lie well off the border."""
    few = [(128, 64, 16), (64, 64, 64), (128, 32, 64), (64, 32, 128), (256, 32, 32), (128, 16, 512)]
    many = [(128, 64, 64), (64, 64, 256), (128, 32, 256), (256, 32, 128), (512, 256, 256)]
    for expected, shapes in (("vectors", few), ("tiles", many)):
        for width, expert_width, visits in shapes:
            assert cpu.unit_for(torch.float32, width, expert_width, visits) == expected
            assert cpu.unit_for(torch.bfloat16, width, expert_width, visits) == "tiles"


@needs_bfloat16
def test_bfloat16_keeps_half_as_much_and_refuses_odd_widths() -> None:
    floats = _kernel().wt_saved_floats
    assert floats(1000, 16, 12, 1, 0) * 2 == floats(1000, 16, 12, 0, 0)
    with pytest.raises(ValueError, match="an even expert width"):
        routed_experts(*make_inputs((8, 16, 4, 2, 7)), dtype=torch.bfloat16, unit="vectors")


@needs_bfloat16
@pytest.mark.skipif(has_tiles(), reason="this CPU has a tile unit, which takes all bfloat16")
def test_without_a_tile_unit_only_odd_widths_take_tiles() -> None:
    for visits in (1, 1e6):
        assert cpu.unit_for(torch.float32, 128, 256, visits) == "vectors"
        assert cpu.unit_for(torch.bfloat16, 128, 256, visits) == "vectors"
        assert cpu.unit_for(torch.bfloat16, 128, 7, visits) == "tiles"


@needs_bfloat16
def test_a_tokens_bits_on_tiles_do_not_depend_on_who_stands_beside_it() -> None:
    """However squares of sums are grouped, each is summed in the same order."""
    x, expert, gate, *weights = make_inputs((150, 72, 1, 1, 40))
    alone = [
        routed_experts(x[:n], expert[:n], gate[:n], *weights, unit="tiles")
        for n in (1, 16, 17, 40, 100, 150)
    ]
    assert all(torch.equal(y, alone[-1][: len(y)]) for y in alone)


@needs_tiles
def test_three_parts_are_as_exact_as_fp32() -> None:
    """A sum of 512 products, each rounded once to 24 bits, is the yardstick."""
    inputs = make_inputs((64, 512, 2, 1, 64))
    truth = output_and_gradients(reference, inputs, torch.float64)
    for exact, *mine in zip(
        truth,
        output_and_gradients(routed_experts, inputs, torch.float32, unit="tiles"),
        output_and_gradients(routed_experts, inputs, torch.float32, unit="vectors"),
        strict=True,
    ):
        tiles, vectors = ((value.double() - exact).norm() for value in mine)
        assert tiles < 1.2 * vectors


@pytest.fixture(params=["-mno-avx512f", "-mno-avx512bf16"])
def lesser_cpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel as a CPU without these instructions would build it."""
    monkeypatch.setattr(compiled, "FLAGS", (*compiled.FLAGS, request.param))
    caches = (compiled.load_library, cpu._kernel)
    for cache in caches:
        cache.cache_clear()
    try:
        yield
    finally:
        monkeypatch.undo()
        for cache in caches:
            cache.cache_clear()


@pytest.mark.slow
def test_lesser_cpus_agree_too(lesser_cpu: None) -> None:
    assert not has_bfloat16()
    assert not has_tiles()
    for shape in SHAPES.values():
        inputs = make_inputs(shape)
        truth = output_and_gradients(reference, inputs, torch.float64)
        got = output_and_gradients(routed_experts, inputs, torch.float32)
        for mine, exact in zip(got, truth, strict=True):
            assert (mine.double() - exact).norm() / exact.norm() < RELATIVE_ERROR[torch.float32]


def test_a_nan_is_not_rounded_away() -> None:
    x, *others = make_inputs((8, 32, 4, 2, 8))
    x[3, 5] = torch.nan
    for dtype in (torch.float32, torch.bfloat16) if has_bfloat16() else (torch.float32,):
        y = routed_experts(x, *others, dtype=dtype)
        assert y[3].isnan().all()
        assert y[[0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_extreme_activations_stay_finite() -> None:
    x, expert, gate, w_in, w_out = make_inputs((64, 32, 8, 2, 16))
    got = output_and_gradients(routed_experts, (1e4 * x, expert, gate, w_in, w_out), torch.float32)
    assert all(torch.isfinite(t).all() for t in got)


def test_without_gradients_nothing_is_saved() -> None:
    inputs = make_inputs((64, 32, 8, 2, 16))
    with torch.no_grad():
        assert routed_experts(*inputs).grad_fn is None


def test_refusals() -> None:
    x, expert, gate, w_in, w_out = make_inputs((64, 32, 8, 2, 16))
    with pytest.raises(IndexError, match="outside 0 to 7"):
        routed_experts(x, expert + 1, gate, w_in, w_out)
    with pytest.raises(ValueError, match=r"x_TD: expected torch\.float32 \(64, 32\) on the CPU"):
        routed_experts(x.double(), expert, gate, w_in, w_out)
    with pytest.raises(ValueError, match=r"w_gate_up: expected .* \(8, 32, 32\)"):
        routed_experts(x, expert, gate, w_in[:, :-2], w_out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("driver", "cases"),
    [
        ("cpu_kernel_driver.cpp", 96 if has_bfloat16() else 24),
        ("step_kernel_driver.cpp", 16),
        ("block_kernel_driver.cpp", 60),
        ("loss_kernel_driver.cpp", 36),
        ("fp8_kernel_driver.cpp", 18),
        ("muon_kernel_driver.cpp", 48),
    ],
)
def test_no_read_or_write_out_of_bounds(driver: str, cases: int, tmp_path: Path) -> None:
    """A build under the address and undefined-behaviour sanitizers, driven from plain C++."""
    program = tmp_path / "driver"
    flags = [f for f in compiled.FLAGS if f not in ("-shared", "-O3")]
    sanitize = [
        "-O1",
        "-DWT_FEW_TILES",
        "-DWT_PLAIN_TILES",  # the tile unit's reads and writes would go unseen
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    source = Path(__file__).with_name(driver)
    build = [compiled.find_compiler(), *flags, *sanitize, "-o", str(program), str(source)]
    build += [f"-I{compiled.SOURCE.parent}", "-lgomp"]
    built = subprocess.run(build, capture_output=True, text=True, check=False)
    if "cannot find" in built.stderr:
        pytest.skip("this compiler has no sanitizer runtime")
    assert built.returncode == 0, built.stderr
    # The OpenMP runtime keeps its thread pool until exit; that is no leak of ours.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "3"}
    ran = subprocess.run([program], capture_output=True, text=True, check=False, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert ran.stdout.strip() == f"{cases} cases"
