"""How often, and after which pauses, a run that was ended from outside is tried again."""

from __future__ import annotations

BACKOFF_S = (1.0, 4.0, 16.0, 64.0)
"""Pauses before a run is tried again after its worker was killed or the store was away: as often as
there are pauses without getting any further. Together they outlast a minute without the store."""


class Retries:
    """Counts for each run; one that gets on begins its count anew, however often it is ended."""

    def __init__(self) -> None:
        self._tried: dict[str, int] = {}
        self._reached: dict[str, int] = {}

    def reached(self, run_id: str, step: int) -> None:
        """The run was seen at ``step`` when it ended."""
        if step > self._reached.get(run_id, 0):
            self._reached[run_id] = step
            self._tried.pop(run_id, None)

    def tried(self, run_id: str) -> int:
        """How often it was tried again without getting on; 0 for a run that was in no trouble."""
        return self._tried.get(run_id, 0)

    def next_pause_s(self, run_id: str) -> float | None:
        """The pause before it is tried once more; None where that was done often enough."""
        tried = self.tried(run_id)
        if tried == len(BACKOFF_S):
            return None
        self._tried[run_id] = tried + 1
        return BACKOFF_S[tried]
