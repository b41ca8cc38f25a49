"""Runs a small model on 1, 2 and 4 forked ranks, and prints what each saw: ranks.py FOLDER.

One process imports torch once; its forks meet through a file. JSON on the last line of stdout.
"""

import json
import os
import shutil
import sys
from pathlib import Path

import torch
from gloo_ranks import on_ranks
from small_run import HELDOUT_TOKENS, MODEL, MUON, TRAIN, corpus_in, step_of_ranks

from model.training.checkpoint import Checkpoint
from model.training.distributed.config import ParallelConfig
from model.training.distributed.share import ShareOfModel
from model.training.run import initial_state
from model.training.schedules import learning_rate
from model.transformer import build_model

STEPS = 20
HALF = 10

PLANS = {
    "shard2": ParallelConfig(shard=2, micro_batch=8),
    "expert2": ParallelConfig(shard=2, expert=2, micro_batch=4),
    "pipeline2": ParallelConfig(pipeline=2, recompute=True, micro_batch=4),
    "shard2-expert2-pipeline2": ParallelConfig(shard=2, expert=2, pipeline=2, micro_batch=4),
    "shard2-pipeline2-virtual2": ParallelConfig(shard=2, pipeline=2, virtual=2, micro_batch=4),
    "replicate2-pipeline2-uneven": ParallelConfig(
        replicate=2, pipeline=2, layers=(1, 3), micro_batch=4
    ),
    "expert2-pipeline2-zero-bubble": ParallelConfig(
        shard=2, expert=2, pipeline=2, schedule="zero_bubble", micro_batch=2
    ),
    "context2": ParallelConfig(shard=2, context=2, recompute=True, micro_batch=4),
    "context2-expert2-pipeline2": ParallelConfig(
        shard=2, context=2, expert=2, pipeline=2, micro_batch=4
    ),
    "shard2-context2-expert4": ParallelConfig(shard=4, context=2, expert=4, micro_batch=8),
}
"""Each is run from the first step to the last."""
WRITER = ParallelConfig(shard=2, expert=2, micro_batch=8)
"""Its checkpoint at half the steps is gone on from by the others."""
BY_MUON = {
    "expert-halves": ParallelConfig(shard=4, expert=2, micro_batch=4),
    "whole-experts": ParallelConfig(shard=2, expert=2, pipeline=2, micro_batch=4),
}
"""Each expert on two ranks, cut along its width; on one."""
READERS = {
    "one": ParallelConfig(micro_batch=16),
    "four": ParallelConfig(shard=2, expert=2, pipeline=2, micro_batch=4),
}


def train_a_part(parallel, folder, steps, checkpoints, train):
    corpus = corpus_in(folder)
    device = torch.device("cpu")
    state = initial_state(MODEL, train, device)
    learner = ShareOfModel(MODEL, train, parallel, state, device)
    if steps.start:
        found = learner.find(checkpoints, lambda found: "")
        assert found.state == {"step": steps.start}, found
        assert not learner.restore(found.tensors)
    count = TRAIN.batch_tokens // TRAIN.sequence_length
    lines = []
    for step in steps:
        windows = torch.from_numpy(corpus.windows(step * count, count, TRAIN.sequence_length))
        lines.append(step_of_ranks(learner, train, windows, learning_rate(train, step)))
    if checkpoints is not None and not steps.start:
        contents = Checkpoint(steps.stop, learner.tensors(), {"step": steps.stop})
        learner.write(checkpoints, contents, keep=1)
    domain = next(iter(corpus.domains))
    held = torch.from_numpy(corpus.heldout(domain, TRAIN.sequence_length, HELDOUT_TOKENS))
    nats_WT, counts = learner.forward(held, slice(1, None, 3))
    found = {
        "lines": lines,
        "heldout_nats": nats_WT.double().sum(1).tolist(),
        "load": [of_layer.load_E.tolist() for of_layer in counts],
        "looked_at": [
            [of_layer.expert_TK.sum().item(), of_layer.gate_entropy, of_layer.top_k_mass]
            for of_layer in counts
        ],
    }
    own = learner.engine.named_parameters()
    found["parameters"] = sum(p.to_local().numel() for _, p in own)
    return found


def begin_elsewhere(parallel, checkpoints):
    """Take another model's weights and write them down as a checkpoint."""
    state = initial_state(MODEL, TRAIN, torch.device("cpu"))
    learner = ShareOfModel(MODEL, TRAIN, parallel, state, torch.device("cpu"))
    learner.begin_with(build_model(MODEL, seed=9).state_dict())
    learner.write(checkpoints, Checkpoint(1, learner.weights(), {}), keep=1)


def run(parallel, folder, steps, checkpoints=None, train=TRAIN):
    def work(rank):
        return train_a_part(parallel, folder, steps, checkpoints, train)

    return on_ranks(parallel.world_size, work)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    corpus_in(where)
    found = {name: run(plan, where, range(STEPS)) for name, plan in PLANS.items()}
    saved = where / "checkpoints"
    found["writer"] = run(WRITER, where, range(HALF), saved)
    newer = saved / f"step-{STEPS:08d}"
    for name, plan in READERS.items():
        shutil.copytree(saved / f"step-{HALF:08d}", newer)
        with (newer / "__1_0.distcp").open("r+b") as piece:
            place = piece.seek(-1000, os.SEEK_END)
            (byte,) = piece.read(1)
            piece.seek(place)
            piece.write(bytes([byte ^ 1]))
        found[f"reads-{name}"] = run(plan, where, range(HALF, STEPS), saved)
        assert not newer.exists(), "a changed byte was not seen"
    muon = where / "muon"
    for name, plan in BY_MUON.items():  # the second goes on from what the first has saved
        steps = range(HALF, STEPS) if muon.exists() else range(HALF)
        found[f"muon-{name}"] = run(plan, where, steps, muon, MUON)
    four = READERS["four"]
    on_ranks(four.world_size, lambda rank: begin_elsewhere(four, where / "begun"))
    print(json.dumps(found))
