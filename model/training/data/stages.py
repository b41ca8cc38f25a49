"""Which mixture and sequence length each step of a run has.

A stage's windows are a pure function of the stage and the position in it. They go on in each domain
where the stages before stopped, so that nothing is read twice before all was read once. Only where
the sequence length changes the rest of a pass is drawn anew, and a text may come again early.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError
from model.training.data.stream import Mixture
from model.training.sources import DataStage


@dataclass(frozen=True)
class StageSpan:
    """One stage of one run: whole steps, and what the stages before it have read."""

    name: str
    """Empty for a run without stages."""
    first_step: int
    num_steps: int
    batch_tokens: int
    sequence_length: int
    mixture: Mixture
    windows_before: NDArray[np.int64]
    """[domains]: windows of this stage's length that earlier stages have read."""

    @property
    def windows_per_step(self) -> int:
        """Windows of one optimizer step."""
        return self.batch_tokens // self.sequence_length

    def tokens_read(self, num_steps: int) -> NDArray[np.int64]:
        """[domains]: tokens of each domain in the first ``num_steps`` of the stage."""
        return self.mixture.counts(num_steps * self.windows_per_step) * self.sequence_length


def lay_out(
    stages: Sequence[DataStage],
    weights: Mapping[str, float],
    *,
    num_steps: int,
    batch_tokens: int,
    sequence_length: int,
) -> tuple[StageSpan, ...]:
    """The stages of a run of ``num_steps``; without stages one, of ``weights``.

    Raises:
        ConfigError: a stage is shorter than a step, or its windows do not fill a batch.
    """
    whole = DataStage(name="run", frac=1.0, weights=dict(weights))
    spans: list[StageSpan] = []
    read = np.zeros(len(weights), dtype=np.int64)
    first = 0
    for index, stage in enumerate(stages or (whole,)):
        end = round(math.fsum(s.frac for s in stages[: index + 1]) * num_steps)
        end = end if stages else num_steps
        length = stage.sequence_length or sequence_length
        if end <= first:
            raise ConfigError(
                f"data.stages.{index}: {stage.name!r} has {stage.frac:g} of {num_steps} steps, "
                "less than one; train longer or give it a larger share"
            )
        if batch_tokens % length:
            raise ConfigError(
                f"data.stages.{index}: {stage.name!r} has sequences of {length} tokens, which do "
                f"not fill a batch of {batch_tokens}; choose a batch that is a multiple"
            )
        span = StageSpan(
            name=stage.name if stages else "",
            first_step=first,
            num_steps=end - first,
            batch_tokens=batch_tokens,
            sequence_length=length,
            mixture=Mixture.of({name: stage.weights[name] for name in weights}),
            windows_before=-(-read // length),
        )
        spans.append(span)
        read = read + span.tokens_read(span.num_steps)
        first = end
    return tuple(spans)


def span_at(spans: Sequence[StageSpan], step: int) -> StageSpan:
    """The stage that step ``step`` (from 0) belongs to; the last one for any later step."""
    return next(s for s in reversed(spans) if s.first_step <= step)


def tokens_by_domain(spans: Sequence[StageSpan], num_steps: int) -> NDArray[np.int64]:
    """[domains]: tokens that the first ``num_steps`` steps of the run read."""
    done = [min(max(num_steps - span.first_step, 0), span.num_steps) for span in spans]
    return np.sum([s.tokens_read(n) for s, n in zip(spans, done, strict=True)], axis=0)
