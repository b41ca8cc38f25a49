"""What the tests of the model share: the float64 oracle and small configurations."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from model.config import AttentionConfig, ModelConfig, MoEConfig


@pytest.fixture(scope="session")
def oracle() -> ModuleType:
    """The module ``oracle.py`` beside this file."""
    spec = importlib.util.spec_from_file_location("oracle", Path(__file__).with_name("oracle.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors gain nothing from threads and lose much on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def small_is_shared() -> Iterator[None]:
    """Compiled operations share out however little there is to do."""
    from model.kernels import adamw, block, cpu, fp8, loss, muon, step

    kernels = [each.operations.library for each in (adamw, block, fp8, loss, muon, step)]
    if kernels[0] is not None:
        kernels.append(cpu._kernel())
    found = [kernel for kernel in kernels if kernel is not None]
    least_ns = [_least_ns(kernel, 0.0) for kernel in found]
    yield
    for kernel, ns in zip(found, least_ns, strict=True):
        _least_ns(kernel, ns)


def _least_ns(kernel: ctypes.CDLL, ns: float) -> float:
    """From how much work on a compiled operation is shared out; what it was before."""
    kernel.wt_least_ns.argtypes, kernel.wt_least_ns.restype = [ctypes.c_double], ctypes.c_double
    return float(kernel.wt_least_ns(ns))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest, small_is_shared: None) -> Iterator[None]:
    """One thread and several: a compiled operation shares its rows out."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["framework", "own", "tiles"])
def products(request: pytest.FixtureRequest) -> Iterator[None]:
    """Matrix products by the framework's routine where that is used, by our own tiles of vectors,
    and of any size in squares, as on a tile unit.
    """
    from model.kernels import block, loss
    from model.kernels.blas import hand_over_sgemm

    never, where_faster, always = range(3)
    libraries = [block.operations.library, loss.operations.library]
    can_multiply = [library.wt_use_tiles(never) for library in libraries]
    if request.param == "tiles" and not all(can_multiply):
        pytest.skip("no bfloat16 products here")
    for library in libraries:
        library.wt_use_tiles(always if request.param == "tiles" else never)
        hand_over_sgemm(library)
        if request.param == "own":
            library.wt_use_sgemm(None, None)
    yield
    for library in libraries:
        library.wt_use_tiles(where_faster)
        hand_over_sgemm(library)


@pytest.fixture(scope="session")
def tiny() -> Callable[..., ModelConfig]:
    """A Ling model small enough for the oracle; ``tiny(moe={...}, mtp_depth=1)`` varies it."""
    attention = AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=6, rotary_dim=4)
    moe = MoEConfig(
        num_experts=12, experts_per_token=3, expert_width=5, num_groups=4, groups_per_token=2
    )
    base = ModelConfig(
        vocab_size=23,
        hidden_size=10,
        num_layers=2,
        num_dense_layers=1,
        dense_width=14,
        attention=attention,
        moe=moe,
        init_std=0.3,
    )

    def varied(*, attention=None, moe=None, dense=False, **fields) -> ModelConfig:  # type: ignore[no-untyped-def]
        return dataclasses.replace(
            base,
            attention=dataclasses.replace(base.attention, **(attention or {})),
            moe=None if dense else dataclasses.replace(base.moe, **(moe or {})),
            **fields,
        )

    return varied
