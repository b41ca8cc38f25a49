"""The text of a run's steps, drawn some steps ahead: a draw costs the same for one step or many."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model.training.data import PreparedCorpus
from model.training.data.stages import StageSpan, span_at

TOKENS_AHEAD = 65_536
"""Half a megabyte. 8,192 cost 17 us a step of 256 tokens, these 7 (2026-11-26)."""


class Reader:
    """Batches by step; the text is a pure function of the step, so nothing of this is saved."""

    def __init__(self, corpus: PreparedCorpus, spans: Sequence[StageSpan]) -> None:
        self._corpus, self._spans = corpus, spans
        self._first = self._last = 0
        self._windows = torch.empty(0)

    def batch(self, step: int) -> Tensor:
        """The windows of step ``step`` (from 0): [windows, sequence_length + 1]."""
        span = span_at(self._spans, step)
        if not self._first <= step < self._last:
            count = max(1, TOKENS_AHEAD // span.batch_tokens)
            end = span.first_step + span.num_steps
            if step < end:  # a run that went back reads on behind the end of its last stage
                count = min(count, end - step)
            self._windows = torch.from_numpy(self._corpus.batch(self._spans, step, count))
            self._first, self._last = step, step + count
        row = (step - self._first) * span.windows_per_step
        return self._windows[row : row + span.windows_per_step]
