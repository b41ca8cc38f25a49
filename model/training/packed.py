"""Train several runs of one shape as one stacked model, each as if it were by itself.

What a run is stays what it is in :mod:`model.training.trainer`: its own weights, optimizer, state,
metrics and checkpoints, in its own folder, written by the same code. A run can be begun in a stack
and gone on with by itself, or the other way round. Only the forward and backward pass of a step is
shared (:mod:`model.packed.transformer`). A run that diverges ends with its own result and the
others go on; one that was saved at an earlier step than the others catches up first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig, require
from model.packed.transformer import PackedTransformer
from model.training.alike import common_part, why_alone
from model.training.config import RuntimeConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import brief_steps, mixture_layers
from model.training.learner import Gradients
from model.training.lines import steps_per_line, train_line
from model.training.precision import computing_in
from model.training.progress import OnProgress, Teller
from model.training.reader import Reader
from model.training.result import TrainResult
from model.training.run import Run, initial_state, open_run
from model.training.runtime import set_up
from model.training.schedules import learning_rate
from model.training.step import update
from model.training.stopping import Interrupted, sigterm_noticed
from model.training.stopwatch import Stopwatch
from model.training.whole import WholeModel
from model.transformer import Transformer

# Shapes: M models, B sequences, T positions.


@dataclass(frozen=True, kw_only=True)
class Member:
    """One run of a stack."""

    config: TrainConfig
    run_dir: Path
    on_progress: OnProgress | None = None
    """See :func:`model.training.trainer.train`; what it raises ends all runs, saved."""


def train_packed(
    model_config: ModelConfig,
    members: Sequence[Member],
    corpus: PreparedCorpus,
    runtime: RuntimeConfig,
    on_result: Callable[[int, TrainResult], None],
) -> None:
    """Train all ``members``; ``on_result(index, result)`` is called as each ends.

    Each resumes from its own ``checkpoints`` if there are any. Stops and is resumed like
    :func:`model.training.trainer.train`.

    Raises:
        ConfigError: the runs can't be trained together, or what ``train`` raises for one of them.
        Interrupted: stopped by SIGTERM; every run that was under way is saved.
    """
    configs = [member.config for member in members]
    for config in configs:
        alone = why_alone(config, runtime)
        require(not alone, f"this run can't be trained in a stack: {alone}")
    require(
        len({common_part(config) for config in configs}) == 1,
        "runs of a stack may differ in seed, optimizer and balance rate alone",
    )
    device = set_up(runtime)
    with ExitStack() as files, sigterm_noticed() as is_stopping:
        runs = []
        for index, member in enumerate(members):
            state = initial_state(model_config, member.config, device)
            whole = WholeModel(model_config, member.config, state, device)
            run = open_run(whole, member.config, corpus, runtime.tracker, member.run_dir)
            files.callback(run.log.close)
            runs.append(_Packed(index, run, whole.model, member.on_progress))
        reader = Reader(corpus, runs[0].run.spans)
        left = list(runs)
        while left:
            group, until = _next_round(left)
            if group:
                _train(group, until, reader, is_stopping.is_set, device)
            for packed in [packed for packed in left if packed.is_over]:
                on_result(packed.index, packed.end())
                left.remove(packed)


class _Packed:
    """One run of the stack: what a step by itself does around forward and backward."""

    def __init__(
        self, index: int, run: Run, model: Transformer, on_progress: OnProgress | None
    ) -> None:
        config = run.config
        self.index, self.run, self.config = index, run, config
        self.model, self.state = model, run.learner.state
        self.reason = ""
        self._has_stepped = False
        self.most_packed = 1
        self._layers = mixture_layers(self.model.config)
        self._line_every = steps_per_line(config)
        self._briefly_after = brief_steps(config)
        self.teller = Teller(
            on_progress, config.num_steps, config.batch_tokens, self.state.step, time.perf_counter()
        )

    @property
    def is_over(self) -> bool:
        return bool(self.reason) or self.state.step == self.config.num_steps

    def take_step(self, found: Gradients) -> None:
        (stage,) = self.run.stages
        lr = stage.lr_factor * learning_rate(self.config, self.state.step)
        before = self.state.step
        learner, health = self.run.learner, self.run.health
        grad_norm = learner.clip(self.config.optimizer.clip_norm)
        self.reason = update(learner, found, grad_norm, self.config, stage, lr, health)
        self._has_stepped = self.state.step > before

    def write_lines(self, lap: Callable[[str], object]) -> None:
        """Whatever is due after the step that was just taken."""
        state, step = self.state, self.state.step
        if not self._has_stepped:
            return
        if step % self._line_every == 0 or step == self.config.num_steps:
            load_LE = state.use.load_LE
            self.reason = self.reason or self.run.health.check_load(state.line_step, step, load_LE)
            lr = self.run.stages[0].lr_factor * learning_rate(self.config, step - 1)
            self.run.log.write(train_line(state, self.config, lr, self._layers))
            state.begin_line()
            lap("log")
        if step in self._briefly_after:
            self.run.log.write(self.run.heldout.briefly(self.run.stages[0]).line())
            lap("evaluate")

    def end(self) -> TrainResult:
        if self.reason:
            self.run.log.write({"kind": "diverged", "reason": self.reason})
        result = self.run.end(self.reason, Stopwatch(self.state.seconds).lap)
        return replace(result, numerics={**result.numerics, "packed": self.most_packed})


def _next_round(left: Sequence[_Packed]) -> tuple[list[_Packed], int]:
    """Which runs to train next and to which step: those behind, until they meet the others."""
    going = [packed for packed in left if not packed.is_over]
    first = min((packed.state.step for packed in going), default=0)
    group = [packed for packed in going if packed.state.step == first]
    later = [packed.state.step for packed in going if packed.state.step > first]
    return group, min(later, default=left[0].config.num_steps)


def _train(
    group: Sequence[_Packed],
    until: int,
    reader: Reader,
    is_stopping: Callable[[], bool],
    device: torch.device,
) -> None:
    """Take the runs of ``group``, all at one step, to step ``until`` or until one goes wrong."""
    stacked = PackedTransformer([packed.model for packed in group])
    save_every_s = min(packed.config.checkpoint.every_s for packed in group)
    clock = Stopwatch(*(packed.state.seconds for packed in group))
    saved_at = clock.last
    for packed in group:
        packed.most_packed = max(packed.most_packed, len(group))

    def save() -> None:
        for packed in group:
            if not packed.reason:
                packed.run.saver.save()
        clock.lap("checkpoint")

    for step in range(group[0].state.step, until):
        batch_BT = reader.batch(step).to(device)
        clock.lap("data")
        for packed, found in zip(group, _gradients(stacked, batch_BT, group), strict=True):
            packed.take_step(found)
        now = clock.lap("step")
        for packed in group:
            packed.write_lines(clock.lap)
        if is_stopping():
            save()
            raise Interrupted(step + 1)
        if any(packed.reason for packed in group):
            break
        if now - saved_at >= save_every_s:
            save()
            saved_at = clock.last
        try:
            for packed in group:
                packed.teller.tell(step + 1, now)
        except BaseException:
            save()
            raise
    save()


def _gradients(
    stacked: PackedTransformer, batch_BT: Tensor, group: Sequence[_Packed]
) -> list[Gradients]:
    """Of every run, on its model."""
    config = group[0].config
    stacked.stack.clear_gradients()
    with computing_in(config.precision, batch_BT.device):
        result = stacked(batch_BT[:, :-1], batch_BT[:, 1:])
    loss_M, mtp_loss_M = result.loss_nats_M, result.mtp_loss_nats_M
    total_M = loss_M if mtp_loss_M is None else loss_M + config.mtp_loss_weight * mtp_loss_M
    # No run's loss hangs on another's weights: the gradient of the sum is each its own.
    total_M.sum().backward()
    stacked.stack.hand_out_gradients()
    mtp_M = torch.zeros_like(loss_M) if mtp_loss_M is None else mtp_loss_M
    losses_M2 = torch.stack([loss_M, mtp_M], dim=1).tolist()
    return [
        Gradients(
            loss_nats=loss_nats,
            mtp_nats=mtp_nats,
            loads=[load_ME[row] for load_ME in result.loads],
        )
        for row, (loss_nats, mtp_nats) in enumerate(losses_M2)
    ]
