"""A Slurm of a node or two on the loopback address, started for a test and ended with it.

Everything it writes lies in one folder; it has a munge daemon of its own and listens on free ports,
so that a Slurm the machine belongs to is not touched. ``SLURM_CONF`` points the commands at it.
"""

import importlib.util
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "srun", "munged")

CONF = """
ClusterName=toy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=120
SlurmUser=root
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,defer_batch
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=30
MinJobAge=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
{nodes}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=toy Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=off
"""


def missing() -> str:
    """Why no Slurm can be started here; empty if one can."""
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)}: install slurm-wlm and munge"
    if importlib.util.find_spec("submitit") is None:
        return "no submitit: pip install submitit"
    return "" if os.geteuid() == 0 else "a Slurm of one's own needs root"


class ToySlurm:
    """The daemons: a controller, munge, and one for each node."""

    def __init__(self, folder: Path, nodes: int = 1) -> None:
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []
        self._hurried: set[str] = set()
        for name in ("state", "spool"):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        conf = folder / "slurm.conf"
        host, ports = socket.gethostname(), _free_ports(1 + nodes)
        names = [f"toy{number}" for number in range(1, nodes + 1)]
        lines = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 "
            "RealMemory=1000 State=UNKNOWN"
            for name, port in zip(names, ports[1:], strict=True)
        ]
        conf.write_text(CONF.format(host=host, folder=folder, ports=ports, nodes="\n".join(lines)))
        os.environ["SLURM_CONF"] = str(conf)
        munge = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munge.pid",
            "seed-file": "munge.seed",
            "log-file": "munge.log",
        }
        options = [f"--{name}={folder / file}" for name, file in munge.items()]
        self._start("munged", "--foreground", "--force", *options)
        self._wait_for(lambda: (folder / "munge.socket").exists())
        self._start("slurmctld", "-D", "-c")
        for name in names:
            (folder / "spool" / name).mkdir()
            self._start("slurmd", "-D", "-N", name)
        idle = ["idle"] * nodes
        self._wait_for(
            lambda: (
                ask("sinfo", "--noheader", "--Node", "--format=%T", "--partition=toy").split()
                == idle
            )
        )

    def end(self) -> None:
        """Jobs, daemons and all."""
        ask("scancel", "--me")
        self._wait_for(lambda: not ask("squeue", "--noheader"))
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in reversed(self._daemons):
            daemon.wait(timeout=120)
        del os.environ["SLURM_CONF"]

    def hurry(self) -> None:
        """Let requeued jobs start in two seconds: Slurm has them wait for two minutes.

        Not at once: a node that has ended a job refuses the credentials of that second and of those
        before it, and the job would be over instead of going on.
        """
        jobs = map(str.split, ask("squeue", "--noheader", "--format=%i %r").splitlines())
        waiting = {job for job, reason, *_ in jobs if reason == "BeginTime"}
        for job in waiting - self._hurried:
            ask("scontrol", "update", f"JobId={job}", "StartTime=now+2")
        self._hurried = waiting

    def _start(self, program: str, *options: str) -> None:
        with open(self.folder / f"{program}.out", "wb") as out:
            self._daemons.append(
                subprocess.Popen([program, *options], stdout=out, stderr=subprocess.STDOUT)
            )

    def _wait_for(self, condition, within_s: float = 300.0) -> None:
        end = time.monotonic() + within_s
        while not condition():
            dead = [daemon.args[0] for daemon in self._daemons if daemon.poll() is not None]
            if dead or time.monotonic() > end:
                logs = [
                    path.read_text(errors="replace")[-1500:] for path in self.folder.glob("*.out")
                ]
                raise RuntimeError(f"Slurm did not start ({dead}):\n" + "\n".join(logs))
            time.sleep(0.1)


def ask(*command: str) -> str:
    """What a Slurm command prints."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports
