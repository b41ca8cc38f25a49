"""Rules for runs that go wrong: each fires on what it is for, and stays silent on what heals."""

import math

import numpy as np
import pytest
import torch

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training import health as rules
from model.training.health import Health, HealthState

MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=16,
    num_layers=1,
    dense_width=16,
    attention=AttentionConfig(num_heads=1, num_kv_heads=1, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=32, experts_per_token=4, expert_width=8),
)


def watch(losses, num_steps=1000):
    health = Health(MODEL, num_steps)
    for step, loss in enumerate(losses, start=1):
        reason = health.check_loss(step, loss)
        if reason:
            return reason
    return ""


def falling(steps, noise=0.3, seed=0):
    rng = np.random.default_rng(seed)
    return 2 + 3.5 * np.exp(-np.arange(steps) / 50) + noise * rng.standard_normal(steps)


def test_a_noisy_but_falling_loss_is_healthy():
    for seed in range(20):
        assert watch(falling(600, seed=seed)) == ""


def test_a_spike_that_heals_is_healthy():
    losses = falling(400)
    losses[200:210] += 6

    assert watch(losses) == ""


@pytest.mark.parametrize(
    "loss_of_step",
    [
        pytest.param(lambda s: 2.0 if s < 100 else 4.5, id="jump"),
        pytest.param(lambda s: 2.0 + max(0, s - 100) * 0.02, id="climb"),
        pytest.param(lambda s: 5.5 + s * 0.1, id="never learned"),
    ],
)
def test_a_loss_that_rises_and_stays_has_diverged(loss_of_step):
    reason = watch([loss_of_step(step) for step in range(400)])

    assert reason.startswith("loss spike: the smoothed loss is")
    assert "at step" in reason
    assert "the learning rate may be beyond the stable edge; lower" in reason


def test_numbers_that_are_none_end_the_run_at_their_step():
    health = Health(MODEL, 10)

    assert health.check_finite(3, 5.0, 1.0) == ""
    found = health.check_finite(4, math.nan, 1.0), health.check_finite(5, 5.0, math.inf)
    what_to_do = "lower the learning rate, or leave such text out with health=rewind"
    assert found[0] == f"loss is nan at step 4; {what_to_do}"
    assert found[1] == f"gradient norm is inf at step 5; {what_to_do}"


EVEN = torch.full((2, 32), 1000)
COLLAPSED = EVEN.clone()
COLLAPSED[1] = 1
COLLAPSED[1, :4] = 8000


def lines_until_diverged(loads, num_steps=400, line_every=10):
    health = Health(MODEL, num_steps)
    for number, load in enumerate(loads):
        reason = health.check_load(number * line_every, (number + 1) * line_every, load)
        if reason:
            return number + 1, reason
    return None, ""


def test_a_router_that_stays_collapsed_is_given_up():
    lines, reason = lines_until_diverged([EVEN] * 5 + [COLLAPSED] * 50)

    assert lines == 5 + rules.COLLAPSE_STEPS / 10
    assert "router collapse: mixture layer 1 (from 0) uses 4.0 of 32 experts" in reason
    assert reason.endswith("a lower learning rate, keeps experts in use")


def test_dead_experts_count_even_where_the_rest_is_even():
    dead = torch.cat([torch.zeros(1, 18), torch.full((1, 14), 2000)], dim=1).long()

    _, reason = lines_until_diverged([dead] * 50)

    assert "56% of them are dead" in reason


def test_a_router_that_recovers_is_healthy():
    assert lines_until_diverged(([COLLAPSED] * 19 + [EVEN]) * 10) == (None, "")


def test_long_runs_are_given_longer():
    lines, _ = lines_until_diverged([COLLAPSED] * 150, num_steps=4000)

    assert lines == rules.COLLAPSE_FRAC * 4000 / 10


def test_too_few_choices_and_dense_models_say_nothing():
    assert lines_until_diverged([COLLAPSED // 1000] * 50) == (None, "")
    assert lines_until_diverged([torch.zeros(0, 0, dtype=torch.int64)] * 50) == (None, "")


def test_the_state_is_all_it_remembers():
    losses = [2.0] * 50 + [4.5] * 100
    expected = watch(losses)
    health = Health(MODEL, 1000)
    for step, loss in enumerate(losses, start=1):
        health.state = HealthState(**vars(health.state))  # as a checkpoint does
        reason = health.check_loss(step, loss)
        if reason:
            break
    assert reason == expected
