"""A run of a second: prediction block, dense layer, groups, several experts a rank."""

from dataclasses import replace

from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    MuonConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.corpora import SyntheticCorpus
from model.training.data import prepare_corpus

CORPUS = SyntheticCorpus(tokens=60_000, num_symbols=64)
MODEL = ModelConfig(
    vocab_size=257,
    hidden_size=32,
    num_layers=4,
    dense_width=32,
    num_dense_layers=1,
    mtp_depth=1,
    attention=AttentionConfig(num_heads=4, num_kv_heads=2, head_dim=8, rotary_dim=4),
    moe=MoEConfig(
        num_experts=8,
        experts_per_token=2,
        expert_width=16,
        num_groups=2,
        groups_per_token=1,
    ),
    init_std=0.02,
)
TRAIN = TrainConfig(
    tokens=512 * 40,
    batch_tokens=512,
    sequence_length=32,
    seed=3,
    optimizer=OptimizerConfig(peak_lr=3e-3),
    schedule=ScheduleConfig(),
    balance=BalanceConfig(z_loss_weight=1e-3),
    evaluation=EvaluationConfig(heldout_tokens=1024, num_intermediate=1),
    checkpoint=CheckpointConfig(every_s=1e9),
)
MUON = replace(
    TRAIN, optimizer=OptimizerConfig(kind="muon", muon=MuonConfig(per_head=True), peak_lr=3e-3)
)


def corpus_in(folder):
    return prepare_corpus(CORPUS, folder / "data")
