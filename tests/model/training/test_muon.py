"""Muon: which matrices it sees, what it does to them, and runs that go on to the bit."""

import math
from dataclasses import replace

import pytest
import torch
import toy_runs
from torch import nn
from toy_runs import MODEL, RUNTIME, train_until

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.kernels.muon import Stack
from model.training.config import MuonConfig, OptimizerConfig
from model.training.matrices import hidden_matrices
from model.training.muon import orthogonalise
from model.training.optim import build_optimizer
from model.training.trainer import train
from model.transformer import build_model

CONFIG = OptimizerConfig(kind="muon", muon=MuonConfig(), peak_lr=0.02)
TRAIN = replace(toy_runs.TRAIN, optimizer=replace(CONFIG, peak_lr=1e-2))

LING = ModelConfig(
    vocab_size=50,
    hidden_size=24,
    num_layers=2,
    dense_width=20,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
    moe=MoEConfig(num_experts=6, experts_per_token=2, expert_width=10, num_shared_experts=1),
)


def stacks_by_name(per_head, config=LING):
    model = build_model(config, seed=0)
    found = hidden_matrices(model, per_head=per_head)
    return {name: found.get(p) for name, p in model.named_parameters()}


def test_a_matrix_is_what_a_product_consists_of():
    found = stacks_by_name(per_head=False)
    assert found["embedding.weight"] is None
    assert found["output.weight"] is None
    assert all(found[name] is None for name in found if "norm" in name)
    block = "blocks.1.feed_forward"
    # 32 rows of queries, 16 of keys, 16 of values, all of width 24; keys and values are alike.
    assert found["blocks.0.attention.qkv.weight"] == (
        Stack(0, 1, 32, 24),
        Stack(32 * 24, 2, 16, 24),
    )
    assert found["blocks.0.attention.out.weight"] == (Stack(0, 1, 24, 32),)
    assert found["blocks.0.feed_forward.gate_up.weight"] == (Stack(0, 2, 20, 24),)
    assert found["blocks.0.feed_forward.down.weight"] == (Stack(0, 1, 24, 20),)
    assert found[f"{block}.router.weight"] == (Stack(0, 1, 6, 24),)
    assert found[f"{block}.experts.w_gate_up"] == (Stack(0, 12, 10, 24),)
    assert found[f"{block}.experts.w_down"] == (Stack(0, 6, 10, 24),)
    assert found[f"{block}.shared.gate_up.weight"] == (Stack(0, 2, 10, 24),)
    assert found["mtp.projection.weight"] == (Stack(0, 1, 24, 48),)
    heads = stacks_by_name(per_head=True)
    assert heads.pop("blocks.0.attention.qkv.weight") == (Stack(0, 8, 8, 24),)
    others = [name for name in heads if not name.endswith("qkv.weight")]
    assert all(heads[name] == found[name] for name in others)


def test_a_gate_is_a_matrix_and_of_a_gate_an_element_each_head_is_one():
    """4 heads of 8 in a width of 24; of a gate a head each head has one row, which stays with the
    others."""
    name = "blocks.0.attention.output_gate.weight"
    for gate, whole, heads in (
        ("headwise", (Stack(0, 1, 4, 24),), (Stack(0, 1, 4, 24),)),
        ("elementwise", (Stack(0, 1, 32, 24),), (Stack(0, 4, 8, 24),)),
    ):
        config = replace(LING, attention=replace(LING.attention, output_gate=gate))
        assert stacks_by_name(per_head=False, config=config)[name] == whole
        assert stacks_by_name(per_head=True, config=config)[name] == heads


def test_a_module_of_the_users_own_is_matrices_in_its_last_two_dimensions():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.bank = nn.Parameter(torch.zeros(3, 5, 4, 7))
            self.scale = nn.Parameter(torch.zeros(7))

    model = Own()
    assert hidden_matrices(model, per_head=True) == {model.bank: (Stack(0, 15, 4, 7),)}


