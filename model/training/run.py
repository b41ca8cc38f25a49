"""One run, open on disk: built anew or found again, with all that it writes to; and how it ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from model.config import ModelConfig
from model.errors import ConfigError
from model.training.checkpoint import Checkpoint
from model.training.config import JsonlTracker, TrackerConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.data.stages import StageSpan
from model.training.evaluate import mixture_layers
from model.training.evaluation import Evaluation
from model.training.health import Health
from model.training.heldout import HeldoutMeasures
from model.training.identity import run_identity, trunk_identity
from model.training.initial import begin_with
from model.training.learner import Learner
from model.training.lines import RunLog, tokens_per_s
from model.training.result import TrainResult
from model.training.rewind import RewindPoints
from model.training.routing_use import RoutingUse
from model.training.saving import Saver, find_checkpoint
from model.training.stages import Stage, lay_out_stages, stage_at
from model.training.state import RunState
from model.training.trackers import (
    Metrics,
    MetricsFile,
    NoMetrics,
    open_mirror,
    run_settings,
)
from model.training.trunk import Snapshots
from model.typed import to_plain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of while it is trained; ``log`` must be closed at the end."""

    config: TrainConfig
    corpus: PreparedCorpus
    learner: Learner
    health: Health
    spans: Sequence[StageSpan]
    stages: Sequence[Stage]
    heldout: HeldoutMeasures
    snapshots: Snapshots
    points: RewindPoints | None
    log: RunLog
    saver: Saver
    is_resumed: bool
    """It goes on from a checkpoint of its own."""

    def end(self, reason: str, lap: Callable[[str], object]) -> TrainResult:
        """Measure the run as it stands, write its last lines, and say what it came to.

        ``reason``: why it diverged, empty if it did not; ``lap``: of the run's stopwatch.
        """
        state, last = self.learner.state, stage_at(self.stages, self.learner.state.step)
        self.learner.enter(last)
        evaluation = self.heldout.at_the_end(last)
        if math.isfinite(evaluation.loss_nats):
            self.log.write(evaluation.final_line())
            if last.name:
                measured = self.heldout.of_stage(last, evaluation)
                self.log.write({"kind": "stage", **measured})
                state.stages.append(measured)
        else:
            reason = reason or f"held-out loss is {evaluation.loss_nats} at step {state.step}"
        lap("evaluate")
        result = self._result(reason, evaluation)
        self.log.mirror.summary(to_plain(result))
        return result

    def _result(self, reason: str, evaluation: Evaluation) -> TrainResult:
        state = self.learner.state
        is_finite = math.isfinite(evaluation.loss_nats)
        return TrainResult(
            status="diverged" if reason else "done",
            reason=reason,
            steps=state.step,
            tokens=state.step * self.config.batch_tokens,
            loss_nats=evaluation.loss_nats if is_finite else None,
            bits_per_byte=evaluation.bits_per_byte if is_finite else None,
            train_loss_nats=state.tail_loss_nats,
            by_domain=evaluation.by_domain if is_finite else {},
            load_by_layer=evaluation.load_by_layer,
            wall_s=sum(state.seconds.values()),
            tokens_per_s=tokens_per_s(state, self.config),
            seconds=dict(state.seconds),
            epochs=self.corpus.epochs_of(self.spans, state.step),
            numerics=self.learner.numerics(),
            stages=tuple(state.stages),
            rewinds=tuple(state.rewinds),
            fp8_fallen=tuple(state.fp8_fallen),
            computed_by=tuple(state.computed_by),
        )


