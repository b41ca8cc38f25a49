"""Train one model once: from its initial weights, or from where an interrupted attempt left off.

:func:`train` reads top to bottom. The state of a run after a step is its weights, its optimizer,
its :class:`~model.training.state.RunState` and the length of its metrics file. A checkpoint holds
all of them, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path

import torch

from model.config import ModelConfig
from model.errors import ConfigError
from model.training.checkpoint import Checkpoint
from model.training.config import RuntimeConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import Evaluation, brief_steps, mixture_layers
from model.training.fp8 import Fp8Layers
from model.training.going_back import WayBack
from model.training.health import Health
from model.training.heldout import HeldoutMeasures
from model.training.identity import run_identity, trunk_identity
from model.training.learner import Learner
from model.training.lines import RunLog, steps_per_line, tokens_per_s, train_line
from model.training.optim import build_optimizer
from model.training.progress import OnProgress, Teller
from model.training.reader import Reader
from model.training.result import TrainResult
from model.training.rewind import RewindPoints
from model.training.routing_use import RoutingUse
from model.training.runtime import describe_numerics, set_up
from model.training.saving import Saver, find_checkpoint
from model.training.schedules import learning_rate, merged_steps
from model.training.stages import enter, lay_out_stages, stage_at
from model.training.state import RunState
from model.training.step import take_step
from model.training.stopping import Interrupted, sigterm_noticed
from model.training.stopwatch import Stopwatch
from model.training.trackers import MetricsFile, open_mirror
from model.training.trunk import Snapshots
from model.transformer import build_model
from model.typed import to_plain

logger = logging.getLogger(__name__)


def train(
    model_config: ModelConfig,
    config: TrainConfig,
    corpus: PreparedCorpus,
    runtime: RuntimeConfig,
    run_dir: Path,
    *,
    on_progress: OnProgress | None = None,
    name: str = "",
    snapshots_dir: Path | None = None,
    trunk_dir: Path | None = None,
) -> TrainResult:
    """Train and evaluate one run, resuming from ``run_dir/checkpoints`` if there are any.

    Writes ``metrics.jsonl`` and ``checkpoints/`` into ``run_dir``. On SIGTERM (unless the caller
    handles that itself) the run is saved after the step it is in. Whatever ``on_progress`` raises
    ends the run in the same way, saved. ``name`` is what a mirror calls the run; without one it is
    the name of ``run_dir``. ``snapshots_dir`` is where the run keeps what outlives an attempt
    (``run_dir/snapshots`` by default), ``trunk_dir`` that folder of the trunk it may begin from.

    Raises:
        ConfigError: the configs do not fit each other, the corpus, or what lies in ``run_dir``.
        Interrupted: stopped by SIGTERM; call again to go on.
    """
    device = set_up(runtime)
    learner, health = _build(model_config, config, corpus, device)
    model, state = learner.model, learner.state
    spans = corpus.spans(
        num_steps=config.num_steps,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
    )
    stages = lay_out_stages(model_config, config, spans)
    reader = Reader(corpus, spans)
    heldout = HeldoutMeasures(corpus, config, stages, learner, device)
    points = RewindPoints(config.num_steps) if config.health.on_spike == "rewind" else None

    identity = run_identity(model_config, config, corpus.fingerprint)
    checkpoints, metrics_path = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    snapshots = Snapshots(
        snapshots_dir or run_dir / "snapshots",
        trunk_identity(model_config, config, corpus.fingerprint),
        trunk_dir,
    )
    found = find_checkpoint(checkpoints, identity, metrics_path)
    is_merged = _begin(learner, config, found, points, snapshots)
    fp8 = Fp8Layers(model, state.fp8_fallen) if config.precision == "fp8" else None
    metrics = MetricsFile(metrics_path, found.state["metrics_offset"] if found else 0)
    settings = {"model": to_plain(model_config), "train": to_plain(config)}
    mirror = open_mirror(runtime.tracker, run_dir, state.mirror_id, settings, name)
    state.mirror_id = mirror.id
    log = RunLog(metrics, mirror, state, config.batch_tokens)
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
    way_back = WayBack(points, learner, log, saver, config) if points is not None else None

    layers = mixture_layers(model_config)
    line_every = steps_per_line(config)
    briefly_after = brief_steps(config)
    is_merge = config.schedule.kind == "wsm"
    kept = {*config.checkpoint.states_at, *config.checkpoint.weights_at}
    kept |= {*merged_steps(config)} if is_merge else set()
    watch = Stopwatch(state.seconds)
    saved_step, saved_at = state.step if found else None, watch.last
    teller = Teller(on_progress, config.num_steps, config.batch_tokens, state.step, watch.last)
    reason = ""
    try:
        with sigterm_noticed() as is_stopping:
            while state.step < config.num_steps and not reason:
                stage = stage_at(stages, state.step)
                enter(stage, model)
                batch = reader.batch(state.step + state.skipped_steps).to(device)
                watch.lap("data")

                is_looked_at = fp8 is not None and fp8.is_due(state.step)
                if fp8 is not None and is_looked_at:
                    fp8.watch()
                before, lr = state.step, stage.lr_factor * learning_rate(config, state.step)
                reason = take_step(learner, batch, config, stage, lr, health)
                if fp8 is not None and is_looked_at and state.step > before:
                    log.write(fp8.verdict())
                    state.fp8_fallen = list(fp8.fallen)
                now = watch.lap("step")
                if reason and way_back is not None and way_back.go(reason, before + 1):
                    watch.lap("checkpoint")
                    reason = ""
                    continue
                if state.step == before:
                    break

                if state.step % line_every == 0 or state.step == config.num_steps:
                    load_LE = state.use.load_LE
                    reason = reason or health.check_load(state.line_step, state.step, load_LE)
                    log.write(train_line(state, config, lr, layers))
                    state.begin_line()
                    watch.lap("log")
                if state.step in briefly_after:
                    log.write(heldout.briefly(stage).line())
                    watch.lap("evaluate")
                if state.step == stage.last_step and stage is not stages[-1] and not reason:
                    measured = heldout.of_stage(stage)
                    state.stages.append(measured)
                    log.write({"kind": "stage", **measured})
                    watch.lap("evaluate")
                if state.step in kept and not reason and not snapshots.has(state.step):
                    saver.keep_snapshot()
                    watch.lap("checkpoint")
                if way_back is not None:
                    way_back.remember(health.rise)
                if now - saved_at >= config.checkpoint.every_s or is_stopping.is_set():
                    saver.save()
                    saved_step, saved_at = state.step, watch.lap("checkpoint")
                if is_stopping.is_set():
                    raise Interrupted(state.step)
                try:
                    teller.tell(state.step, now)
                except BaseException:
                    saver.save()
                    raise

        if reason:
            log.write({"kind": "diverged", "reason": reason})
        elif is_merge and not saver.is_merged:
            model.load_state_dict(snapshots.merged(config))
            saver.is_merged = True
            saver.save()
        elif saved_step != state.step:
            saver.save()
        watch.lap("checkpoint")
        last = stage_at(stages, state.step)
        enter(last, model)
        evaluation = heldout.at_the_end(last)
        if math.isfinite(evaluation.loss_nats):
            log.write(evaluation.final_line())
            if last.name:
                measured = heldout.of_stage(last, evaluation)
                log.write({"kind": "stage", **measured})
                state.stages.append(measured)
        else:
            reason = reason or f"held-out loss is {evaluation.loss_nats} at step {state.step}"
        watch.lap("evaluate")
        epochs = corpus.epochs_of(spans, state.step)
        result = _result(state, config, reason, evaluation, epochs, device)
        mirror.summary(to_plain(result))
        return result
    finally:
        log.close()


def _build(
    model_config: ModelConfig, config: TrainConfig, corpus: PreparedCorpus, device: torch.device
) -> tuple[Learner, Health]:
    """A model of initial values, its optimizer, and the state of a run that has done nothing."""
    if model_config.vocab_size != corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({model_config.vocab_size}) must be that of the corpus's tokenizer "
            f"({corpus.vocab_size})"
        )
    corpus.require_length(config.sequence_length)
    model = build_model(model_config, seed=config.seed, device=device)
    health = Health(model_config, config.num_steps, config.health)
    num_experts = model_config.moe.num_experts if model_config.moe else 0
    use = RoutingUse(len(mixture_layers(model_config)), num_experts, device)
    optimizer = build_optimizer(model, config.optimizer)
    return Learner(model, optimizer, RunState(health.state, use)), health


def _begin(
    learner: Learner,
    config: TrainConfig,
    found: Checkpoint | None,
    points: RewindPoints | None,
    snapshots: Snapshots,
) -> bool:
    """Go on from a checkpoint or a trunk, where there is one.

    Returns:
        Whether what was found is the average that ends a wsm run.
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
    return False


def _result(
    state: RunState,
    config: TrainConfig,
    reason: str,
    evaluation: Evaluation,
    epochs: dict[str, float],
    device: torch.device,
) -> TrainResult:
    is_finite = math.isfinite(evaluation.loss_nats)
    return TrainResult(
        status="diverged" if reason else "done",
        reason=reason,
        steps=state.step,
        tokens=state.step * config.batch_tokens,
        loss_nats=evaluation.loss_nats if is_finite else None,
        bits_per_byte=evaluation.bits_per_byte if is_finite else None,
        train_loss_nats=state.tail_loss_nats,
        by_domain=evaluation.by_domain if is_finite else {},
        load_by_layer=evaluation.load_by_layer,
        wall_s=sum(state.seconds.values()),
        tokens_per_s=tokens_per_s(state, config),
        seconds=dict(state.seconds),
        epochs=epochs,
        numerics=describe_numerics(device),
        stages=tuple(state.stages),
        rewinds=tuple(state.rewinds),
        fp8_fallen=tuple(state.fp8_fallen),
    )
