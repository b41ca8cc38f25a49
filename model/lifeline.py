"""Ends a process with the one that started it, however that one went.

    python -m model.lifeline PARENT COMMAND...

becomes COMMAND, which the kernel will end when process PARENT is gone. A parent that is killed can
say nothing to its children; on Linux the kernel can.

COMMAND does not hear of SIGUSR2, by which Slurm warns every process of a job alike: what is to be
done about it is PARENT's to say, and would end a process that is still importing what it needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys


def end_with(parent: int) -> bool:
    """Ask the kernel to end this process when ``parent``, which must have started it, is gone.

    The kernel means the *thread* that started it. Elsewhere than on Linux nothing is asked.

    Returns:
        Whether ``parent`` is there: it may have died before the request.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    return os.getppid() == parent


if __name__ == "__main__":
    if not end_with(int(sys.argv[1])):
        sys.exit(f"process {sys.argv[1]}, which was to wait for this one, is gone")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.execvp(sys.argv[2], sys.argv[2:])
