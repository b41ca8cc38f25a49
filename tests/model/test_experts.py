"""Every expert kernel against the plain loop in float64, and the rule that chooses between them."""

import itertools

import pytest
import torch

from model.config import MoEConfig
from model.errors import ConfigError
from model.experts import RoutedExperts, routed_experts
from model.kernels import compiled
from model.kernels import select as select_module
from model.kernels.select import KERNELS, select
from model.router import Routing

FLOAT32_ERROR = 3e-6
"""Norm of the difference over the norm of the truth."""
BFLOAT16_ERROR = 2e-2

pytestmark = pytest.mark.usefixtures("one_thread")

CPU_KERNELS = [name for name in KERNELS if name != "triton"]
"""Triton's has tests of its own: test_triton_kernels.py."""

# tokens, width, experts, experts per token, expert width
SHAPES = {
    "small": (40, 16, 8, 2, 8),
    "one token": (1, 8, 6, 3, 4),
    "most experts empty": (5, 16, 64, 2, 8),
    "many experts": (96, 24, 128, 8, 4),
    "one expert for all": (50, 12, 1, 1, 8),
    "every expert for all": (30, 16, 4, 4, 12),
    "odd widths": (33, 15, 5, 2, 7),
}


def inputs(shape, *, skew=None, seed=0):
    num_tokens, width, num_experts, top_k, expert_width = shape
    draw = torch.Generator().manual_seed(seed)
    wish = torch.randn(num_tokens, num_experts, generator=draw)
    if skew is not None:
        wish[:, skew] += 100
    return (
        torch.randn(num_tokens, width, generator=draw),
        wish.topk(top_k).indices,
        torch.rand(num_tokens, top_k, generator=draw),
        torch.randn(num_experts, 2 * expert_width, width, generator=draw) / width**0.5,
        torch.randn(num_experts, expert_width, width, generator=draw) / expert_width**0.5,
    )


def run(kernel, values, dtype):
    """Output and the gradients of tokens, gates and both weights."""
    x, expert, gate, w_gate_up, w_down = values
    gate_dtype = torch.promote_types(dtype, torch.float32)
    leaves = [
        leaf.to(kind).requires_grad_()
        for leaf, kind in ((x, dtype), (gate, gate_dtype), (w_gate_up, dtype), (w_down, dtype))
    ]
    x, gate, w_gate_up, w_down = leaves
    y = routed_experts(x, expert, gate, w_gate_up, w_down, kernel=kernel)
    assert y.dtype == dtype
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [y.detach(), *torch.autograd.grad((y * towards).sum(), leaves)]


def error(value, truth):
    return ((value.double() - truth).norm() / truth.norm().clamp(min=1e-9)).item()


def allows(kernel, dtype, shape):
    if kernel == "cpu" and select(torch.float32, 8, 8).name != "cpu":
        pytest.skip(f"no compiled kernel here: {select(torch.float32, 8, 8).reason}")
    aligned = all(width * dtype.itemsize % 16 == 0 for width in (shape[1], shape[4]))
    return kernel != "grouped" or aligned


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_kernels_agree_with_the_plain_loop_in_output_and_all_gradients(kernel, shape):
    if not allows(kernel, torch.float32, shape):
        pytest.skip("grouped_mm needs rows of a multiple of 16 bytes")
    for skew in (None, 0):
        values = inputs(shape, skew=skew)
        truth = run("reference", values, torch.float64)
        for value, true in zip(run(kernel, values, torch.float32), truth, strict=True):
            assert value.shape == true.shape
            assert error(value, true) < FLOAT32_ERROR


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_kernels_in_bfloat16(kernel):
    if kernel == "cpu" and select(torch.bfloat16, 32, 16).name != "cpu":
        pytest.skip("no compiled kernel with bfloat16 products here")
    values = inputs((64, 32, 8, 2, 16))
    truth = run("reference", values, torch.float64)
    for value, true in zip(run(kernel, values, torch.bfloat16), truth, strict=True):
        assert error(value, true) < BFLOAT16_ERROR


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_experts_and_gradients_are_their_restatement(dtype, oracle):
    values = inputs((6, 8, 5, 2, 4))
    leaves = [v.double().requires_grad_() for v in (values[0], *values[2:])]
    x, gate, w_gate_up, w_down = leaves
    truth = torch.stack(
        [
            oracle.routed(x[t], values[1][t].tolist(), gate[t], w_gate_up, w_down)
            for t in range(x.shape[0])
        ]
    )
    towards = torch.randn(truth.shape, generator=torch.Generator().manual_seed(9)).double()
    expected = [truth.detach(), *torch.autograd.grad((truth * towards).sum(), leaves)]
    tolerance = 1e-12 if dtype == torch.float64 else FLOAT32_ERROR
    for value, true in zip(run(None, values, dtype), expected, strict=True):
        assert error(value, true) < tolerance


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_recomputing_changes_no_bit(kernel):
    allows(kernel, torch.float32, (40, 16, 8, 2, 8))
    x, *others = inputs((40, 16, 8, 2, 8))
    answers = []
    for recompute in (False, True):
        leaf = x.clone().requires_grad_()
        y = routed_experts(leaf, *others, kernel=kernel, recompute=recompute)
        y.backward(torch.ones_like(y))
        answers.append((y.detach(), leaf.grad))
    assert torch.equal(answers[0][0], answers[1][0])
    assert torch.equal(answers[0][1], answers[1][1])


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_an_expanded_gradient_is_taken(kernel):
    """``y.sum().backward()`` hands back one number seen T·D times."""
    values = inputs((10, 8, 4, 2, 8))
    allows(kernel, torch.float32, (10, 8, 4, 2, 8))
    x = values[0].clone().requires_grad_()
    routed_experts(x, *values[1:], kernel=kernel).sum().backward()
    contiguous = values[0].clone().requires_grad_()
    y = routed_experts(contiguous, *values[1:], kernel=kernel)
    y.backward(torch.ones_like(y))
    torch.testing.assert_close(x.grad, contiguous.grad)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_an_expert_nobody_chose_gets_an_exact_zero_gradient(kernel):
    shape = (6, 8, 16, 2, 8)
    allows(kernel, torch.float32, shape)
    values = inputs(shape)
    unused = sorted(set(range(16)) - set(values[1].flatten().tolist()))
    assert unused
    _, _, _, d_gate_up, d_down = run(kernel, values, torch.float32)
    assert (d_gate_up[unused] == 0).all()
    assert (d_down[unused] == 0).all()


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_the_order_of_a_tokens_experts_does_not_matter(kernel):
    shape = (20, 8, 8, 3, 4)
    allows(kernel, torch.float32, shape)
    x, expert, gate, *weights = inputs(shape)
    y = routed_experts(x, expert, gate, *weights, kernel=kernel)
    flipped = routed_experts(x, expert.flip(1), gate.flip(1), *weights, kernel=kernel)
    torch.testing.assert_close(flipped, y)


