"""Starting a worker without paying for its imports: a process that has them, and forks.

Importing the trainer takes seconds, a small run takes seconds too. One server process imports once
and forks a child for each run: the child is a process of its own, with its own memory, signals,
threads and end, so nothing passes from one run to the next. The server computes nothing itself and
starts no thread, which is what makes forking safe.

Driver and server speak lines of JSON over the server's standard input and output:

    {"run": 7, "run_dir": "...", "after": 0, "environment": {...}}    start worker 7
    {"run": 7, "signal": 15}                                          signal it
    {"run": 7, "exit": 0}                                             the answer: it ended

When the driver goes, its end of the pipe closes and the kernel ends the server; when the server
goes, the kernel ends the children. Signals go through the server because only a parent knows that
a process id still means its child.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sweeps.liveness import PARENT_VARIABLE
from sweeps.trouble import store_trouble

KILL_S = 5.0
"""Seconds the server has to report that a killed child is gone."""


class ForkServer:
    """The driver's end: starts the server with the first worker, and again if it dies."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = (*command, "--serve")
        # numpy's matrix library would start its threads on import, and a process with threads
        # can't be forked safely. Torch has its own, which starts them when a child computes.
        self._environment = {**environment, "OPENBLAS_NUM_THREADS": "1"}
        self._server: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._count = 0
        self._running: set[int] = set()
        self._exits: dict[int, int] = {}

    def start(self, run_dir: Path, after: int, environment: Mapping[str, str]) -> ForkedWorker:
        """Have the server fork a worker."""
        self._pump()
        if self._server is None:
            self._start_server(run_dir / "log.txt")
        self._count += 1
        self._running.add(self._count)
        self._send(
            {
                "run": self._count,
                "run_dir": str(run_dir),
                "after": after,
                "environment": dict(environment),
            }
        )
        return ForkedWorker(self, self._count)

    def close(self) -> None:
        """End the server; a child that still runs ends with it."""
        if self._server is None:
            return
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.kill()
        self._server.wait()
        with suppress(BrokenPipeError):  # a request it never read
            self._server.stdin.close()
        self._server.stdout.close()
        self._server = None

    def exit_code(self, run: int) -> int | None:
        """How worker ``run`` ended, None while it runs."""
        if run in self._running:
            self._pump()
        return self._exits.get(run)

    def signal(self, run: int, number: int) -> None:
        """Signal worker ``run`` if it still runs."""
        if run in self._running:
            self._send({"run": run, "signal": number})

    def kill(self, run: int) -> None:
        """Kill worker ``run`` and wait until it is gone; the server too if it does not answer."""
        self.signal(run, signal.SIGKILL)
        end = time.monotonic() + KILL_S
        while self.exit_code(run) is None:
            if time.monotonic() > end and self._server is not None:
                self._server.kill()
            time.sleep(0.01)

    def _start_server(self, log_path: Path) -> None:
        with open(log_path, "ab") as log:
            self._server = subprocess.Popen(
                self._command,
                env={**self._environment, PARENT_VARIABLE: str(os.getpid())},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                bufsize=0,
            )
        assert self._server.stdout is not None
        os.set_blocking(self._server.stdout.fileno(), False)
        self._unread = b""

    def _send(self, message: Mapping[str, object]) -> None:
        assert self._server is not None
        assert self._server.stdin is not None
        with suppress(BrokenPipeError):  # it died: the next look at its output says so
            self._server.stdin.write(json.dumps(message).encode() + b"\n")

    def _pump(self) -> None:
        """Take in what the server has said; if it is gone, so are its children."""
        if self._server is None:
            return
        assert self._server.stdout is not None
        while (said := self._server.stdout.read(65_536)) is not None:
            if said == b"":
                # Its own failure, an import for instance, or it was killed and its children too.
                code = self._server.wait() or -signal.SIGKILL
                self._exits |= dict.fromkeys(self._running, code)
                self._running.clear()
                self.close()
                return
            *lines, self._unread = (self._unread + said).split(b"\n")
            for line in lines:
                message = json.loads(line)
                self._exits[message["run"]] = message["exit"]
                self._running.discard(message["run"])


class ForkedWorker:
    """One child of the server, as the driver sees it."""

    def __init__(self, server: ForkServer, run: int) -> None:
        self._server = server
        self._run = run

    def poll(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._server.exit_code(self._run)

    def terminate(self) -> None:
        """SIGTERM."""
        self._server.signal(self._run, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        self._server.kill(self._run)


def serve(work: Callable[[Path, int], int]) -> int:
    """The server: fork a child for each request until the driver closes the pipe."""
    requests, answers = _private_pipes()
    wakeup_read, wakeup_write = os.pipe()
    os.set_blocking(wakeup_write, False)
    os.set_blocking(requests, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup_write, warn_on_full_buffer=False)
    children: dict[int, int] = {}  # run -> process id, reaped by nobody but us
    unread = b""
    selector = selectors.DefaultSelector()
    selector.register(requests, selectors.EVENT_READ)
    selector.register(wakeup_read, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fd == wakeup_read:
                os.read(wakeup_read, 4096)
                _reap(children, answers)
                continue
            said = os.read(requests, 65_536)
            if not said:
                return 0
            *lines, unread = (unread + said).split(b"\n")
            for line in lines:
                message = json.loads(line)
                run = message["run"]
                if "signal" not in message:
                    pid = os.fork()
                    if pid == 0:
                        signal.set_wakeup_fd(-1)
                        for descriptor in (requests, answers, wakeup_read, wakeup_write):
                            os.close(descriptor)
                        _be_worker(message, work)
                    children[run] = pid
                elif run in children:
                    os.kill(children[run], message["signal"])


def _private_pipes() -> tuple[int, int]:
    """Our input and output under other numbers, so that nothing a child prints gets between."""
    requests, answers = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    # The log of the first run, too: what comes before this is in it, and a file that stays open for
    # writing would keep the store's file system from being remounted read-only, or unmounted.
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)
    return requests, answers


def _reap(children: dict[int, int], answers: int) -> None:
    for run, pid in list(children.items()):
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            del children[run]
            code = os.waitstatus_to_exitcode(status)
            os.write(answers, json.dumps({"run": run, "exit": code}).encode() + b"\n")


def _be_worker(message: Mapping[str, object], work: Callable[[Path, int], int]) -> None:
    """The child: never returns."""
    code = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        environment = message["environment"]
        assert isinstance(environment, dict)
        os.environ.update(environment)
        os.environ[PARENT_VARIABLE] = str(os.getppid())
        run_dir = Path(str(message["run_dir"]))
        try:
            log = os.open(run_dir / "log.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            trouble = store_trouble(run_dir, error)
            if trouble is None:
                raise
            sys.exit(trouble.exit_code)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        code = work(run_dir, int(str(message["after"])))
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
