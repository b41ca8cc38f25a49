"""Telling whoever waits for a run how far it is."""

from __future__ import annotations

from collections.abc import Callable

from model.pauses import WorkingTime

OnProgress = Callable[[int, int, float], None]
"""Called as ``on_progress(step, num_steps, tokens_per_s)``, at most about once a second."""
PROGRESS_EVERY_S = 1.0


class Teller:
    """Calls ``on_progress`` about once a second, with the speed since the last time."""

    def __init__(
        self,
        on_progress: OnProgress | None,
        num_steps: int,
        batch_tokens: int,
        step: int,
        at: float,
    ) -> None:
        """``step`` and ``at``: where the run stands, and the clock that :meth:`tell` is told."""
        self._on_progress = on_progress
        self._num_steps, self._batch_tokens = num_steps, batch_tokens
        self._step, self._at = step, at
        self._shown_step, self._shown_at = step, at
        self._working = WorkingTime()
        self._worked_s = 0.0
        self._tokens_per_s: float | None = None

    def tell(self, step: int, now: float) -> None:
        """``step`` steps are done; called after each. What ``on_progress`` raises goes through."""
        if self._on_progress is None:
            return
        tokens = (step - self._step) * self._batch_tokens
        self._worked_s += self._working.of(now - self._at, tokens, self._tokens_per_s)
        self._step, self._at = step, now
        if now - self._shown_at < PROGRESS_EVERY_S:
            return
        tokens = (step - self._shown_step) * self._batch_tokens
        self._tokens_per_s = tokens / self._worked_s if self._worked_s > 0 else self._tokens_per_s
        self._on_progress(step, self._num_steps, self._tokens_per_s or 0.0)
        self._shown_step, self._shown_at, self._worked_s = step, now, 0.0
