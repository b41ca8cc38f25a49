"""One rank of the engine, its tensors counted: measured_memory.py MEETING_FILE. Prints JSON.

Counted: storages of weights, gradients and moments after a step; storages that a forward pass saves
for the backward pass, gathered weights among them. Gradients before they are reduced are as many
numbers as parameters, and taken as such.
"""

import json
import os
import sys

import torch
import torch.distributed as dist

from model.config import AttentionConfig, ModelConfig, MoEConfig
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
from windtunnel.machine.memory_plan import FLOAT32, rank_memory

SIZES = ((128, 128, 2, "fp32"), (192, 256, 4, "fp32"), (256, 256, 4, "bf16"))
"""Width, sequence length, sequences in a micro-batch, precision."""


def storage(tensor):
    local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return {local.untyped_storage().data_ptr(): local.untyped_storage().nbytes()}


def measure(width, length, sequences, precision):
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
    parallel = ParallelConfig(micro_batch=sequences)
    engine = Engine(model, train, parallel, torch.device("cpu"))
    windows = torch.randint(0, 512, (sequences, length + 1))
    engine.forward_backward(windows)
    engine.optimizer.step()
    weights, states = {}, {}
    for parameter in engine.module.parameters():
        weights |= storage(parameter)
        states |= storage(parameter.grad)
        for moment in ("exp_avg", "exp_avg_sq"):
            states |= storage(engine.optimizer.state[parameter][moment])
    engine.optimizer.zero_grad()

    saved, alive = {}, []

    def pack(tensor):
        alive.append(tensor)
        saved.update(storage(tensor))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.forward_backward(windows)
    kept = sum(size for place, size in saved.items() if place not in weights)
    params = sum(parameter.to_local().numel() for parameter in engine.module.parameters())
    planned = rank_memory(
        model, parallel, (4,), 0, (1,), sequence_length=length, is_bf16=precision == "bf16"
    )
    measured = sum(weights.values()) + sum(states.values()) + kept + params * FLOAT32
    return {"measured": measured, "planned": planned.total, "kept": kept}


torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
print(json.dumps([measure(*size) for size in SIZES]))
# Gloo's threads may still run when the interpreter tears down, and then abort it.
sys.stdout.flush()
os._exit(0)
