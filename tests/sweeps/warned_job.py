"""A Slurm job whose worker is warned a second before it: ``warned_job.py RUN_DIR EXIT_PATH``."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

from sweeps.executors.slurm import WorkerJob

run_dir, exit_path = Path(sys.argv[1]), Path(sys.argv[2])
toy_worker = str(Path(__file__).parent / "toy_worker.py")
job = WorkerJob(run_dir, 0, exit_path, 1, (sys.executable, toy_worker))


def warn():
    while not (run_dir / "attempts/0001/checkpoints/state.json").exists():
        time.sleep(0.02)
    os.kill(job._worker.pid, signal.SIGUSR2)
    while not (run_dir / "attempts/0001/outcome.json").exists():
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
