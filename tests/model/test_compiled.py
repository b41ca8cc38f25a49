"""How kernels are compiled and given threads: by platform, with any compiler, without a runtime."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.kernels import block, compiled, step, threads

needs_compiler = pytest.mark.skipif(
    block.operations.library is None, reason="no compiled operations here"
)


@pytest.mark.parametrize(
    ("system", "machine", "native"),
    [
        ("Linux", "x86_64", ["-march=native"]),
        ("Darwin", "x86_64", ["-march=native"]),
        ("Linux", "aarch64", ["-mcpu=native"]),
        ("Darwin", "arm64", []),
    ],
)
def test_flags_follow_the_platform_and_need_no_openmp(system, machine, native):
    flags = compiled.flags_for(system, machine)
    assert [flag for flag in flags if "native" in flag] == native
    assert not any("openmp" in flag for flag in flags)
    assert {"-ffp-contract=fast", "-shared", "-fPIC"} <= set(flags)


REFUSES = """#!/bin/sh
echo "$@" >> {asked}
[ "$1" = --version ] && exec echo 'Apple clang version 12.0.0'
echo 'clang: warning: a feature or other' >&2
echo "clang: error: unknown argument: '-$1'" >&2
exit 1
"""


@needs_compiler
def test_a_refusal_is_told_by_its_error_not_by_a_warning(tmp_path, monkeypatch):
    compiler, asked = tmp_path / "c++", tmp_path / "asked"
    compiler.write_text(REFUSES.format(asked=asked))
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(compiled.NoCompiledKernel, match="error: unknown argument"):
        compiled.load_library.__wrapped__()
    line = asked.read_text().splitlines()[-1]
    assert line.startswith(" ".join(compiled.FLAGS))
    assert f"{compiled.SOURCE} -I{compiled.SOURCE.parent}" in line


def norm_gradients() -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    leaves = [torch.randn(size, generator=draw).requires_grad_() for size in ((50, 24), (24,))]
    y = step.rms_norm(*leaves, 1e-6)
    return [y.detach(), *torch.autograd.grad((y * y).sum(), leaves)]


@needs_compiler
def test_without_the_frameworks_threads_one_computes_it_all(small_is_shared, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = norm_gradients()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert not all(map(torch.equal, norm_gradients(), alone)), "three sum in another order"
    library = step.operations.library
    library.wt_use_threads(*[None] * 4)
    try:
        assert all(map(torch.equal, norm_gradients(), alone))
    finally:
        threads.hand_over_threads(library)


@needs_compiler
def test_a_runtime_without_the_functions_is_named(monkeypatch):
    monkeypatch.setattr(threads, "address", {"GOMP_parallel": 1}.get)
    assert threads.why_one_thread.__wrapped__().endswith("has no GOMP_barrier")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "said"), [("OMP_THREAD_LIMIT=1", ""), ("OMP_DYNAMIC=true", "unset it")]
)
def test_a_runtime_that_gives_fewer_threads_loses_no_rows(variable, said):
    """Each thread computes a share of its own: with one missing its rows would be, too."""
    program = """
import torch
from model.kernels import step
torch.set_num_threads(3)
x, w = torch.randn(3000, 512, requires_grad=True), torch.ones(512, requires_grad=True)
step.rms_norm(x, w, 1e-6).sum().backward()
exact = (x.detach().double() * x.detach().double().pow(2).mean(1, keepdim=True).rsqrt()).sum(0)
assert (w.grad - exact).norm() < 1e-5 * exact.norm()
"""
    name, value = variable.split("=")
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parents[2],
        env={**os.environ, name: value},
    )
    assert done.returncode == 0, done.stderr
    assert said in done.stderr
    assert not done.stderr or said


@needs_compiler
def test_the_compiler_is_told():
    assert compiled.compiled_by().split()[0] in ("GCC", "Clang", "Debian", "Ubuntu", "Apple")


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="targets of another processor")
@pytest.mark.parametrize("target", ["sapphirerapids", "cooperlake"])
def test_sources_compile_for_processors_with_and_without_a_tile_unit(target: str) -> None:
    """This machine builds one side alone, and of the benchmarks' none in any other test."""
    benchmarks = Path(__file__).parents[2] / "benchmarks"
    sources = [*compiled.SOURCE.parent.glob("*.cpp"), *benchmarks.glob("*.cpp")]
    assert len(sources) > 5
    portable = [flag for flag in compiled.FLAGS if not flag.startswith("-march")]
    command = [compiled.find_compiler(), *portable, f"-march={target}", "-fsyntax-only", "-Wall"]
    command += [f"-I{compiled.SOURCE.parent}", *map(str, sorted(sources))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "bad value" in done.stderr or "unknown target" in done.stderr:
        pytest.skip(f"this compiler does not know {target}")
    assert done.returncode == 0, done.stderr[-2000:]