def open_run(
    learner: Learner,
    config: TrainConfig,
    corpus: PreparedCorpus,
    tracker: TrackerConfig,
    run_dir: Path,
    *,
    name: str = "",
    snapshots_dir: Path | None = None,
    trunk_dir: Path | None = None,
) -> Run:
    """A run as it begins, or as it was left; see :func:`model.training.trainer.train`.

    ``learner`` is of initial values; every process that has a share of it calls this.

    Raises:
        ConfigError: the configs do not fit each other, the corpus, or what lies in ``run_dir``.
    """
    model_config, state = learner.config, learner.state
    # Published tables are padded: 157,184 rows for fewer tokens.
    is_padded = config.initial_weights is not None and model_config.vocab_size > corpus.vocab_size
    if model_config.vocab_size != corpus.vocab_size and not is_padded:
        raise ConfigError(
            f"model.vocab_size ({model_config.vocab_size}) must be that of the corpus's tokenizer "
            f"({corpus.vocab_size})"
        )
    corpus.require_length(config.sequence_length)
    health = Health(model_config, config.num_steps, config.health)
    health.state = state.health
    spans = corpus.spans(
        num_steps=config.num_steps,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
    )
    stages = lay_out_stages(model_config, config, spans)
    points = RewindPoints(config.num_steps) if config.health.on_spike == "rewind" else None
    identity = run_identity(model_config, config, corpus.fingerprint)
    checkpoints, metrics_path = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    snapshots = Snapshots(
        snapshots_dir or run_dir / "snapshots",
        trunk_identity(model_config, config, corpus.fingerprint),
        trunk_dir,
        learner.read,
    )
    found = find_checkpoint(learner, checkpoints, identity, metrics_path)
    is_merged = _begin(learner, config, found, points, snapshots)
    state.go_on_under(learner.numerics())
    metrics: Metrics = NoMetrics()
    if learner.is_first:
        metrics = MetricsFile(metrics_path, found.state["metrics_offset"] if found else 0)
    settings = run_settings(model_config, config)
    mirrored = tracker if learner.is_first else JsonlTracker()
    mirror = open_mirror(mirrored, run_dir, state.mirror_id, settings, name)
    state.mirror_id = mirror.id
    saver = Saver(
        folder=checkpoints,
        identity=identity,
        keep_newest=config.checkpoint.keep,
        learner=learner,
        metrics=metrics,
        snapshots=snapshots,
        states_at=frozenset(config.checkpoint.states_at),
        points=points,
        is_merged=is_merged,
    )
    return Run(
        config=config,
        corpus=corpus,
        learner=learner,
        health=health,
        spans=spans,
        stages=stages,
        heldout=HeldoutMeasures(corpus, config, stages, learner),
        snapshots=snapshots,
        points=points,
        log=RunLog(metrics, mirror, state, config.batch_tokens),
        saver=saver,
        is_resumed=found is not None,
    )


def initial_state(model: ModelConfig, config: TrainConfig, device: torch.device) -> RunState:
    """The state of a run that has done nothing."""
    num_experts = model.moe.num_experts if model.moe else 0
    use = RoutingUse(len(mixture_layers(model)), num_experts, device)
    return RunState(Health(model, config.num_steps, config.health).state, use)


def _begin(
    learner: Learner,
    config: TrainConfig,
    found: Checkpoint | None,
    points: RewindPoints | None,
    snapshots: Snapshots,
) -> bool:
    """Go on from a checkpoint or a trunk, where there is one, or begin with given weights.

    Returns:
        Whether what was found is the average that ends a wsm run, or weights at the end of any.
    """
    state = learner.state
    if found is not None:
        is_merged = learner.restore(found.tensors)
        state.use.restore(found.tensors)
        state.become(found.state["run"])
        if points is not None:
            points.restore(found.tensors, found.state["rewind_points"])
        logger.info("resuming at step %d of %d", state.step, config.num_steps)
        return is_merged
    if (trunk := snapshots.start_for(config)) is not None:
        learner.restore(trunk.tensors)
        state.begin_from_trunk(trunk.state["run"], config.num_steps)
        logger.info("going on from a trunk at step %d of %d", state.step, config.num_steps)
    elif config.initial_weights is not None:
        begin_with(learner, config.initial_weights, snapshots.shared)
        logger.info("begun with given weights at step %d of %d", state.step, config.num_steps)
        return state.step == config.num_steps
    return False
