"""The kernels as other compilers and other processors run them, against the truth in float64.

Clang stands for Apple's compiler. For 64-bit ARM they are cross-compiled and run under emulation:
the vectors of four numbers and the fused products are the real ones, only the speed is not.
"""

import ctypes
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import halves
from model.attention import Attention
from model.balance import RoutingRequest
from model.config import AttentionConfig, MoEConfig
from model.kernels import block, compiled, cpu, loss
from model.kernels.reference import reference
from model.layers import RMSNorm, Rotary
from model.moe import MoE

FLOAT32_ERROR = 5e-6
HERE = Path(__file__).parent
EMULATOR = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
BUILDS = {
    "Clang": ("clang++", []),  # for any processor: what a CPU without AVX-512 computes by
    "64-bit ARM": ("aarch64-linux-gnu-g++", EMULATOR),
}
KINDS = {compiled.SIZE: 0, compiled.FLAG: 0}
"""How ``remote_kernels.cpp`` numbers types."""

pytestmark = [
    pytest.mark.slow,  # each compiles two or three files
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(block.operations.library is None, reason="no compiled operations here"),
]


class Remote:
    """A process that calls the functions of one library, over ``remote_kernels.cpp``."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.calls = 0

    def call(self, function: Any, plain: list[Any], kept: tuple[Any, ...]) -> int:
        """As ``model.kernels.recording.call``, elsewhere: buffers go there and come back."""
        addressed = {t.data_ptr(): t for t in kept if isinstance(t, Tensor)}
        name, sent, back = function.__name__.encode(), [], []
        for kind, value in zip(function.argtypes, plain, strict=True):
            if kind is compiled.POINTER and value:
                tensor = addressed[value]
                assert tensor.is_contiguous()
                back.append(tensor)
                sent.append(struct.pack("qq", 2, tensor.nbytes) + bytes(_memory(tensor)))
            elif kind is compiled.POINTER:
                sent.append(struct.pack("qq", 0, 0))
            elif kind is compiled.NUMBER:
                sent.append(struct.pack("qfi", 1, value, 0))
            else:
                sent.append(struct.pack("qq", KINDS[kind], value))
        head = struct.pack("q", len(name)) + name + struct.pack("q", len(sent))
        self._process.stdin.write(head + b"".join(sent))
        self._process.stdin.flush()
        (result,) = struct.unpack("q", self._read(8))
        for tensor in back:
            _memory(tensor)[:] = self._read(tensor.nbytes)
        self.calls += 1
        return ctypes.c_int32(result).value

    def _read(self, count: int) -> bytes:
        got = self._process.stdout.read(count)
        assert len(got) == count, "the other process ended"
        return got

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


def _memory(tensor: Tensor) -> Any:
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())


def build(compiler: str, source: Path, to: Path, *more: str) -> Path:
    """Few sizes of tiles and little optimisation: this is about what is computed."""
    common = ["-O1", "-DWT_FEW_TILES", "-std=c++17", "-ffp-contract=fast", "-fno-math-errno"]
    command = [compiler, *common, "-o", str(to), str(source), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return to


@pytest.fixture(scope="module", params=BUILDS.values(), ids=BUILDS)
def remotes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Remote]]:
    compiler, emulator = request.param
    for program in (compiler, *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"no {program} here")
    folder = tmp_path_factory.mktemp("kernels")
    driver = build(compiler, HERE / "remote_kernels.cpp", folder / "driver", "-ldl")
    started: dict[str, Remote] = {}

    def remote(source: str) -> Remote:
        if source not in started:
            path = compiled.SOURCE.with_name(source)
            library = build(compiler, path, folder / f"{path.stem}.so", "-shared", "-fPIC")
            started[source] = Remote([*emulator, str(driver), str(library)])
        return started[source]

    yield remote
    for each in started.values():
        each.close()


def assert_agree(mine: list[Tensor], truth: list[Tensor]) -> None:
    for got, exact in zip(mine, truth, strict=True):
        apart = (got.double() - exact).norm() / exact.norm().clamp(min=0.5)
        assert apart < FLOAT32_ERROR


def gradients(y: Tensor, leaves: list[Tensor]) -> list[Tensor]:
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(7)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad((y * towards).sum(), leaves)]


@pytest.mark.parametrize("shape", [(64, 32, 8, 2, 16), (100, 50, 4, 3, 9), (40, 5, 3, 1, 3)])
def test_experts(shape, remotes, monkeypatch):
    remote = remotes("cpu.cpp")
    monkeypatch.setattr(cpu, "call", remote.call)
    tokens, width, num_experts, top_k, inner = shape
    draw = torch.Generator().manual_seed(0)
    expert = torch.randn(tokens, num_experts, generator=draw).topk(top_k).indices
    x, gate, w_in, w_out = (
        torch.randn(*size, generator=draw) / size[-1] ** 0.5
        for size in (
            (tokens, width),
            (tokens, top_k),
            (num_experts, 2 * inner, width),
            (num_experts, inner, width),
        )
    )

    def run(function, dtype, **settings):
        leaves = [t.to(dtype).requires_grad_() for t in (x, gate, w_in, w_out)]
        return gradients(function(leaves[0], expert, *leaves[1:], **settings), leaves)

    truth = run(reference, torch.float64)
    before = remote.calls
    assert_agree(run(cpu.routed_experts, torch.float32, unit="vectors"), truth)
    assert remote.calls == before + 2


def filled(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    draw = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        value = torch.randn(parameter.shape, generator=draw) * 0.3
        parameter.data = value + (1.0 if parameter.ndim == 1 else 0.0)
    return module.to(dtype)


@pytest.mark.parametrize("length", [9, 70])
def test_a_block_and_its_loss(length, remotes, monkeypatch):
    here = {block.operations: remotes("block.cpp"), loss.operations: remotes("loss.cpp")}
    of_function = {name: r for ops, r in here.items() for name in ops._arguments}

    def elsewhere(function, plain, kept):
        return of_function[function.__name__].call(function, plain, kept)

    monkeypatch.setattr(compiled, "call", elsewhere)
    width, words = 12, 37
    heads = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=20, rotary_dim=8)
    experts = MoEConfig(num_experts=6, experts_per_token=2, expert_width=6, num_shared_experts=1)
    draw = torch.Generator().manual_seed(0)
    x_BTD, head_VD = torch.randn(2, length, width, generator=draw), torch.randn(words, width)
    target_N = torch.randint(words, (2 * length,), generator=draw)

    def run(dtype):
        modules = [RMSNorm(width, 1e-6), Attention(heads, width, 1e-6), RMSNorm(width, 1e-6)]
        norm, attention, second, moe = (filled(m, dtype) for m in (*modules, MoE(experts, width)))
        x, head = (t.to(dtype).requires_grad_() for t in (x_BTD, head_VD))
        y = halves.attend(x, norm, attention, Rotary(heads))
        y, _ = halves.mix(y, second, moe, RoutingRequest(losses=False))
        hidden_ND = y.flatten(0, 1)
        if dtype == torch.float32:
            nats_N = loss.token_nats(hidden_ND, head, target_N)
        else:
            nats_N = F.cross_entropy(hidden_ND @ head.T, target_N, reduction="none")
        return gradients(nats_N, [x, head, *norm.parameters(), *attention.parameters()])

    before = [remote.calls for remote in here.values()]
    assert_agree(run(torch.float32), run(torch.float64))
    assert all(r.calls > was for r, was in zip(here.values(), before, strict=True))