@pytest.mark.parametrize("shape", [(4, 3, 8), (2, 8, 3), (1, 5, 5)])
def test_singular_values_end_near_one_and_directions_stay(shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u, s, vt = torch.linalg.svd(x, full_matrices=False)
    found = u.mT @ orthogonalise(x) @ vt.mT
    s = s / s.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(found, torch.diag_embed(s), rtol=1e-9, atol=1e-9)
    assert 0.65 < s.min() < s.max() < 1.25


def with_gradients(model, seed):
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.grad = torch.randn(p.shape, generator=draw).to(p.dtype)


def test_compiled_and_plain_steps_agree_and_share_their_state():
    mine, plain = build_model(LING, seed=0), build_model(LING, seed=0).double()
    optimizers = build_optimizer(mine, CONFIG), build_optimizer(plain, CONFIG)
    for seed in range(4):
        with_gradients(mine, seed)
        with_gradients(plain, seed)
        for optimizer in optimizers:
            optimizer.step()
    for (name, p), q in zip(mine.named_parameters(), plain.parameters(), strict=True):
        # Small singular values grow 3.4-fold a step, and their rounding errors with them.
        torch.testing.assert_close(p.double(), q, rtol=1e-4, atol=1e-4 * CONFIG.peak_lr, msg=name)
        keys = {"momentum"} if p in optimizers[0].matrices else {"step", "exp_avg", "exp_avg_sq"}
        assert set(optimizers[0].state[p]) == set(optimizers[1].state[q]) == keys


def test_a_single_matrix_moves_as_by_the_frameworks_muon():
    """Which computes in bfloat16: equal to a hundredth of a step."""

    class One(nn.Module):
        def __init__(self):
            super().__init__()
            draw = torch.Generator().manual_seed(0)
            self.weight = nn.Parameter(torch.randn(12, 40, generator=draw))
            self.scale = nn.Parameter(torch.ones(40))

    mine, theirs = One(), One()
    start = mine.weight.detach().clone()
    optimizer = build_optimizer(mine, replace(CONFIG, weight_decay=0.3))
    exact = torch.optim.Muon(
        [theirs.weight],
        lr=CONFIG.peak_lr,
        weight_decay=0.3,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    for seed in range(5):
        with_gradients(mine, seed)
        with_gradients(theirs, seed)
        optimizer.step()
        exact.step()
    moved, wanted = mine.weight - start, theirs.weight - start
    assert (moved - wanted).norm() < 0.02 * wanted.norm()


def test_an_update_has_the_size_of_adamws():
    """A root mean square of 0.2 of the rate, whatever the shape (arXiv:2502.16982)."""
    model = build_model(LING, seed=0)
    optimizer = build_optimizer(model, replace(CONFIG, weight_decay=0.0))
    before = {p: p.detach().clone() for p in optimizer.matrices}
    with_gradients(model, 0)
    optimizer.step()
    for p, stacks in optimizer.matrices.items():
        moved = (p.detach() - before[p]).flatten()
        for start, num, rows, cols in stacks:
            part = moved[start : start + num * rows * cols].view(num, -1)
            rms = part.square().mean(1).sqrt() / CONFIG.peak_lr
            assert ((rms > 0.7 * 0.2) & (rms < 1.2 * 0.2)).all(), (rows, cols)


def test_a_part_without_a_gradient_stays():
    model = build_model(LING, seed=0)
    optimizer = build_optimizer(model, CONFIG)
    optimizer.step()  # before there is any
    with_gradients(model, 0)
    idle = model.mtp.projection.weight
    idle.grad, before = None, idle.detach().clone()
    optimizer.step()
    assert torch.equal(idle, before)
    assert not optimizer.state[idle]
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


def test_a_run_learns_and_goes_on_to_the_bit(corpus, tmp_path):
    whole = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path / "whole")
    train_until(11, MODEL, TRAIN, corpus, tmp_path / "run")
    resumed = train(MODEL, TRAIN, corpus, RUNTIME, tmp_path / "run")
    assert resumed.loss_nats == whole.loss_nats
    assert resumed.train_loss_nats == whole.train_loss_nats
    heads = replace(TRAIN.optimizer, muon=MuonConfig(per_head=True))
    per_head = train(MODEL, replace(TRAIN, optimizer=heads), corpus, RUNTIME, tmp_path / "heads")
    assert whole.loss_nats < math.log(257) - 1  # an even guess costs 5.55 nats
    assert per_head.loss_nats != whole.loss_nats


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match=r"optimizer\.muon is None, but optimizer\.kind is muon"):
        OptimizerConfig(kind="muon", peak_lr=1e-3)
    with pytest.raises(ConfigError, match=r"momentum=0\.9, .* but optimizer\.kind is adamw"):
        OptimizerConfig(muon=MuonConfig(momentum=0.9), peak_lr=1e-3)
    with pytest.raises(ConfigError, match=r"momentum must be in \[0, 1\), got 1"):
        MuonConfig(momentum=1)
