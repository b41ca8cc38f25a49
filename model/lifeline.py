"""Ends a process with the one that started it, however that one went.

    python -m model.lifeline PARENT COMMAND...

becomes COMMAND, which is ended when process PARENT is gone. A parent that is killed can say nothing
to its children. On Linux the kernel does; elsewhere COMMAND is given a child that looks for PARENT.

COMMAND does not hear of SIGUSR2, by which Slurm warns every process of a job alike: what is to be
done about it is PARENT's to say, and would end a process that is still importing what it needs.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

LOOK_S = 0.2
"""Seconds between two looks for a parent."""


def end_with(parent: int) -> bool:
    """Ask the kernel to end this process when ``parent``, which must have started it, is gone.

    The kernel means the *thread* that started it. Elsewhere than on Linux nothing is asked: a
    process that goes on in Python sees for itself that its parent has changed, and for one that
    does not there is :func:`watch_for`.

    Returns:
        Whether ``parent`` is there: it may have died before the request.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    return os.getppid() == parent


def watch_for(parent: int) -> None:
    """Have a child kill this process when ``parent`` is gone; the child ends with this process.

    Only for a process that has no threads yet. The child has a session of its own, so that Ctrl-C
    does not end it first, and holds no output open.
    """
    watched = os.getpid()
    if os.fork():
        return
    os.setsid()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    while os.getppid() == watched:
        if not _is_there(parent):
            os.kill(watched, signal.SIGKILL)
        time.sleep(LOOK_S)
    os._exit(0)


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


if __name__ == "__main__":
    if not end_with(int(sys.argv[1])):
        sys.exit(f"process {sys.argv[1]}, which was to wait for this one, is gone")
    if sys.platform != "linux":
        watch_for(int(sys.argv[1]))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    os.execvp(sys.argv[2], sys.argv[2:])
