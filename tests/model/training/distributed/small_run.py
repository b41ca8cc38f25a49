"""A run of a second: prediction block, dense layer, groups, several experts a rank."""

from dataclasses import replace

import torch

from model.balance import RoutingRequest, update_biases
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    MuonConfig,
    OptimizerConfig,
    RuntimeConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.corpora import SyntheticCorpus
from model.training.data import prepare_corpus
from model.training.distributed.job import Job
from model.training.optim import clip_gradients, set_learning_rate
from model.training.precision import computing_in

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
HELDOUT_TOKENS = 32 * 21
"""Windows that no number of ranks divides, and that a pipeline's rounds do not."""


def corpus_in(folder):
    return prepare_corpus(CORPUS, folder / "data")


def job_in(folder, parallel, **others):
    """A job whose data and snapshots are in ``folder``; of no corpus unless ``others`` name one."""
    given = {"name": "run", "model": MODEL, "train": TRAIN, "corpus_fingerprint": "0" * 16}
    given["runtime"] = RuntimeConfig(data_dir=folder / "data", device="cpu")
    return Job(**given | others, parallel=parallel, snapshots_dir=folder / "snapshots")


def windows_of(step, count=16):
    """Text of a step for runs without a corpus."""
    draw = torch.Generator().manual_seed(step)
    length = TRAIN.sequence_length + 1
    # Few symbols, or four steps would learn nothing.
    return torch.randint(MODEL.vocab_size // 8, (count, length), generator=draw)


def step_of_ranks(learner, train, windows, rate):
    """One step of a share of the model: loss, prediction block's loss, norm."""
    result = learner.forward_backward(windows)
    norm = learner.clip(train.optimizer.clip_norm)
    learner.update(rate)
    learner.balance(result.loads, train.balance)
    return [result.loss_nats, result.mtp_nats, norm]


def step_alone(model, optimizer, train, windows, rate):
    """The same by the plain model in one process."""
    optimizer.zero_grad()
    with computing_in(train.precision, windows.device):
        result = model(windows[:, :-1], windows[:, 1:], request=RoutingRequest(losses=True))
    total = result.loss_nats
    if model.config.mtp_depth:
        total = total + train.mtp_loss_weight * result.mtp_loss_nats
    for stats in result.routing:
        total = total + train.balance.aux_loss_weight * stats.aux_loss
        total = total + train.balance.z_loss_weight * stats.z_loss
    total.backward()
    norm = clip_gradients(model.parameters(), train.optimizer.clip_norm)
    set_learning_rate(optimizer, rate)
    optimizer.step()
    update_biases(model, [stats.load_E for stats in result.routing], train.balance)
    mtp_nats = result.mtp_loss_nats.item() if model.config.mtp_depth else 0.0
    return [result.loss_nats.item(), mtp_nats, norm]
