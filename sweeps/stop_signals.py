"""What asks a driver to stop: Ctrl-C, SIGTERM, and a terminal that is closed.

A laptop's lid or a lost connection closes a terminal, and then everything written to it fails. So
what still goes there goes nowhere from then on, and the workers save their runs as they do after
Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STANDARD_OUTPUTS = (1, 2)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP set ``stop``; a second SIGINT or SIGTERM interrupts at once.

    A SIGHUP that is ignored, as under ``nohup``, stays so.
    """
    terminals = [number for number in STANDARD_OUTPUTS if os.isatty(number)]

    def handle(number: int, frame: object) -> None:
        if number == signal.SIGHUP:  # may come twice, from the shell and from the system
            _silence(terminals)
        elif stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _silence(terminals: list[int]) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
