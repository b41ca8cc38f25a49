"""A whole model on one GPU: what the plan counts; the programs that measure it, on a CPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from model.config import ModelConfig
from model.typed import build
from windtunnel import cli
from windtunnel.machine.hardware import Hardware
from windtunnel.machine.one_gpu import one_gpu_plan

ROOT = Path(__file__).resolve().parents[2]
H200 = Hardware(
    name="h200",
    peak_flops_per_s=989e12,
    memory_bytes=int(141e9),
    memory_bytes_per_s=4.8e12,
    gpus_per_node=8,
    node_bytes_per_s=450e9,
    network_bytes_per_s=50e9,
    matmul_efficiency=0.55,
    grouped_efficiency=0.3,
    output_efficiency=0.55,
    link_efficiency=0.8,
    usable_memory_frac=0.92,
)


def ling_mini(**how):
    model = build(ModelConfig, yaml.safe_load((ROOT / "conf/model/ling_mini.yaml").read_text()))
    settings = {"sequences": 8, "recompute": True, "updates_in_backward": False, **how}
    return one_gpu_plan(model, H200, sequence_length=4096, **settings)


def test_ling_mini_fits_one_gpu():
    plan = ling_mini()
    assert plan.tokens == 8 * 4096
    assert plan.weights == pytest.approx(2 * 16.26e9, rel=1e-3)
    assert plan.moments == pytest.approx(2.03 * 16.26e9, rel=1e-3)
    # All but the embedding's and the dense layer's, whose turn comes after the last mixture.
    assert plan.gradients == pytest.approx(2 * (16.255e9 - 0.322e9 - 0.042e9), rel=1e-3)
    assert 100e9 < plan.memory_bytes < H200.memory_bytes * H200.usable_memory_frac
    parts = plan.weights + plan.moments + plan.gradients + plan.activations + plan.temporaries
    assert plan.memory_bytes == parts


def test_what_is_dropped_early_is_not_held():
    after, within = ling_mini(), ling_mini(updates_in_backward=True)
    assert within.memory_bytes < 80e9 < after.memory_bytes
    assert within.gradients < 2 * after.gradients / 20
    assert within.step_s == after.step_s
    kept = ling_mini(recompute=False)
    assert kept.activations > 10 * after.activations
    assert kept.step_s < after.step_s
    assert kept.utilisation > after.utilisation
    # The fullest moment of a kept forward pass is its end, that of a recomputed one its beginning.
    assert kept.gradients < after.gradients / 5


def test_the_command_shows_it_and_refuses_what_it_has_not(capsys):
    words = ["machine", "model=ling_mini", "hardware=h200", "gpus=1", "parallel=one_gpu"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "32,768" in out
    assert "fits the" in out
    assert cli.main([*words, "gpus=8"]) == 2
    assert "parallel=one_gpu plans for one GPU, gpus is 8" in capsys.readouterr().err
    assert cli.main([*words, "build=true"]) == 2
    assert "no ranks to build" in capsys.readouterr().err
    assert cli.main([*words, "batch_tokens=0"]) == 2
    assert "batch_tokens must be positive, got 0" in capsys.readouterr().err
    assert cli.main([*words, "parallel.sequences=0"]) == 2
    assert "sequences must be positive, got 0" in capsys.readouterr().err


def run(name, monkeypatch, *options):
    """The main function of a benchmark; its exit code."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", [name, "device=cpu", *options])
    return importlib.import_module(name).main()


def test_the_program_for_ling_mini_runs_at_a_small_size(monkeypatch, tmp_path, capsys):
    sizes = ["model=tiny", "length=64", "sequences=2", "steps=3", "in_backward=false,true"]
    sizes += ["settle=2", "warmup_steps=0"]
    assert run("ling_mini_gpu", monkeypatch, *sizes, f"json={tmp_path / 'found.json'}") == 0
    assert "tokens a second" in capsys.readouterr().out
    after, within = json.loads((tmp_path / "found.json").read_text())["cases"]
    assert after["steps"] == within["steps"] == 3
    assert not after["in_backward"]
    assert within["in_backward"]
    # The same text once more, by the same model: it has learnt.
    assert within["by_step"][0]["loss_nats"] < after["by_step"][0]["loss_nats"]


def test_the_program_for_fp8_runs_on_a_cpu(monkeypatch, tmp_path, capsys):
    assert run("fp8_gpu", monkeypatch, "tokens=0", f"json={tmp_path / 'found.json'}") == 0
    assert "cpu has no FP8 units" in capsys.readouterr().out
    rows = json.loads((tmp_path / "found.json").read_text())["agreement"]
    # Of normal numbers, some of them 30 times as large: 0.03 from E4M3's three bits.
    assert len(rows) == 12
    assert all(row["rounding"] < 0.05 for row in rows)
