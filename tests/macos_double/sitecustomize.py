"""A double of macOS's Python, on Linux: what is not there on a Mac is not here, either.

Put this folder first on ``PYTHONPATH``; every interpreter started under it, and those it starts,
then has no ``/proc``, ``/sys`` or ``/dev/shm``, none of the functions of ``os``, ``signal``,
``select``, ``time`` and ``socket`` that Python's documentation gives to Linux alone, and answers
``darwin``. ``sysctl``, ``vm_stat`` and ``sw_vers`` are scripts in this folder's ``bin``.

What it can't double: Apple's compiler, C library and file system, and the libraries' own builds.
"""

import builtins
import ctypes
import errno
import fcntl
import io
import multiprocessing
import os
import platform
import resource
import select
import signal
import socket
import sys
import sysconfig
import time
import types

ABSENT = {
    os: (
        "copy_file_range eventfd eventfd_read eventfd_write fdatasync getrandom "
        "getresgid getresuid getxattr listxattr memfd_create pidfd_open pipe2 posix_fadvise "
        "posix_fallocate removexattr sched_getaffinity sched_getparam sched_getscheduler "
        "sched_rr_get_interval sched_setaffinity sched_setparam sched_setscheduler setns "
        "setresgid setresuid setxattr splice unshare waitid "  # waitid: there from 3.13 on
        "O_DIRECT O_LARGEFILE O_NOATIME O_PATH O_RSYNC O_TMPFILE P_PIDFD ST_APPEND ST_MANDLOCK "
        "ST_NOATIME ST_NODEV ST_NODIRATIME ST_NOEXEC ST_RELATIME ST_SYNCHRONOUS ST_WRITE"
    ),
    select: "epoll EPOLLIN EPOLLOUT",
    signal: "SIGCLD SIGPOLL SIGPWR SIGRTMAX SIGRTMIN SIGSTKFLT pidfd_send_signal sigtimedwait "
    "sigwaitinfo",
    socket: "AF_NETLINK AF_PACKET AF_VSOCK SOCK_CLOEXEC SOCK_NONBLOCK",
    time: "CLOCK_BOOTTIME CLOCK_TAI pthread_getcpuclockid",
    resource: "RLIMIT_MSGQUEUE RLIMIT_NICE RLIMIT_OFILE RLIMIT_RTPRIO RLIMIT_RTTIME "
    "RLIMIT_SIGPENDING RUSAGE_THREAD prlimit",
}
LINUX_FOLDERS = ("/proc", "/sys", "/dev/shm")
F_FULLFSYNC = 51
"""The number on a Mac; no command of that number is known to Linux."""


def is_of_linux(path: object) -> bool:
    """Whether ``path`` lies where a Mac has nothing."""
    if isinstance(path, int):
        return False
    try:
        text = os.path.normpath(os.fsdecode(path))  # type: ignore[arg-type]
    except TypeError:
        return False
    return any(text == folder or text.startswith(f"{folder}/") for folder in LINUX_FOLDERS)


def blinded(function):
    """``function``, for which Linux's folders are not there."""

    def blind(path=".", *args, **kwargs):
        if is_of_linux(path):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return function(path, *args, **kwargs)

    blind.__name__ = getattr(function, "__name__", "blind")
    return blind


def be_a_mac():
    """Change this interpreter."""
    sysconfig.get_config_vars()  # read from a file that is named after Linux
    sys.platform = "darwin"
    for module, names in ABSENT.items():
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    for name in ("open", "stat", "lstat", "listdir", "scandir", "readlink", "access"):
        setattr(os, name, blinded(getattr(os, name)))
    io.open = builtins.open = blinded(io.open)
    linux = os.uname()
    parts = ("Darwin", linux.nodename, "24.5.0", "Darwin Kernel Version 24.5.0", "arm64")
    mac = os.uname_result(parts)
    os.uname = lambda: mac
    platform._uname_cache = None
    platform.processor = lambda: "arm"
    platform.mac_ver = lambda *_: ("15.5", ("", "", ""), "arm64")
    sys.modules["_scproxy"] = types.SimpleNamespace(_get_proxy_settings=dict, _get_proxies=dict)
    multiprocessing.set_start_method("spawn", force=True)
    in_kib = resource.getrusage

    def getrusage(who):
        usage = in_kib(who)
        fields = list(usage)
        fields[2] *= 1024  # a Mac counts in bytes
        return resource.struct_rusage(fields)

    resource.getrusage = getrusage
    load = ctypes.CDLL.__init__

    def load_ours(self, name, *args, **kwargs):
        # The libraries here are Linux's, which ask for their parts by a Mac's names.
        if name is not None and str(name).endswith(".dylib"):
            name = f"{str(name).removesuffix('.dylib')}.so"
        load(self, name, *args, **kwargs)

    ctypes.CDLL.__init__ = load_ours
    of_linux = fcntl.fcntl

    def full(descriptor, command, *argument):
        if command == F_FULLFSYNC:
            os.fsync(descriptor)
            return 0
        return of_linux(descriptor, command, *argument)

    fcntl.F_FULLFSYNC, fcntl.fcntl = F_FULLFSYNC, full


be_a_mac()
