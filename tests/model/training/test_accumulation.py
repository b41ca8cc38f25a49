"""A batch gone through in parts, killed between two of them, held against float64 by hand."""

import multiprocessing
import os
import signal
from collections import Counter
from dataclasses import replace

import pytest
import torch
import toy_runs
from toy_runs import MODEL, RUNTIME, assert_same_run, lines

from model.training import whole
from model.training.checkpoint import checkpoint_paths
from model.training.config import CheckpointConfig, EvaluationConfig
from model.training.run import initial_state
from model.training.schedules import learning_rate
from model.training.trainer import train
from model.training.whole import WholeModel

CPU = torch.device("cpu")
STEPS, ROWS, LENGTH = 4, 4, 8
CONFIG = replace(
    toy_runs.TRAIN,
    tokens=STEPS * ROWS * LENGTH,
    batch_tokens=ROWS * LENGTH,
    sequence_length=LENGTH,
    evaluation=EvaluationConfig(heldout_tokens=512, num_intermediate=0),
    checkpoint=CheckpointConfig(every_s=0.0),
)
PARTS = 3
"""Of 2, 1 and 1 sequences."""


def train_and_die(corpus, run_dir, fatal_part):
    """Train, killed before that part of a batch, counted from the beginning of the run."""
    forward_backward, parts = whole.forward_backward, iter(range(1000))

    def or_die(*given):
        if next(parts) == fatal_part:
            os.kill(os.getpid(), signal.SIGKILL)
        return forward_backward(*given)

    whole.forward_backward = or_die
    train(MODEL, CONFIG, corpus, RUNTIME, run_dir, micro_batches=PARTS)


def killed_and_resumed(corpus, run_dir, fatal_part):
    context = multiprocessing.get_context("fork")
    process = context.Process(target=train_and_die, args=(corpus, run_dir, fatal_part))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    done = [
        int(path.name.removeprefix("step-")) for path in checkpoint_paths(run_dir / "checkpoints")
    ]
    assert max(done) == fatal_part // PARTS
    train(MODEL, CONFIG, corpus, RUNTIME, run_dir, micro_batches=PARTS)


@pytest.mark.parametrize("fatal_part", [4, 8])
def test_killed_between_two_parts_it_is_what_the_formulas_say(corpus, tmp_path, oracle, fatal_part):
    """Whole batches through Ling's equations on lists of numbers, and AdamW written out."""
    torch.set_num_threads(1)
    unbroken = tmp_path / "unbroken"
    train(MODEL, CONFIG, corpus, RUNTIME, unbroken, micro_batches=PARTS)
    killed_and_resumed(corpus, tmp_path / "killed", fatal_part)
    assert_same_run(tmp_path / "killed", unbroken)

    learner = WholeModel(MODEL, CONFIG, initial_state(MODEL, CONFIG, CPU), CPU)
    weights = oracle.to_oracle(learner.model)
    trained = dict(learner.model.named_parameters())
    moments = {name: (torch.zeros_like(weights[name]),) * 2 for name in trained}
    windows = torch.from_numpy(corpus.windows(0, STEPS * ROWS, LENGTH))
    for step, batch in enumerate(windows.split(ROWS)):
        losses, mtp_losses, log = oracle.forward(MODEL, weights, batch[:, :-1], batch[:, 1:])
        loss, mtp = (sum(map(sum, rows)) / sum(map(len, rows)) for rows in (losses, mtp_losses))
        total = loss + CONFIG.mtp_loss_weight * mtp
        gradients = torch.autograd.grad(total, [weights[name] for name in trained])
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        line = lines(tmp_path / "killed", "train")[step]
        assert line["train_loss_nats"] == pytest.approx(loss.item(), rel=1e-6), step
        assert line["mtp_loss_nats"] == pytest.approx(mtp.item(), rel=1e-6), step
        assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-5), step
        lr = learning_rate(CONFIG, step)
        for name, gradient in zip(trained, gradients, strict=True):
            first, second = moments[name]
            gradient = gradient * min(1.0, CONFIG.optimizer.clip_norm / norm)
            first = 0.9 * first + 0.1 * gradient
            second = 0.95 * second + 0.05 * gradient**2
            moments[name] = first, second
            decay = lr * 0.1 if gradient.ndim >= 2 else 0.0
            moved = first / (1 - 0.9 ** (step + 1))
            moved = moved / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8)
            with torch.no_grad():
                weights[name] = ((1 - decay) * weights[name] - lr * moved).requires_grad_()
        for layer, entries in log.items():
            loads = Counter(expert for chosen, *_ in entries for expert in chosen)
            mean = len(entries) * MODEL.moe.experts_per_token / MODEL.moe.num_experts
            sign = torch.tensor(
                [(mean > loads[e]) - (mean < loads[e]) for e in range(MODEL.moe.num_experts)]
            )
            bias = next(n for n in weights if n.endswith("selection_bias") and _is_of(n, layer))
            rate = CONFIG.balance.update_rate
            weights[bias] = weights[bias].detach() + rate * (sign.double() - sign.double().mean())


def _is_of(name, layer):
    return name.startswith("mtp." if layer == MODEL.num_layers else f"blocks.{layer}.")
