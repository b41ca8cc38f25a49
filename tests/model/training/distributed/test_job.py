"""A job and its end, with a script in the place of the agent."""

import json
import signal
import sys
from dataclasses import replace

import pytest
from small_run import job_in
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from model.errors import ConfigError, RunFailed
from model.files import write_file
from model.training.distributed import agent
from model.training.distributed.config import ParallelConfig
from model.training.distributed.job import Failure, RankLost, failure_file, run_job
from model.training.evaluation import DomainLoss, LayerLoad
from model.training.result import TrainResult
from model.training.stopping import EXIT_INTERRUPTED
from model.typed import to_plain

LAYER = LayerLoad(
    layer=1, max_vio=0.5, min_vio=0.25, normalized_entropy=0.9, dead_frac=0.0, load=(0.75, 0.25),
    batch_max_vio=0.6, batch_min_vio=0.5, gate_entropy=0.8, top_k_mass=0.4, specialisation=0.1,
    coactivation=0.2, saturation=None,
)  # fmt: skip
RESULT = TrainResult(
    status="done", reason="", steps=40, tokens=20_480, loss_nats=4.5, bits_per_byte=6.5,
    train_loss_nats=4.25, load_by_layer=(LAYER,), wall_s=3.0, tokens_per_s=1000.0,
    by_domain={"synthetic": DomainLoss(loss_nats=4.5, bits_per_byte=6.5, tokens=10, bytes=12)},
    seconds={"step": 2.0}, epochs={"synthetic": 0.5}, numerics={"torch": "2"},
)  # fmt: skip


@pytest.fixture
def job(tmp_path):
    return job_in(tmp_path, ParallelConfig(shard=4, micro_batch=4), name="toy")


def run_by(script, job, folder, on_progress=lambda *told: None):
    """Run ``job``; in the place of its agent ``script``, in ``folder``."""
    begin = f"import os, sys, time\nos.chdir({str(folder)!r})\n"
    return run_job(job, folder, on_progress, (sys.executable, "-c", begin + script))


def ended(rank, exit_code, said="", at=50.0):
    return Failure(rank=rank, pid=100 + rank, exit_code=exit_code, said=said, at=at)


def note(folder, failure):
    content = json.dumps(to_plain(failure)).encode()
    write_file(failure_file(folder, failure.rank), content)


def test_nothing_of_the_attempt_before_is_taken_for_this_ones(job, tmp_path):
    for name in ("stop", "progress.json", "result.json"):
        (tmp_path / name).write_text("[]")
    note(tmp_path, ended(3, -signal.SIGKILL))
    (tmp_path / "answer").write_text(json.dumps(to_plain(RESULT)))
    script = (
        "left = {'stop', 'progress.json', 'result.json', 'failure-3.json'} & {*os.listdir()}\n"
        "assert not left, left\n"
        "assert sys.argv[-1] == os.getcwd()\n"
        "os.rename('answer', 'result.json')"
    )
    assert run_by(script, job, tmp_path) == RESULT
    with pytest.raises(RunFailed, match=r"toy.*its agent ended with exit code 3"):
        run_by("sys.exit(3)", job, tmp_path)


def test_progress_is_told_and_whoever_refuses_it_ends_the_job(job, tmp_path):
    heard = []

    def on_progress(*told):
        heard.append(told)
        raise KeyboardInterrupt

    script = (
        "open('progress.json', 'w').write('[7, 1234.5]')\n"
        "while not os.path.exists('stop'): time.sleep(0.05)\n"
        "open('saved', 'w')"
    )
    with pytest.raises(KeyboardInterrupt):
        run_by(script, job, tmp_path, on_progress)
    assert heard == [(7, 40, 1234.5)]
    assert (tmp_path / "saved").exists(), "it was not waited for"


@pytest.mark.parametrize(
    ("failures", "error", "said"),
    [
        (
            [ended(0, -signal.SIGTERM), ended(2, 1, "OSError: disk", at=51)],
            RunFailed,
            r"rank 2 of 4 \(process 102\) failed: OSError: disk$",
        ),
        ([ended(1, 9)], RunFailed, r"rank 1 of 4 \(process 101\) failed: exit code 9$"),
        (
            [ended(0, 1, "lost"), ended(3, -signal.SIGKILL, at=52)],
            RankLost,
            r"rank 3 of 4 \(process 103\) was killed by SIGKILL, and",
        ),
        ([ended(n, EXIT_INTERRUPTED) for n in range(4)], RankLost, "asked to stop, and is saved"),
    ],
)
def test_the_end_of_a_job_names_its_cause(job, tmp_path, failures, error, said):
    script = "import json\n" + "".join(
        f"open('failure-{f.rank}.json', 'w').write({json.dumps(to_plain(f))!r})\n" for f in failures
    )
    with pytest.raises(error, match=said):
        run_by(script + "sys.exit(1)", job, tmp_path)


def test_an_agent_leaves_a_ranks_own_words(tmp_path):
    seen = ProcessFailure(local_rank=0, pid=7, exitcode=-9, error_file=str(tmp_path / "none"))
    note(tmp_path, ended(0, 1, "ValueError: no"))
    for rank in range(2):
        agent._note(tmp_path, rank, seen)
    own, noted = (
        Failure(**json.loads(failure_file(tmp_path, rank).read_text())) for rank in range(2)
    )
    assert own == ended(0, 1, "ValueError: no")
    assert noted == Failure(rank=1, pid=7, exit_code=-9, said="", at=seen.timestamp)


def test_nodes_have_as_many_ranks_each(job):
    with pytest.raises(ConfigError, match=r"nodes .3. must divide the 4 processes"):
        replace(job, nodes=3)
