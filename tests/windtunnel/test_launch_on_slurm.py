"""A launch over the nodes of a real Slurm: two of them, one rank each."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "sweeps"))

import toy_slurm

from sweeps.store import Store
from windtunnel.ledger import ledger_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(toy_slurm.missing()), reason=f"no Slurm: {toy_slurm.missing()}"),
]


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Any]:
    slurm = toy_slurm.ToySlurm(tmp_path / "slurm", nodes=2)
    yield slurm
    slurm.end()


def test_a_job_of_two_nodes_trains_the_promotion(
    slurm: Any, known_sweep: ModuleType, tmp_path: Path
) -> None:
    root = tmp_path / "tunnel"
    promotion = known_sweep.promote_small(root, promoted=("gpus=2", "hardware.gpus_per_node=1"))
    passed = known_sweep.overrides(root)
    words = ["executor=slurm", "executor.minutes=5", "executor.poll_s=0.5", *passed]
    command = [sys.executable, "-m", "windtunnel.cli", "launch", f"root={root}", *words]
    launched = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert launched.returncode == 0, launched.stderr + launched.stdout
    (script,) = (root / "slurm").glob("[0-9]*_submission.sh")
    assert "#SBATCH --nodes=2" in script.read_text()
    record = Store(root).record(promotion.run_id)
    assert record is not None
    parallel = record.provenance["numerics"]["parallel"]
    assert (parallel["shard"], parallel["pipeline"]) != (1, 1)
    entry = ledger_of(root).find(promotion.id)
    assert entry is not None
    assert entry.counts
