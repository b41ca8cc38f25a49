"""How long a run on prepared shards takes to its first step, beyond importing torch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model.kernels import adamw
from model.training.corpora import SyntheticCorpus
from model.training.data import prepare_corpus

PROJECT = Path(__file__).resolve().parents[3]
FIRST_STEP = """
import json, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
began = time.process_time()
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training import progress
from model.training.config import *
from model.training.data import open_corpus
from model.training.trainer import train
progress.PROGRESS_EVERY_S = 0.0
model = ModelConfig(
    vocab_size=257, hidden_size=32, num_layers=2, dense_width=32,
    attention=AttentionConfig(num_heads=2, num_kv_heads=2, head_dim=16, rotary_dim=8),
    moe=MoEConfig(num_experts=8, experts_per_token=2, expert_width=16),
)
config = TrainConfig(
    tokens=128 * 100, batch_tokens=128, sequence_length=32, seed=0,
    optimizer=OptimizerConfig(peak_lr=1e-3), schedule=ScheduleConfig(), balance=BalanceConfig(),
    evaluation=EvaluationConfig(), checkpoint=CheckpointConfig(),
)
def stop(step, *_):
    raise KeyError
folder, fingerprint = Path(sys.argv[1]), sys.argv[2]
try:
    corpus = open_corpus(folder, fingerprint)
    train(model, config, corpus, RuntimeConfig(), folder / "run", on_progress=stop)
except KeyError:
    print(json.dumps([time.process_time() - began, "torch._dynamo" in sys.modules]))
"""


@pytest.mark.slow
def test_the_first_step_comes_within_two_seconds_of_importing_torch(tmp_path):
    corpus = prepare_corpus(SyntheticCorpus(tokens=200_000, num_symbols=8), tmp_path)
    command = [sys.executable, "-c", FIRST_STEP, str(tmp_path), corpus.fingerprint]
    ran = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT, check=False)
    assert ran.returncode == 0, ran.stderr
    cpu_s, is_compiler_imported = json.loads(ran.stdout.splitlines()[-1])
    assert cpu_s < 2
    # The framework's compiler is a second of them, and nothing here is compiled by it.
    assert not (is_compiler_imported and adamw.serves([]))
