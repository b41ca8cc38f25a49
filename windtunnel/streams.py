"""Standard streams as a shell leaves them: closed, or read by somebody who has gone."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def open_closed_streams() -> None:
    """Give a stream that the shell closed (``>&-``) somewhere to go: the next file opened, a run's
    own perhaps, would get its number, and what is printed."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(opened := os.open(os.devnull, os.O_RDWR), number)  # inherited by every worker
            if opened != number:
                os.close(opened)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def write_out(text: str = "") -> None:
    """Write to standard output as it is, and what waits there; nothing where nobody reads on."""
    _write(sys.stdout, text)


def write_error(text: str) -> None:
    """The same to standard error."""
    _write(sys.stderr, text)


def silence_stdout() -> None:
    """Let what is still printed to standard output go nowhere."""
    _silence(sys.stdout)


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:  # `windtunnel ... | head`
        _silence(stream)


def _silence(stream: TextIO) -> None:
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
