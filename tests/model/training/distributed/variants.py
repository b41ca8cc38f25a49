"""Short runs of other models and rules, and `saved.py`: variants.py FOLDER.

As in `ranks.py` forks meet through a file; JSON on the last line of stdout.
"""

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.distributed as dist
from gloo_ranks import on_ranks
from saved import save_and_read
from small_run import MODEL, MUON, TRAIN, step_of_ranks, windows_of

from model.config import AttentionConfig, ModelConfig
from model.training.config import TrainConfig
from model.training.distributed import experts
from model.training.distributed.config import ParallelConfig
from model.training.distributed.share import ShareOfModel
from model.training.run import initial_state
from model.training.stages import Stage

CPU = torch.device("cpu")
STEPS = 4
# An eps like the gradients', or AdamW would make good whatever factor they all have.
CLIPPED = replace(TRAIN, optimizer=replace(TRAIN.optimizer, peak_lr=3e-2, eps=1e-2, clip_norm=0.1))
OTHER_ROPE = replace(MODEL.attention, rope_base=3.0)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What is trained for four steps."""

    parallel: ParallelConfig
    model: ModelConfig = MODEL
    train: TrainConfig = CLIPPED
    attention: dict[int, AttentionConfig] = field(default_factory=dict)
    """From a step on."""


def gated(kind):
    """The small run's model with an output gate, of weights that make it matter."""
    attention = replace(MODEL.attention, output_gate=kind)
    return replace(MODEL, attention=attention, init_std=0.05)


VARIANTS = {
    "stages-of-other-rotary": Variant(
        parallel=ParallelConfig(pipeline=2, virtual=2, micro_batch=8),
        attention={1: OTHER_ROPE, 3: MODEL.attention},
    ),
    "balance-loss": Variant(
        parallel=ParallelConfig(shard=2, micro_batch=8),
        train=replace(CLIPPED, balance=replace(TRAIN.balance, aux_loss_weight=0.1)),
    ),
    "dense-without-norms": Variant(
        parallel=ParallelConfig(shard=2, context=2, micro_batch=4),
        model=replace(
            MODEL,
            num_dense_layers=4,
            moe=None,
            mtp_depth=0,
            attention=replace(MODEL.attention, qk_norm=False),
        ),
    ),
    "a-gate-an-element": Variant(
        parallel=ParallelConfig(shard=2, context=2, micro_batch=4),
        model=gated("elementwise"),
    ),
    "a-gate-a-head": Variant(
        parallel=ParallelConfig(pipeline=2, virtual=2, micro_batch=8),
        model=gated("headwise"),
    ),
    "gates-of-heads-by-muon": Variant(
        parallel=ParallelConfig(shard=4, expert=2, micro_batch=4),
        model=gated("elementwise"),
        train=MUON,
    ),
    "bf16": Variant(
        parallel=ParallelConfig(shard=2, expert=2, micro_batch=8),
        train=replace(CLIPPED, precision="bf16"),
    ),
    "uneven-experts": Variant(
        parallel=ParallelConfig(shard=4, expert=2, micro_batch=4),
        model=replace(MODEL, moe=replace(MODEL.moe, num_experts=6, expert_width=15)),
        train=MUON,
    ),
}
"""The last: three experts over two ranks, of a width that these do not divide."""


def note_types(learner, noted):
    """Have ``noted`` filled with the number formats that each kind of layer computes in."""

    def of_product(module, inputs, output):
        noted.setdefault("products", set()).add(str(output.dtype))

    def of_experts(module, inputs):
        weights = {str(weight.to_local().dtype) for weight in module.parameters()}
        noted.setdefault("gathered experts", set()).update(weights)

    for module in learner.engine.module.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(of_product)
        if isinstance(module, experts.ParallelExperts):
            module.register_forward_pre_hook(of_experts)

    def noting(x, *others, **options):
        noted.setdefault("visits", set()).add(str(x.dtype))
        return plain(x, *others, **options)

    plain, experts.routed_experts = experts.routed_experts, noting


def stage_with(attention):
    return Stage(
        name="",
        last_step=STEPS,
        sequence_length=TRAIN.sequence_length,
        attention=attention,
        lr_factor=1.0,
        balance=TRAIN.balance,
    )


def train_variant(variant):
    state = initial_state(variant.model, variant.train, CPU)
    learner = ShareOfModel(variant.model, variant.train, variant.parallel, state, CPU)
    noted = {}
    note_types(learner, noted)
    lines = []
    for step in range(STEPS):
        if step in variant.attention:
            learner.enter(stage_with(variant.attention[step]))
        rate = variant.train.optimizer.peak_lr
        lines.append(step_of_ranks(learner, variant.train, windows_of(step), rate))
    nats_WT, _ = learner.forward(windows_of(9, 5), slice(None))
    peers = learner.engine.meshes.experts["expert"].get_group()
    return {
        "lines": lines,
        "nats": nats_WT.tolist(),
        "expert_peers": dist.get_process_group_ranks(peers),
        "types": {name: sorted(types) for name, types in noted.items()},
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    found = {}
    for name, variant in VARIANTS.items():
        ranks = variant.parallel.world_size
        found[name] = on_ranks(ranks, lambda rank, variant=variant: train_variant(variant))
    found["saved"] = on_ranks(2, lambda rank: save_and_read(rank, where / "saved"))
    print(json.dumps(found))
