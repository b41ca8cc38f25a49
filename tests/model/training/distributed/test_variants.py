"""Real processes: other models and rules than the small run's, and what ranks save and read."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_run import step_alone, windows_of
from variants import STEPS, VARIANTS

from model.layers import Rotary
from model.training.distributed.experts import _WeightedSum
from model.training.evaluate import plain_forward
from model.training.optim import build_optimizer
from model.transformer import build_model

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What every rank of every variant saw."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{PROJECT}:{PROJECT}/tests:{HERE}",
    }
    command = [sys.executable, HERE / "variants.py", tmp_path_factory.mktemp("variants")]
    ran = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=500
    )
    return json.loads(ran.stdout.splitlines()[-1])


def in_one_process(variant):
    model = build_model(variant.model, seed=variant.train.seed)
    optimizer = build_optimizer(model, variant.train.optimizer)
    rate, lines = variant.train.optimizer.peak_lr, []
    for step in range(STEPS):
        if step in variant.attention:
            model.rotary = Rotary(variant.attention[step])
        lines.append(step_alone(model, optimizer, variant.train, windows_of(step), rate))
    with torch.no_grad():
        forward = plain_forward(model, variant.train.precision, torch.device("cpu"))
        nats_WT, _ = forward(windows_of(9, 5), slice(None))
    return lines, nats_WT


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_the_single_process(seen, name):
    variant = VARIANTS[name]
    lines, nats_WT = in_one_process(variant)
    assert lines[0][0] - lines[-1][0] > 0.02, "a loss that does not fall shows nothing"
    clip_norm = variant.train.optimizer.clip_norm
    assert variant.train.optimizer.kind == "muon" or all(norm > clip_norm for *_, norm in lines)
    # A number in bfloat16 is off by up to 4e-3.
    tolerance = 2e-3 if variant.train.precision == "bf16" else 1e-5
    for rank in seen[name]:
        torch.testing.assert_close(rank["lines"], lines, rtol=tolerance, atol=0)
        nats = torch.tensor(rank["nats"])
        torch.testing.assert_close(nats, nats_WT, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(("name", "format"), [("bf16", "bfloat16"), ("uneven-experts", "float32")])
def test_ranks_compute_in_the_format_that_was_asked_for(seen, name, format):
    """Losses of four steps cannot tell: they differ by as much from the order of sums."""
    for rank in seen[name]:
        for layers in ("products", "gathered experts", "visits"):
            assert rank["types"][layers] == [f"torch.{format}"], layers


def test_answers_in_bfloat16_are_summed_in_the_gates_format():
    """256 + 1 is 256 in bfloat16."""
    y_SD = torch.tensor([[256.0], [1.0], [3.0]], dtype=torch.bfloat16)
    found = _WeightedSum.apply(y_SD, torch.ones(3), torch.tensor([1, 1, 0]), 2)
    assert found.dtype == torch.float32
    assert found.tolist() == [[3.0], [257.0]]


def test_experts_travel_between_neighbours(seen):
    peers = [rank["expert_peers"] for rank in seen["uneven-experts"]]
    assert peers == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_save_and_read(seen):
    for found in seen["saved"]:
        assert found["moved"], "or the rest would show nothing"
        assert found["sizes"].startswith("ConfigError: the parallel sizes multiply to 4 processes")
        assert found["numerics"] == 2
        assert found["kept"] == ["step-00000002"]
        assert not found["left"], "a file of a save that was killed"
        for told in ("reading_changes_nothing", "read", "resumed", "points", "points_stay"):
            assert found[told], told
        assert found["from_one"]
        assert found["kept_for_good"] == 2
        assert found["missing"] == "BrokenCheckpoint: __0_0.distcp is missing or cut short"
        assert found["changed"] == "BrokenCheckpoint: __0_0.distcp does not match its hash"
        assert found["refused"]
        assert found["removed"]
