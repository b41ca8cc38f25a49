"""Moments of one byte: unbiased, bounded, resumed to the bit, and as good as float32 ones."""

from dataclasses import replace

import pytest
import torch
import toy_runs
from toy_runs import RUNTIME, train_until

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.errors import ConfigError
from model.training.adamw8bit import AdamW8bit, update_in_backward
from model.training.config import BalanceConfig, EvaluationConfig, OptimizerConfig
from model.training.corpora import SyntheticCorpus
from model.training.data import prepare_corpus
from model.training.distributed.config import ParallelConfig
from model.training.moments import (
    BLOCK,
    draws_of,
    pack_first,
    pack_second,
    random_bits,
    round_at_random,
    unpack_first,
    unpack_second,
)
from model.training.optim import build_optimizer
from model.training.trainer import train
from model.transformer import build_model
from model.weights import open_checkpoint_weights

CPU = torch.device("cpu")


def spread(*shape, seed=0, orders=2.0):
    """Numbers over several orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    size = (torch.randn(shape, generator=generator) * orders).exp()
    return torch.randn(shape, generator=generator) * size


def test_the_bits_are_those_of_the_hash():
    def lowbias32(x):
        x ^= x >> 16
        x = x * 0x7FEB352D % 2**32
        x ^= x >> 15
        x = x * 0x846CA68B % 2**32
        return x ^ x >> 16

    for start, seed in ((0, 1), (7, 2**31 - 1), (2**31 - 2, 5), (2**32 + 9, 0)):
        expected = [lowbias32((start + i) % 2**32 ^ seed) for i in range(5)]
        assert [bits % 2**32 for bits in random_bits(start, 5, seed, CPU).tolist()] == expected


@pytest.mark.parametrize(
    ("pack", "unpack", "power", "levels"),
    [(pack_first, unpack_first, 2, 127), (pack_second, unpack_second, 4, 255)],
)
def test_codes_are_neighbours_and_right_on_average(pack, unpack, power, levels):
    x = spread(40, BLOCK)
    if pack is pack_second:
        x = x.square()
    total = torch.zeros_like(x, dtype=torch.float64)
    rounds = 400
    for seed in range(rounds):
        draws = draws_of(random_bits(0, x.numel(), seed * 7919, CPU), 16).view_as(x)
        found = unpack(pack(x, draws))
        total += found.double()
    scale = x.abs().amax(1, keepdim=True).double()
    place = levels * (x.abs() / scale).pow(1 / power)
    gap = ((place.floor() + 1) / levels).pow(power) - (place.floor() / levels).pow(power)
    gap = gap.clamp(max=1) * scale
    assert torch.all((found - x).abs() <= gap * (1 + 1e-4))
    # 400 roundings of variance at most gap² / 4: five standard errors, and a draw's own 1/512.
    seen = place > 1  # below the lowest code a second moment is rounded up
    off = (total / rounds - x).abs() / gap
    assert off[seen].max() < 5 * 0.5 / rounds**0.5 + 1 / 512
    assert off[seen].mean() < 0.03


def test_zeros_the_largest_and_the_smallest_survive():
    x = torch.zeros(2, BLOCK)
    x[1, 3], x[1, 4] = -3.0, 1e-30
    draws = torch.full_like(x, 0.99)
    assert torch.equal(unpack_first(pack_first(x, draws))[1, :4], x[1, :4])
    second = unpack_second(pack_second(x.square(), draws))
    assert torch.all(second[0] == 0)
    assert second[1, 3] == 9
    tiny = torch.full((1, BLOCK), 1e-14)
    tiny[0, 0] = 1.0
    assert unpack_second(pack_second(tiny, draws))[0, 1] > 0


def test_a_second_moment_fades_without_gradients():
    """Rounded to the nearest, every code below 39 would stay for ever."""
    parameter = torch.nn.Parameter(torch.zeros(32 * BLOCK))
    optimizer = AdamW8bit([parameter], lr=0.0, betas=(0.9, 0.95), eps=1e-8)
    parameter.grad = torch.full_like(parameter, 0.02)
    parameter.grad[::BLOCK] = 1.0  # so that the others' codes are about 36
    optimizer.step()
    others = torch.ones(32 * BLOCK, dtype=torch.bool)
    others[::BLOCK] = False

    def second():
        state = optimizer.state[parameter]
        ratio = state["exp_avg_sq"].float().view(-1, BLOCK) / 255
        return (ratio**4 * state["exp_avg_sq_scale"][:, None]).view(-1)[others].mean().item()

    before = second()
    parameter.grad.zero_()
    parameter.grad[::BLOCK] = 1.0
    for _ in range(20):
        optimizer.step()
    assert second() == pytest.approx(before * 0.95**20, rel=0.05)


@pytest.mark.parametrize("shape", [(300, 77), (5,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_first_step_is_that_of_adamw(shape, dtype):
    """Its moments are rounded only after they were used."""
    start, grad = spread(*shape).to(dtype), spread(*shape, seed=1).to(dtype)
    mine, theirs = (torch.nn.Parameter(start.clone().to(d)) for d in (dtype, torch.float32))
    mine.grad, theirs.grad = grad, grad.float()
    settings = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-8}
    groups = [{"params": [mine], "weight_decay": 0.1}]
    AdamW8bit(groups, **settings).step()
    torch.optim.AdamW([theirs], weight_decay=0.1, **settings).step()
    if dtype == torch.float32:
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)
    else:
        apart = (mine.float() - theirs).abs()
        assert torch.all(apart <= theirs.abs() * 2**-7 + 1e-30)


def test_later_steps_stay_near_those_of_adamw():
    start = spread(64, 512)
    mine, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8}
    ours, other = (
        AdamW8bit([mine], **settings),
        torch.optim.AdamW([theirs], weight_decay=0.0, **settings),
    )
    size = (torch.randn(64, 512, generator=torch.Generator().manual_seed(99)) / 2).exp()
    for step in range(50):
        grad = size * (torch.randn(64, 512, generator=torch.Generator().manual_seed(step)) + 0.3)
        mine.grad, theirs.grad = grad.clone(), grad
        ours.step()
        other.step()
    apart = (mine - theirs).norm() / (theirs - start).norm()
    assert apart < 0.03
    # Without a bias: what is left does not point along the way.
    along = torch.dot((mine - theirs).flatten(), (theirs - start).flatten())
    assert abs(along) / (theirs - start).norm() ** 2 < 5e-3


def test_bfloat16_weights_move_by_less_than_their_distance():
    x = torch.full((100_000,), 1.0 + 2**-10)  # an eighth of the way from 1 to the next number
    found = round_at_random(x, random_bits(0, x.numel(), 3, CPU))
    assert set(found.float().unique().tolist()) == {1.0, 1.0 + 2**-7}
    assert found.double().mean().item() == pytest.approx(1 + 2**-10, abs=5e-5)
    parameter = torch.nn.Parameter(torch.ones(SIZE := 8192, dtype=torch.bfloat16))
    optimizer = AdamW8bit([parameter], lr=1e-4, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(100):
        parameter.grad = torch.full((SIZE,), 0.5, dtype=torch.bfloat16)
        optimizer.step()
    # Each step moves by lr; the distance of two numbers below 1 is 39 times that.
    assert parameter.detach().double().mean().item() == pytest.approx(0.99, abs=5e-4)


def test_a_state_takes_two_bytes_and_a_thirty_second():
    parameter = torch.nn.Parameter(torch.zeros(1000, 1000))
    optimizer = AdamW8bit([parameter], lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    held = sum(t.untyped_storage().nbytes() for t in optimizer.state[parameter].values())
    assert held / parameter.numel() == pytest.approx(2 + 8 / BLOCK, rel=1e-3)


MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=64,
    num_layers=2,
    dense_width=96,
    num_dense_layers=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=8, experts_per_token=2, expert_width=32),
    init_std=0.1,
)
TRAIN = replace(
    toy_runs.TRAIN,
    tokens=256 * 60,
    batch_tokens=256,
    sequence_length=64,
    seed=0,
    optimizer=OptimizerConfig(kind="adamw8bit", peak_lr=5e-3),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(heldout_tokens=2048, num_intermediate=0),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return prepare_corpus(SyntheticCorpus(tokens=40_000, num_symbols=8), folder)


def test_a_run_reaches_the_loss_of_float32_moments(corpus, tmp_path):
    losses = {}
    for kind in ("adamw", "adamw8bit"):
        config = replace(TRAIN, optimizer=replace(TRAIN.optimizer, kind=kind))
        losses[kind] = train(MODEL, config, corpus, RUNTIME, tmp_path / kind).loss_nats
    assert losses["adamw"] < 2.2  # it learns: an even guess costs 5.5 nats, the symbols' 2.08
    assert losses["adamw8bit"] != losses["adamw"]
    assert losses["adamw8bit"] == pytest.approx(losses["adamw"], abs=0.01)


def test_a_run_goes_on_to_the_bit(corpus, tmp_path):
    config = replace(TRAIN, tokens=256 * 12)
    whole = train(MODEL, config, corpus, RUNTIME, tmp_path / "whole")
    train_until(7, MODEL, config, corpus, tmp_path / "run")
    resumed = train(MODEL, config, corpus, RUNTIME, tmp_path / "run")
    assert resumed.loss_nats == whole.loss_nats
    assert resumed.train_loss_nats == whole.train_loss_nats


def test_a_run_without_float32_weights(corpus, tmp_path):
    config = replace(TRAIN, precision="bf16_weights")
    result = train(MODEL, config, corpus, RUNTIME, tmp_path)
    assert result.loss_nats < 2.25
    weights = open_checkpoint_weights(max((tmp_path / "checkpoints").iterdir()))
    types = {name: weight.dtype for name, weight in weights.items()}
    assert types.pop("blocks.1.feed_forward.router.selection_bias") == torch.float32
    assert set(types.values()) == {torch.bfloat16}
    with pytest.raises(ConfigError, match="bf16_weights: rounding to the nearest would lose"):
        replace(config, optimizer=OptimizerConfig(peak_lr=1e-3))


def updated(in_backward):
    model = build_model(MODEL, seed=0, dtype=torch.bfloat16, kernel="grouped")
    optimizer = build_optimizer(model, TRAIN.optimizer)
    handles = update_in_backward(model, optimizer) if in_backward else []
    for step in range(3):
        tokens = torch.randint(0, 257, (2, 33), generator=torch.Generator().manual_seed(step))
        model(tokens[:, :-1], tokens[:, 1:]).loss_nats.backward()
        if in_backward:
            assert all(p.grad is None for p in model.parameters())
        else:
            optimizer.step()
            optimizer.zero_grad()
    for handle in handles:
        handle.remove()
    return model.state_dict()


def test_updates_within_the_backward_pass_are_the_same():
    before, within = updated(in_backward=False), updated(in_backward=True)
    for name, expected in before.items():
        assert torch.equal(within[name], expected), name


def test_many_processes_refuse_it():
    with pytest.raises(ConfigError, match=r"optimizer\.kind adamw8bit is for one process"):
        ParallelConfig(micro_batch=4).check(MODEL, TRAIN)
