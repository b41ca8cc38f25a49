"""Ranks of the engine, their tensors counted: measured_memory.py. Prints JSON.

Counted on every rank: storages of its weights, gradients and moments after a step; and at the
fullest moment of a step the storages saved for backward passes, gathered weights among them.
Gradients before they are reduced are as many numbers as parameters, and taken as such.
"""

import json
from collections import Counter

import torch
import torch.utils.checkpoint
from gloo_ranks import on_ranks
from torch.utils.checkpoint import _recomputation_hook

from model import loss
from model.config import AttentionConfig, ModelConfig, MoEConfig
from model.kernels import step
from model.training.config import (
    BalanceConfig,
    CheckpointConfig,
    EvaluationConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrainConfig,
)
from model.training.distributed.config import ParallelConfig
from model.training.distributed.engine import Engine
from windtunnel.machine.memory_plan import FLOAT32, rank_memory, rank_params
from windtunnel.machine.pipeline import most_held

SIZES = {
    "one": (192, 256, "fp32", 4, ParallelConfig(micro_batch=4)),
    "one, bf16": (256, 256, "bf16", 4, ParallelConfig(micro_batch=4)),
    "one, recomputed": (192, 256, "fp32", 4, ParallelConfig(micro_batch=4, recompute=True)),
    "shard 2": (192, 256, "fp32", 4, ParallelConfig(shard=2, micro_batch=2)),
    "shard 2, expert 2": (192, 256, "bf16", 4, ParallelConfig(shard=2, expert=2, micro_batch=2)),
    "pipeline 2": (192, 256, "fp32", 4, ParallelConfig(pipeline=2, micro_batch=1)),
    "pipeline 2 x 2, recomputed": (
        192,
        256,
        "fp32",
        4,
        ParallelConfig(pipeline=2, virtual=2, micro_batch=1, recompute=True),
    ),
    "shard 2, expert 2, pipeline 2": (
        192,
        256,
        "bf16",
        4,
        ParallelConfig(shard=2, expert=2, pipeline=2, micro_batch=1),
    ),
    "context 2": (192, 256, "bf16", 4, ParallelConfig(shard=2, context=2, micro_batch=2)),
    "pipeline 2, zero-bubble": (
        192,
        256,
        "fp32",
        4,
        ParallelConfig(pipeline=2, schedule="zero_bubble", micro_batch=1),
    ),
}
"""Width, sequence length, precision, sequences in a step, parallel sizes."""


class Alive:
    """Storages that something holds, each once, and the most there ever was."""

    def __init__(self):
        self.holders, self.now, self.most = Counter(), 0, 0

    def hold(self, tensor):
        storage = tensor.untyped_storage()
        return Held(self, tensor, (storage.data_ptr(), storage.nbytes()))


class Held:
    """A tensor kept for a backward pass."""

    def __init__(self, alive, tensor, key):
        # Without its history: an output that is saved would keep itself alive.
        self.alive, self.tensor, self.key = alive, tensor.detach(), key
        alive.holders[key] += 1
        if alive.holders[key] == 1:
            alive.now += key[1]
            alive.most = max(alive.most, alive.now)

    def __del__(self):
        self.alive.holders[self.key] -= 1
        if not self.alive.holders[self.key]:
            self.alive.now -= self.key[1]


class Recomputing(_recomputation_hook):
    """What a block that is computed again keeps, until the next one is."""

    alive, held = None, []

    def __init__(self, frame, gid):
        super().__init__(frame, gid)
        self.held.clear()
        pack = self.pack_hook

        def hold(tensor):
            self.held.append(self.alive.hold(tensor))
            return pack(tensor)

        self.pack_hook = hold


def storage(tensor):
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return {local.untyped_storage().data_ptr(): local.untyped_storage().nbytes()}


def measure(width, length, precision, sequences, parallel):
    model = ModelConfig(
        vocab_size=512,
        hidden_size=width,
        num_layers=4,
        dense_width=2 * width,
        num_dense_layers=1,
        mtp_depth=1,
        attention=AttentionConfig(
            num_heads=width // 32, num_kv_heads=width // 64, head_dim=32, rotary_dim=16
        ),
        moe=MoEConfig(
            num_experts=16,
            experts_per_token=4,
            expert_width=width // 4,
            num_groups=4,
            groups_per_token=2,
        ),
    )
    train = TrainConfig(
        tokens=4 * length * sequences,
        batch_tokens=length * sequences,
        sequence_length=length,
        seed=0,
        optimizer=OptimizerConfig(peak_lr=1e-3),
        schedule=ScheduleConfig(),
        balance=BalanceConfig(),
        evaluation=EvaluationConfig(),
        checkpoint=CheckpointConfig(),
        precision=precision,
    )
    engine = Engine(model, train, parallel, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(0, 512, (sequences, length + 1), generator=generator)
    engine.forward_backward(windows)
    engine.optimizer.step()
    states = {}
    for parameter in engine.module.parameters():
        states |= storage(parameter) | storage(parameter.grad)
        for moment in ("exp_avg", "exp_avg_sq"):
            states |= storage(engine.optimizer.state[parameter][moment])
    engine.optimizer.zero_grad()

    alive = Recomputing.alive = Alive()
    torch.utils.checkpoint._recomputation_hook = Recomputing
    with torch.autograd.graph.saved_tensors_hooks(alive.hold, lambda held: held.tensor):
        engine.forward_backward(windows)
    place = engine.meshes.pipeline_rank
    counts = tuple(map(len, parallel.stage_layers(model.num_layers)))
    held = most_held(parallel, parallel.micro_batches(train))
    planned = rank_memory(
        model,
        parallel,
        counts,
        place,
        held[place],
        sequence_length=length,
        is_bf16=precision == "bf16",
    )
    whole = rank_params(model, parallel, counts, place)
    ungathered = (whole.routed // parallel.expert + whole.others) * FLOAT32
    return {
        "measured": sum(states.values()) + alive.most + ungathered,
        "planned": planned.total,
        "kept": alive.most,
    }


if __name__ == "__main__":
    # What the compiled operations of a CPU keep is less, and not what a GPU keeps.
    step.serves = lambda *tensors: False
    loss.BLOCK_SCORES = 2**60
    found = {
        name: on_ranks(size[-1].world_size, lambda rank, size=size: measure(*size))
        for name, size in SIZES.items()
    }
    print(json.dumps(found))
