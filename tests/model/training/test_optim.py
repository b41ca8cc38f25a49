"""The compiled optimizer against the framework's, and clipping against its definition."""

import math
import weakref

import pytest
import torch
from torch import nn

from model.kernels import adamw
from model.training.config import OptimizerConfig
from model.training.optim import (
    build_optimizer,
    clip_gradients,
    load_optimizer_tensors,
    optimizer_tensors,
    set_learning_rate,
)

pytestmark = pytest.mark.usefixtures("one_thread")

CONFIG = OptimizerConfig(peak_lr=3e-3, weight_decay=0.1)


class Some(nn.Module):
    """Tensors of no round size, one longer than a chunk, one without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        for name, shape in {"a": (7, 5), "b": (3,), "c": (130, 131), "idle": (2, 2)}.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, generator=draw)))


def with_gradients(model: nn.Module, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        if name != "idle":
            p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)


def test_the_steps_are_adamws():
    mine, exact = Some(), Some().double()
    optimizer = build_optimizer(mine, CONFIG)
    matrices, vectors = [exact.a, exact.c, exact.idle], [exact.b]
    expected = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": CONFIG.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=CONFIG.peak_lr,
        betas=(CONFIG.beta1, CONFIG.beta2),
        eps=CONFIG.eps,
    )
    for seed in range(5):
        for model, each in ((mine, optimizer), (exact, expected)):
            with_gradients(model, seed)
            set_learning_rate(each, 3e-3 / (1 + seed))
            each.step()
    for (name, p), q in zip(mine.named_parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(p.double(), q, rtol=3e-6, atol=1e-8, msg=name)
    assert optimizer.state[mine.a]["step"].item() == 5
    assert not optimizer.state[mine.idle]
    optimizer.zero_grad()
    assert all(p.grad is None for p in mine.parameters())


def test_the_compiled_and_the_frameworks_step_share_their_state(monkeypatch):
    """A run may be saved by the one and go on with the other."""
    compiled, framework = Some(), Some()
    for model in (compiled, framework):
        model.idle.requires_grad_(False)
    del compiled.idle, framework.idle
    optimizers = [build_optimizer(model, CONFIG) for model in (compiled, framework)]

    def advance(seed):
        with_gradients(compiled, seed)
        optimizers[0].step()
        with monkeypatch.context() as patched:
            patched.setattr(adamw, "serves", lambda tensors: False)
            with_gradients(framework, seed)
            optimizers[1].step()

    advance(0)
    pairs = zip((compiled, framework), optimizers, strict=True)
    tensors = [optimizer_tensors(*pair) for pair in pairs]
    for name, value in tensors[0].items():
        torch.testing.assert_close(value, tensors[1][name], rtol=1e-6, atol=1e-9, msg=name)
    load_optimizer_tensors(compiled, optimizers[0], tensors[1])
    load_optimizer_tensors(framework, optimizers[1], tensors[0])
    advance(1)
    for p, q in zip(compiled.parameters(), framework.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_the_frameworks_step_without_its_search_changes_no_bit(factor, monkeypatch):
    """Also where the groups' rates come to differ, by ``factor``, and another gradient is there."""
    monkeypatch.setattr(adamw, "serves", lambda tensors: False)
    mine, framework = Some(), Some()
    optimizer = build_optimizer(mine, CONFIG)
    searching = torch.optim.AdamW(
        build_optimizer(framework, CONFIG).param_groups, lr=CONFIG.peak_lr, fused=True
    )
    for seed in range(4):
        for model, each in ((mine, optimizer), (framework, searching)):
            with_gradients(model, seed)
            set_learning_rate(each, 3e-3 / (1 + seed))
            if seed:
                each.param_groups[1]["lr"] *= factor
            if seed > 1:
                model.idle.grad = torch.ones(2, 2)
            each.step()
        for p, q in zip(mine.parameters(), framework.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.parametrize("largest", [1e-2, 1e6])
def test_clipping(largest):
    model = Some()
    with_gradients(model, 3)
    before = [p.grad.double() for p in model.parameters() if p.grad is not None]
    norm = math.sqrt(sum(g.square().sum().item() for g in before))
    assert clip_gradients(model.parameters(), largest) == pytest.approx(norm, rel=1e-6)
    factor = min(1.0, largest / norm)
    after = [p.grad for p in model.parameters() if p.grad is not None]
    for mine, exact in zip(after, before, strict=True):
        torch.testing.assert_close(mine.double(), exact * factor, rtol=1e-6, atol=0)


def test_a_gradient_that_is_no_number_shows_in_the_norm():
    model = Some()
    with_gradients(model, 3)
    model.c.grad[5, 5] = torch.nan
    assert math.isnan(clip_gradients(model.parameters(), 1.0))


@pytest.mark.skipif(not adamw.serves([torch.ones(1)]), reason="no compiled optimizer here")
@pytest.mark.parametrize("largest", [1e-2, 1e6])
def test_clipping_on_the_way_into_the_update_changes_no_bit(largest):
    """Of a step whose gradients were scaled in memory before it."""
    models = Some(), Some()
    there, on_the_way = (build_optimizer(model, CONFIG) for model in models)
    for seed in range(3):
        for model in models:
            with_gradients(model, seed)
        assert clip_gradients(models[0].parameters(), largest) == on_the_way.clip(largest)
        there.step()
        on_the_way.step()
        for p, q in zip(*(model.parameters() for model in models), strict=True):
            assert torch.equal(p, q)


@pytest.mark.skipif(not adamw.serves([torch.ones(1)]), reason="no compiled optimizer here")
def test_what_is_left_to_the_framework_is_clipped_as_well():
    models = Some(), Some()
    there, on_the_way = (build_optimizer(model, CONFIG) for model in models)
    for model in models:
        with_gradients(model, 0)
    clip_gradients(models[0].parameters(), 1e-2)
    assert on_the_way.clip(1e-2) > 1e-2
    for group in (there.param_groups[0], on_the_way.param_groups[0]):
        group["lr"] = 1e-4  # unlike the other group's, which is not served
    there.step()
    on_the_way.step()
    for p, q in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-8)
    doubles = Some().double()
    with_gradients(doubles, 0)
    assert build_optimizer(doubles, CONFIG).clip(1.0) is None


