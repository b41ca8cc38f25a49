"""A run that is asked to stop: how it notices, and what it ends with."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INTERRUPTED = 75
"""Exit code of a process whose run was saved on SIGTERM (EX_TEMPFAIL: run it again)."""


class Interrupted(SystemExit):
    """The run was asked to stop, and was saved. Uncaught, it ends the process with code 75."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


@contextmanager
def sigterm_noticed() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, unless the caller handles SIGTERM or this is not its thread."""
    event = threading.Event()
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield event
        return
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
