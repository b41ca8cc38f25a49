"""The stages of a run: from which step on which text, context, learning rate and balance hold.

A stage is a pure function of the step, so that a resumed run is in the right one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from model.config import AttentionConfig, ModelConfig, YarnConfig, require
from model.training.config import BalanceConfig, TrainConfig
from model.training.data.stages import StageSpan, lay_out
from model.training.sources import DataStage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage, resolved."""

    name: str
    """Empty for a run without stages."""
    last_step: int
    """The stage is over after so many steps of the run."""
    sequence_length: int
    attention: AttentionConfig
    """With the stage's rotary embedding."""
    lr_factor: float
    balance: BalanceConfig


def lay_out_stages(
    model: ModelConfig, config: TrainConfig, spans: Sequence[StageSpan]
) -> tuple[Stage, ...]:
    """What each of the data's ``spans`` is trained with.

    Raises:
        ConfigError: an entry of ``config.stages`` names no stage of the data.
    """
    names = [span.name for span in spans]
    for change in config.stages:
        require(
            change.name in names,
            f"stages: {change.name!r} is no stage of the data ({', '.join(filter(None, names))})",
        )
    changes = {change.name: change for change in config.stages}
    stages: list[Stage] = []
    attention = model.attention
    longest = config.sequence_length
    for span in spans:
        balance, lr_factor = config.balance, 1.0
        if (entry := changes.get(span.name)) is not None:
            lr_factor = entry.lr_factor
            if entry.rope_base is not None:
                attention = replace(attention, rope_base=entry.rope_base)
            if entry.yarn_factor is not None:
                yarn = YarnConfig(factor=entry.yarn_factor, original_positions=longest)
                attention = replace(attention, yarn=yarn)
            if entry.balance_rate is not None:
                balance = replace(balance, update_rate=entry.balance_rate)
        stages.append(
            Stage(
                name=span.name,
                last_step=span.first_step + span.num_steps,
                sequence_length=span.sequence_length,
                attention=attention,
                lr_factor=lr_factor,
                balance=balance,
            )
        )
        longest = max(longest, span.sequence_length)
    return tuple(stages)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """The stage that step ``step`` (from 0) belongs to."""
    return next((stage for stage in stages if step < stage.last_step), stages[-1])


def model_after(
    num_steps: int, model: ModelConfig, config: TrainConfig, stages: Sequence[DataStage]
) -> tuple[ModelConfig, int]:
    """What a run with these ``stages`` of the data has trained after so many of its steps.

    Returns:
        The model with the rotary embedding of the stage it was in, and the longest sequence it has
        seen, in tokens.
    """
    spans = lay_out(
        stages,
        stages[0].weights if stages else {"": 1.0},
        num_steps=config.num_steps,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
    )
    laid_out = lay_out_stages(model, config, spans)
    seen = [
        stage for stage, span in zip(laid_out, spans, strict=True) if span.first_step < num_steps
    ]
    longest = max(stage.sequence_length for stage in seen)
    return replace(model, attention=seen[-1].attention), longest
