"""Runs that go wrong over two forked ranks: gone_wrong.py FOLDER; JSON on the last line of stdout.

Each of RUNS is trained whole, by the loop that trains a run in one process.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from gloo_ranks import on_ranks
from small_run import MODEL, TRAIN, corpus_in

from model.training import health, reader
from model.training.config import BalanceConfig, HealthConfig, JsonlTracker, OptimizerConfig
from model.training.data import PreparedCorpus
from model.training.distributed.config import ParallelConfig
from model.training.distributed.share import ShareOfModel
from model.training.run import initial_state, open_run
from model.training.trainer import train_run

SHORT = replace(TRAIN, tokens=512 * 40)
RUNS = {
    "rate": replace(SHORT, optimizer=OptimizerConfig(peak_lr=100.0, clip_norm=1e9)),
    "gradient": SHORT,
    "collapse": replace(SHORT, balance=BalanceConfig(rule="none")),
    "rewind": replace(
        SHORT, tokens=512 * 200, health=HealthConfig(on_spike="rewind", spike_nats=0.5)
    ),
}
PLANS = {"rewind": ParallelConfig(shard=2, expert=2, micro_batch=8)}
PLAN = ParallelConfig(pipeline=2, micro_batch=8)
"""Of the others: the loss is known to the last rank alone, until it tells."""
NOISE = range(130, 166)
"""Steps whose text is noise, in the run that goes back: it does so three or four steps before their
end, so that what is left of them is over long before it would count as a second spike."""
COLLAPSE_STEPS = 10


def noisy(clean):
    def batch(self, spans, step, num_steps=1):
        found = clean(self, spans, step)
        rng = np.random.default_rng(step)
        return rng.integers(0, 257, found.shape) if step in NOISE else found

    return batch


def upset(learner, name, rank):
    """Do to the learner what the run is named after."""
    if name == "collapse":
        for stage in learner.engine.stages.values():
            for router in stage.routers():
                router.selection_bias[:2] = 10.0
    if name == "gradient":
        clean, steps = learner.forward_backward, []

        def poisoned(windows):
            found = clean(windows)
            steps.append(windows)
            if len(steps) == 5 and rank == 1:  # on one of the two
                next(learner.engine.module.parameters()).grad *= float("nan")
            return found

        learner.forward_backward = poisoned


def ends_on(rank, folder):
    health.COLLAPSE_STEPS = COLLAPSE_STEPS
    reader.TOKENS_AHEAD = 1
    corpus, clean = corpus_in(folder), PreparedCorpus.batch
    found = {}
    for name, config in RUNS.items():
        PreparedCorpus.batch = noisy(clean) if name == "rewind" else clean
        state = initial_state(MODEL, config, torch.device("cpu"))
        plan = PLANS.get(name, PLAN)
        learner = ShareOfModel(MODEL, config, plan, state, torch.device("cpu"))
        upset(learner, name, rank)
        run = open_run(learner, config, corpus, JsonlTracker(), folder / name)
        result = train_run(run, None, lambda: False)
        found[name] = {
            "status": result.status,
            "reason": result.reason,
            "steps": result.steps,
            "loss_nats": result.loss_nats,
            "rewinds": result.rewinds,
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[1])
    corpus_in(where)
    print(json.dumps(on_ranks(2, lambda rank: ends_on(rank, where))))