def test_gradients_are_let_go_of():
    """A model's worth of memory, at the height of the next pass."""
    model = Some()
    optimizer = build_optimizer(model, CONFIG)
    with_gradients(model, 0)
    optimizer.clip(1.0)
    optimizer.step()
    grads = [weakref.ref(p.grad) for p in model.parameters() if p.grad is not None]
    assert all(grad() is not None for grad in grads)
    optimizer.zero_grad()
    assert all(grad() is None for grad in grads)


@pytest.mark.parametrize("has_idle", [True, False])
def test_tensors_put_in_the_place_of_others_are_seen(has_idle):
    model = Some()
    if not has_idle:
        del model.idle
    optimizer = build_optimizer(model, CONFIG)
    with_gradients(model, 0)
    optimizer.step()
    grad = model.a.grad
    for changed in ("weight", "state", "gradient"):
        before = model.a.detach().clone()
        if changed == "weight":
            model.a.data = before.clone()
        elif changed == "state":
            optimizer.load_state_dict(optimizer.state_dict())
            optimizer.state[model.a]["exp_avg"] = torch.zeros_like(model.a)
        else:
            model.b.grad = None
        count = optimizer.state[model.b]["step"].item()
        optimizer.step()
        assert not torch.equal(before, model.a), changed
        assert model.a.grad is grad
        assert optimizer.state[model.b]["step"].item() == count + (changed != "gradient")
    mean = optimizer.state[model.a]["exp_avg"]  # twice moved from zero
    torch.testing.assert_close(mean, grad * (1 - CONFIG.beta1**2))


@pytest.mark.skipif(not adamw.serves([torch.ones(1)]), reason="no compiled optimizer here")
def test_the_number_of_threads_changes_no_bit(small_is_shared):
    def trained(threads):
        torch.set_num_threads(threads)
        model = Some()
        optimizer = build_optimizer(model, CONFIG)
        norms = []
        for seed in range(3):
            with_gradients(model, seed)
            norms.append(clip_gradients(model.parameters(), 1.0))
            optimizer.step()
        return norms, [p.detach().clone() for p in model.parameters()]

    one, three = trained(1), trained(3)
    torch.set_num_threads(1)
    assert one[0] == three[0]
    assert all(torch.equal(p, q) for p, q in zip(one[1], three[1], strict=True))
