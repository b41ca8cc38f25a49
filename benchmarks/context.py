"""A longer context in stages, and what each position of the sequence gains by it.

    python benchmarks/context.py [FOLDER ["as Ling" "unchanged" "128 only"]]

Ling 2.0 goes from 4K tokens to 32K with a larger base of the rotary embedding and to 128K by YaRN
with factor 4. Here the same factors lead from 128 to 1,024 and 4,096 bytes of the standard library.
Trained are the stages as Ling has them, the same lengths with an unchanged embedding, and a run of
the same tokens at 128 alone, which is then read at 4,096 as it is and with YaRN. Printed are, in
nats per byte on the same held-out text, losses by position at 4,096.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from model.config import AttentionConfig, ModelConfig, MoEConfig, YarnConfig
from model.layers import Rotary
from model.training.checkpoint import checkpoint_paths, read_checkpoint
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
from model.training.corpora import StdlibCorpus
from model.training.data import PreparedCorpus, prepare_corpus
from model.training.evaluate import Evaluator, plain_forward
from model.training.learner import model_weights
from model.training.runtime import set_up
from model.training.sources import DataStage
from model.training.trainer import train
from model.transformer import build_model

SHORT, MIDDLE, LONG = 128, 1024, 4096
BATCH, STEPS = 4096, 500
HELDOUT_TOKENS = 2**17
MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=64,
    num_layers=2,
    dense_width=128,
    attention=AttentionConfig(
        num_heads=4, num_kv_heads=4, head_dim=16, rotary_dim=8, rope_base=312.5
    ),
    moe=MoEConfig(num_experts=16, experts_per_token=2, expert_width=32),
    init_std=0.012,
)
TRAIN = TrainConfig(
    tokens=BATCH * STEPS,
    batch_tokens=BATCH,
    sequence_length=SHORT,
    seed=0,
    optimizer=OptimizerConfig(peak_lr=4e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(),
    evaluation=EvaluationConfig(heldout_tokens=HELDOUT_TOKENS, num_intermediate=0),
    checkpoint=CheckpointConfig(),
)
AS_LING = (
    StageConfig(name="middle", rope_base=312.5 * 60),
    StageConfig(name="long", yarn_factor=4.0),
)


def main(folder: str, *names: str) -> None:
    """Train the runs (all three, or those named) below ``folder``, go on where that was stopped,
    and print the table.
    """
    root = Path(folder)
    shares = {"code": 0.7, "prose": 0.3}
    lengths = (("short", 0.6, None), ("middle", 0.25, MIDDLE), ("long", 0.15, LONG))
    stages = tuple(
        DataStage(name=name, frac=frac, weights=shares, sequence_length=length)
        for name, frac, length in lengths
    )
    longer = prepare_corpus(StdlibCorpus(weights=shares, stages=stages), root / "data")
    plain = prepare_corpus(StdlibCorpus(weights=shares), root / "data")
    runtime = RuntimeConfig(data_dir=root / "data")
    runs = {
        "as Ling": (longer, replace(TRAIN, stages=AS_LING)),
        "unchanged": (longer, TRAIN),
        "128 only": (plain, TRAIN),
    }
    for name in names or runs:
        corpus, config = runs[name]
        run_dir = root / name.replace(" ", "-")
        result = train(MODEL, config, corpus, runtime, run_dir)
        for stage in result.stages:
            show(f"{name}, after {stage['name']}", stage["loss_nats"], stage["by_position"])
        if corpus is plain:
            yarn = YarnConfig(factor=LONG / SHORT, original_positions=SHORT)
            stretched = replace(MODEL.attention, yarn=yarn)
            read_longer(f"{name}, read at 128", run_dir, plain, MODEL.attention, SHORT)
            read_longer(f"{name}, read at 4,096", run_dir, plain, MODEL.attention, LONG)
            read_longer(f"{name}, read at 4,096 with YaRN 32", run_dir, plain, stretched, LONG)


def read_longer(
    name: str, run_dir: Path, corpus: PreparedCorpus, attention: AttentionConfig, length: int
) -> None:
    """The run's last weights on windows of ``length`` tokens."""
    device = set_up(RuntimeConfig())
    model = build_model(MODEL, seed=0)
    newest = checkpoint_paths(run_dir / "checkpoints")[0]
    model.load_state_dict(model_weights(read_checkpoint(newest).tensors))
    model.rotary = Rotary(attention)
    evaluator = Evaluator(MODEL, corpus, sequence_length=length, tokens_per_domain=HELDOUT_TOKENS)
    evaluation = evaluator(plain_forward(model, "fp32", device))
    show(name, evaluation.loss_nats, evaluation.by_position)


def show(name: str, loss_nats: float, by_position: object) -> None:
    """One row."""
    assert isinstance(by_position, (list, tuple))
    cells = " ".join(f"{first}:{nats:.3f}" for first, nats in by_position)
    print(f"{name:<38} {loss_nats:.4f}  {cells}", flush=True)


if __name__ == "__main__":
    main(*(sys.argv[1:] or ["tunnel/context"]))
