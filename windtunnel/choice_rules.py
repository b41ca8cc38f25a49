"""Each number of a recommended run with the rule it comes from, its interval, and what snapping it
to a shape that exists costs in predicted loss.
"""

from __future__ import annotations

from analysis.laws import LossSurface
from analysis.study import Study
from model.accounting import flops_per_token
from sweeps.plan import SweepConfig
from sweeps.recipe import PowerLawRule
from sweeps.spec import RunSpec
from windtunnel.choices import Allocated, Choice
from windtunnel.targets import Target, target_name


def allocation_choices(
    study: Study, target: Target, allocated: Allocated, spec: RunSpec
) -> tuple[Choice, ...]:
    """Compute, size and tokens, with the surface's own price for not being at its optimum."""
    law = study.surface.law
    assert isinstance(law, LossSurface)
    size = flops_per_token(spec.model, spec.train.sequence_length).house
    tokens, flops = spec.train.tokens, allocated.train_flops
    best = allocated.optimum
    shaped = float(law(size, allocated.tokens_at(size)))
    final = float(law(size, tokens))
    return (
        Choice(
            name="train_flops",
            law=f"target {target_name(target)}",
            wanted=flops,
            used=size * tokens,
            note="the target's own, no interval",
        ),
        Choice(
            name="flops_per_token",
            law=allocated.law,
            wanted=best.size.value,
            low=best.size.low,
            high=best.size.high,
            level=best.size.level,
            used=size,
            cost_nats=shaped - best.loss.value,
            note=allocated.note,
        ),
        Choice(
            name="tokens",
            law="the target's, in whole batches"
            if allocated.fixed_tokens is not None
            else "train_flops / flops_per_token, in whole batches",
            wanted=best.tokens.value,
            low=best.tokens.low,
            high=best.tokens.high,
            level=best.tokens.level,
            used=tokens,
            cost_nats=final - shaped,
            note="wanted is the optimum's; used belongs to the shape that was built",
        ),
    )


def recipe_choices(config: SweepConfig, spec: RunSpec) -> tuple[Choice, ...]:
    """What the recipe's published laws and fixed ratios give; the sweep fitted none of them."""
    recipe, train, moe = config.recipe, spec.train, spec.model.moe
    flops = flops_per_token(spec.model, train.sequence_length).house * train.tokens
    published = "a published law, no interval was published and this sweep did not refit it"
    held = "held equal along the ladder, so no law over it was fitted"
    training = recipe.training
    choices = [
        Choice(
            name="peak_lr",
            law=_rule(training.peak_lr, training.peak_lr_factor),
            wanted=training.peak_lr_factor * training.peak_lr(flops),
            used=train.optimizer.peak_lr,
            note=published,
        ),
        Choice(
            name="batch_tokens",
            law=_rule(training.batch_tokens, training.batch_factor),
            wanted=training.batch_factor * training.batch_tokens(flops),
            used=train.batch_tokens,
            note=f"{published}; in whole sequences, the surface puts no price on it",
        ),
        Choice(
            name="balance_update_rate",
            law="the sweep's protocol",
            wanted=config.balance.update_rate,
            used=train.balance.update_rate,
            note=held,
        ),
    ]
    if moe is not None and spec.model.granularity is not None:
        shape = recipe.shape
        visited = shape.experts_per_token + shape.num_shared_experts
        choices += [
            Choice(
                name="activation_ratio",
                law="the recipe's experts",
                wanted=visited / (shape.num_experts + shape.num_shared_experts),
                used=moe.activation_ratio,
                note=held,
            ),
            Choice(
                name="granularity",
                law="the recipe's ratio 2·width / expert width",
                wanted=shape.granularity,
                used=spec.model.granularity,
                note=held,
            ),
        ]
    return tuple(choices)


def _rule(rule: PowerLawRule, factor: float) -> str:
    scale = "" if factor == 1 else f"{factor:g} · "
    return f"{scale}{rule.coefficient:g}·C^{rule.exponent:g}"