@pytest.mark.parametrize("kernel", CPU_KERNELS)
def test_the_same_bits_every_time(kernel):
    shape = (80, 16, 8, 2, 8)
    allows(kernel, torch.float32, shape)
    values = inputs(shape)
    first, second = (run(kernel, values, torch.float32) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.fixture
def without_compiler(monkeypatch):
    """A machine on which the compiled kernel cannot be built."""

    def refuse():
        raise compiled.NoCompiledKernel("no C++ compiler found")

    select.cache_clear()
    monkeypatch.setattr(select_module, "load_library", refuse)
    yield
    select.cache_clear()


def test_the_choice_follows_type_width_and_machine(without_compiler):
    choices = {
        (dtype, width, expert_width): select(dtype, width, expert_width).name
        for dtype, width, expert_width in itertools.product(
            (torch.float64, torch.float32, torch.bfloat16), (32, 36, 33), (8, 12)
        )
    }
    reference = {key for key, name in choices.items() if name == "reference"}
    # float32 rows must be multiples of 4 numbers, bfloat16 rows of 8; float64 is not to be had.
    assert reference == {
        (dtype, width, expert_width)
        for dtype, width, expert_width in choices
        if dtype == torch.float64
        or width == 33
        or (dtype == torch.bfloat16 and (width == 36 or expert_width == 12))
    }
    assert "no C++ compiler found" in select(torch.float32, 32, 8).reason
    assert "hidden_size is 33" in select(torch.float32, 33, 8).reason
    assert "expert_width is 12" in select(torch.bfloat16, 32, 12).reason


def test_a_machine_without_a_compiler_still_computes(without_compiler):
    for shape in (SHAPES["small"], SHAPES["odd widths"]):
        values = inputs(shape)
        truth = run("reference", values, torch.float64)
        for value, true in zip(run(None, values, torch.float32), truth, strict=True):
            assert error(value, true) < FLOAT32_ERROR


def test_a_gpu_never_gets_the_cpu_kernel():
    assert select(torch.float32, 32, 8, device="cuda").name in ("grouped", "triton")


def test_an_unknown_kernel_is_refused_with_the_names_there_are():
    with pytest.raises(ConfigError, match="kernel 'fastest' is not one of: reference, grouped"):
        routed_experts(*inputs(SHAPES["small"]), kernel="fastest")


def test_autocast_computes_the_experts_in_its_type():
    config = MoEConfig(num_experts=8, experts_per_token=2, expert_width=8)
    experts = RoutedExperts(config, 16)
    x, expert, gate, w_gate_up, w_down = inputs((20, 16, 8, 2, 8))
    with torch.no_grad():
        experts.w_gate_up.copy_(w_gate_up)
        experts.w_down.copy_(w_down)
    routing = Routing(expert, gate, gate, gate)
    exact = experts(x, routing)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = experts(x, routing)
    weights = (experts.w_gate_up, experts.w_down)
    assert torch.equal(rounded, routed_experts(x, expert, gate, *weights, dtype=torch.bfloat16))
    assert rounded.dtype == torch.float32
    assert 1e-4 < error(rounded, exact.double()) < BFLOAT16_ERROR
