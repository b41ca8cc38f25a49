"""What ends a run in one process ends it over many: on every rank, at one step, for one reason."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gone_wrong import COLLAPSE_STEPS, NOISE, RUNS, noisy
from small_run import MODEL, corpus_in

from model.training import reader
from model.training.config import RuntimeConfig
from model.training.data import PreparedCorpus
from model.training.trainer import train

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gone-wrong")


@pytest.fixture(scope="module")
def ended(folder):
    """How each run ended, as both ranks say."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests:{HERE}",
    }
    command = [sys.executable, str(HERE / "gone_wrong.py"), str(folder)]
    ran = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=1700
    )
    first, second = json.loads(ran.stdout.splitlines()[-1])
    assert first == second
    return first


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rate", "is nan at step"),
        ("gradient", "gradient norm is nan at step 5;"),
        ("collapse", f"75% of them are dead, at step {COLLAPSE_STEPS};"),
    ],
)
def test_all_ranks_give_it_up_together(ended, folder, name, said):
    found = ended[name]
    assert found["status"] == "diverged"
    assert said in found["reason"]
    assert found["steps"] < RUNS[name].num_steps
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    told = [line for line in map(json.loads, lines) if line["kind"] == "diverged"]
    assert [line["reason"] for line in told] == [found["reason"]]


def test_a_bad_gradient_on_one_rank_never_reaches_the_weights(ended):
    assert ended["gradient"]["steps"] == 4
    assert ended["gradient"]["loss_nats"] < 6  # measured with the weights of step 4


def test_they_go_back_together_to_where_one_process_does(ended, folder, monkeypatch):
    corpus = corpus_in(folder)
    monkeypatch.setattr(PreparedCorpus, "batch", noisy(PreparedCorpus.batch))
    monkeypatch.setattr(reader, "TOKENS_AHEAD", 1)
    alone = train(MODEL, RUNS["rewind"], corpus, RuntimeConfig(), folder / "alone")
    found = ended["rewind"]
    assert found["status"] == alone.status == "done"
    (rewind,), (expected,) = found["rewinds"], alone.rewinds
    assert rewind["step"] == expected["step"] == 64
    assert rewind["from_step"] == pytest.approx(expected["from_step"], abs=1)
    assert rewind["from_step"] in NOISE
    assert found["loss_nats"] == pytest.approx(alone.loss_nats, rel=0.02)
