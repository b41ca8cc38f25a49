"""Rules that end a run which has gone wrong, with the reason and the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from model.config import ModelConfig
from model.training.config import STANDARD_HEALTH, HealthConfig
from model.training.routing_use import evenness

# The thresholds are far outside what a healthy run shows. Small models without a settled bias send
# most tokens to few experts for their first tens of steps and recover (LOG.md, 2026-11-23), so a
# router is judged by how long that lasts.
SMOOTHING_STEPS = 16
"""Time constant of the running mean of the loss."""
SPIKE_STEPS = 32
"""A spike that has not healed after so many steps has diverged: the rate is beyond the edge."""
COLLAPSE_RATIO = 1.5
"""A layer has collapsed if the experts in effect, exp(entropy of the load), are fewer than this
times the experts a token visits: all tokens then go to nearly the same few."""
MAX_COLLAPSE_FRAC = 0.5
"""The same as a share of all experts, at most."""
COLLAPSE_STEPS = 200
COLLAPSE_FRAC = 0.25
"""A router is given up after so many collapsed steps in a row, and this share of the run."""
MIN_CHOICES_PER_EXPERT = 32
"""Expected choices of an expert since the last line, below which its load says nothing."""


@dataclass
class HealthState:
    """What the rules remember; goes into the checkpoint."""

    smoothed_nats: float
    best_nats: float
    steps_in_spike: int = 0
    collapsed_since: int | None = None
    """Step of the line before the first of those in a row that show a collapse."""


class Health:
    """Watches losses, gradients and loads. Every method returns a reason, empty for a good run."""

    def __init__(
        self, config: ModelConfig, num_steps: int, limits: HealthConfig = STANDARD_HEALTH
    ) -> None:
        self._limits = limits
        uniform = math.log(config.vocab_size)
        self.state = HealthState(smoothed_nats=uniform, best_nats=uniform)
        self._experts_per_token = config.moe.experts_per_token if config.moe else 0
        self._collapse_steps = max(COLLAPSE_STEPS, COLLAPSE_FRAC * num_steps)
        self._advice = "lower the learning rate"
        if limits.on_spike == "end":
            self._advice += ", or leave such text out with health=rewind"

    def check_finite(self, step: int, loss_nats: float, grad_norm: float) -> str:
        """Before the update, so that the weights stay as they were before the bad step."""
        if not math.isfinite(loss_nats):
            return f"loss is {loss_nats} at step {step}; {self._advice}"
        if not math.isfinite(grad_norm):
            return f"gradient norm is {grad_norm} at step {step}; {self._advice}"
        return ""

    def check_loss(self, step: int, loss_nats: float) -> str:
        """A smoothed loss that rises far over its best and stays there."""
        state = self.state
        state.smoothed_nats += (loss_nats - state.smoothed_nats) / SMOOTHING_STEPS
        state.best_nats = min(state.best_nats, state.smoothed_nats)
        state.steps_in_spike = state.steps_in_spike + 1 if self.rise > 1 else 0
        if state.steps_in_spike < SPIKE_STEPS:
            return ""
        return (
            f"loss spike: the smoothed loss is {state.smoothed_nats:.3f} nats, "
            f"its best was {state.best_nats:.3f}, and it did not come back in {SPIKE_STEPS} steps, "
            f"at step {step}: the learning rate may be beyond the stable edge; {self._advice}"
        )

    @property
    def rise(self) -> float:
        """Of the smoothed loss over its best, in units of what counts as a spike."""
        return (self.state.smoothed_nats - self.state.best_nats) / self._limits.spike_nats

    def check_load(self, line_step: int, step: int, load_LE: Tensor) -> str:
        """Loads of all mixture layers [L, E], summed over the steps since ``line_step``."""
        loads: list[list[int]] = load_LE.tolist()
        num_experts = load_LE.shape[-1]
        if not loads or sum(map(sum, loads)) < MIN_CHOICES_PER_EXPERT * load_LE.numel():
            return ""
        layers = [evenness(load_E) for load_E in loads]
        in_effect = [found.normalized_entropy * num_experts for found in layers]
        max_dead_frac = self._limits.max_dead_frac
        # Capped, so that the rule says nothing where a token visits most experts anyway.
        floor = min(COLLAPSE_RATIO * self._experts_per_token, MAX_COLLAPSE_FRAC * num_experts)
        if min(in_effect) >= floor and max(f.dead_frac for f in layers) <= max_dead_frac:
            self.state.collapsed_since = None
            return ""
        if self.state.collapsed_since is None:
            self.state.collapsed_since = line_step
        if step - self.state.collapsed_since < self._collapse_steps:
            return ""
        worst = in_effect.index(min(in_effect))
        return (
            f"router collapse: mixture layer {worst} (from 0) uses {in_effect[worst]:.1f} of "
            f"{num_experts} experts in effect, {layers[worst].dead_frac:.0%} of them are dead, "
            f"at step {step}; balance=ling with a larger balance.update_rate, or a lower learning "
            "rate, keeps experts in use"
        )
