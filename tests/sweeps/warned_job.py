"""A Slurm job whose worker is warned a second before it: ``warned_job.py RUN_DIR EXIT_PATH PHASE``.

PHASE is ``training``, where the worker saves and stops, or ``starting``, where the warning ends it.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from sweeps.executors.slurm import WorkerJob

run_dir, exit_path = Path(sys.argv[1]), Path(sys.argv[2])
STARTING = ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGUSR2)")
toy_worker = str(Path(__file__).parent / "toy_worker.py")
is_starting = sys.argv[3] == "starting"
command = STARTING if is_starting else (toy_worker,)
job = WorkerJob(run_dir, 0, exit_path, 1, (sys.executable, *command))


def warn():
    if not is_starting:
        while not (run_dir / "attempts/0001/checkpoints/state.json").exists():
            time.sleep(0.02)
        os.kill(job._worker.pid, signal.SIGUSR2)
    while job._worker is None or job._worker.returncode is None:
        time.sleep(0.02)
    time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGUSR2)


def requeue(*_):
    job.checkpoint()
    print("requeued", flush=True)
    os._exit(0)


signal.signal(signal.SIGUSR2, requeue)
threading.Thread(target=warn, daemon=True).start()
job()
print("ended", flush=True)
