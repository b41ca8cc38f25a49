"""`windtunnel convert` from a run to the published layout and back, and what it refuses."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.checkpoint import Checkpoint, save_checkpoint
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    StageConfig,
    TrainConfig,
)
from model.training.corpora import SyntheticCorpus
from model.training.sources import DataStage
from model.transformer import build_model
from sweeps.spec import RunSpec
from sweeps.store import Store
from windtunnel.cli import main

MODEL = ModelConfig(
    vocab_size=64,
    hidden_size=16,
    num_layers=2,
    dense_width=24,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=2, num_kv_heads=1, head_dim=8, rotary_dim=4),
    moe=MoEConfig(num_experts=4, experts_per_token=2, expert_width=6),
)
SPEC = RunSpec(
    rung="s0",
    model=MODEL,
    train=TrainConfig(
        tokens=64,
        batch_tokens=32,
        sequence_length=16,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=1e-3),
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        mtp_loss_weight=0.3,
    ),
    corpus=SyntheticCorpus(),
    corpus_fingerprint="0" * 64,
    runtime=RuntimeConfig(),
)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with two checkpoints under ./tunnel, seen from the working directory."""
    monkeypatch.chdir(tmp_path)
    folder = Store(Path("tunnel")).create(SPEC)
    for step in (1, 2):
        tensors = {f"model.{n}": t for n, t in build_model(MODEL, seed=step).state_dict().items()}
        tensors |= {"run.rng": torch.get_rng_state(), "optimizer.x": torch.zeros(3)}
        save_checkpoint(folder / "checkpoints", Checkpoint(step, tensors, {}), keep=2)
    return folder


def files(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_a_run_is_exported_and_read_back(run, capsys):
    assert main(["convert", f"source={run.name}", "target=out", "dtype=fp32"]) == 0
    assert "out: 9.584k parameters, 5.552k active; 3 files" in capsys.readouterr().out
    config = json.loads(Path("out/config.json").read_text())
    assert config["max_position_embeddings"] == 16  # the run's sequence length
    assert config["eos_token_id"] == 63  # its tokenizer's last token
    assert config["mtp_loss_scaling_factor"] == 0.3

    assert main(["convert", "source=out", "target=ours"]) == 0
    weights = safetensors.torch.load_file("ours/weights.safetensors")
    newest = build_model(MODEL, seed=2).state_dict()
    assert weights.keys() == newest.keys()
    assert all(torch.equal(weights[name], newest[name]) for name in newest)

    command = ["convert", "source=ours", "dtype=fp32", "max_positions=16", "eos_token_id=63"]
    assert main([*command, "target=again"]) == 0
    shard = "model-00001-of-00001.safetensors"
    assert Path("again", shard).read_bytes() == Path("out", shard).read_bytes()


@pytest.mark.parametrize(
    ("newest", "rope_base", "positions", "yarn"),
    [(1, 10_000, 16, None), (2, 50_000, 32, None), (3, 50_000, 32, (2.0, 32))],
)
def test_a_run_of_stages_is_exported_as_its_last_step_was_computed(
    tmp_path, monkeypatch, newest, rope_base, positions, yarn
):
    """Of four steps two have 16 tokens, one 32 and another base, the last YaRN over those 32."""
    monkeypatch.chdir(tmp_path)
    even = {"synthetic": 1.0}
    stages = (
        DataStage(name="short", frac=0.5, weights=even),
        DataStage(name="long", frac=0.25, weights=even, sequence_length=32),
        DataStage(name="longest", frac=0.25, weights=even, sequence_length=64),
    )
    changes = (
        StageConfig(name="long", rope_base=5e4),
        StageConfig(name="longest", yarn_factor=2.0),
    )
    spec = replace(
        SPEC,
        train=replace(SPEC.train, tokens=256, batch_tokens=64, stages=changes),
        corpus=SyntheticCorpus(stages=stages),
    )
    folder = Store(Path("tunnel")).create(spec)
    step = newest + 1  # the first step of its stage is done, and of the first stage both
    tensors = {f"model.{n}": t for n, t in build_model(MODEL, seed=step).state_dict().items()}
    save_checkpoint(folder / "checkpoints", Checkpoint(step, tensors, {}), keep=2)
    assert main(["convert", f"source={folder.name}", "target=out"]) == 0
    config = json.loads(Path("out/config.json").read_text())
    assert config["rope_theta"] == rope_base
    if yarn is None:
        assert config["max_position_embeddings"] == positions
        assert not config.get("rope_scaling")
    else:
        scaling = config["rope_scaling"]
        assert (scaling["factor"], scaling["original_max_position_embeddings"]) == yarn
        assert config["max_position_embeddings"] == yarn[0] * yarn[1]


def test_the_default_is_bfloat16(run):
    assert main(["convert", f"source={run}", "target=out"]) == 0
    tensors = safetensors.torch.load_file("out/model-00001-of-00001.safetensors")
    dtypes = {n: t.dtype for n, t in tensors.items()}
    assert dtypes.pop("model.layers.0.mlp.gate.expert_bias") == torch.float32
    assert dtypes["lm_head.weight"] == torch.bfloat16


def test_what_it_refuses_in_one_line(run, capsys):
    def refused(*words):
        before = files(".")
        assert main(["convert", *words]) == 2
        assert files(".") == before
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "source=nowhere: neither a folder nor a run" in refused("source=nowhere", "target=out")
    Path("empty").mkdir()
    assert "source=empty: no run (spec.json)" in refused("source=empty", "target=out")
    assert "target: missing" in refused("source=empty")
    Path("there").mkdir()
    assert "there: exists already" in refused(f"source={run}", "target=there")
    Path("file").touch()
    assert "can't be a folder, file is a file" in refused(f"source={run}", "target=file/out")
    assert "max_shard_gb must be positive" in refused(
        f"source={run}", "target=out", "max_shard_gb=0"
    )
    assert "code_dir" in refused(f"source={run}", "target=out", "code_dir=empty")
    main(["convert", f"source={run}", "target=published"])
    main(["convert", "source=published", "target=ours"])
    capsys.readouterr()
    assert "max_positions: missing" in refused("source=ours", "target=out")


def test_a_damaged_checkpoint_is_not_exported(run, capsys):
    path = run / "checkpoints/step-00000002/tensors.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert main(["convert", f"source={run}", "target=out"]) == 2
    assert "does not match its hash" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main(["convert", f"source={run}", "target=out"]) == 2
    assert "this run has no checkpoints" in capsys.readouterr().err
    assert not os.path.exists("out")
