"""Train one model once: from its initial weights, or from where an interrupted attempt left off.

:func:`train` reads top to bottom. The state of a run after a step is its weights, its optimizer,
its :class:`~model.training.state.RunState` and the length of its metrics file. A checkpoint holds
all of them, so a resumed run goes on bit for bit.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from model.balance import RoutingRequest, update_biases
from model.config import ModelConfig
from model.errors import ConfigError
from model.files import step_folder
from model.layers import Rotary
from model.training.checkpoint import (
    Checkpoint,
    checkpoint_paths,
    load_newest,
    save_checkpoint,
)
from model.training.config import RuntimeConfig, TrainConfig
from model.training.data import PreparedCorpus
from model.training.evaluate import (
    LOOK_EVERY,
    DomainLoss,
    Evaluation,
    Evaluator,
    LayerLoad,
    brief_steps,
    mixture_layers,
)
from model.training.fp8 import Fp8Layers
from model.training.health import Health
from model.training.identity import run_identity, trunk_identity
from model.training.optim import build_optimizer, clip_gradients, set_learning_rate
from model.training.positions import loss_by_position
from model.training.precision import computing_in
from model.training.reader import Reader
from model.training.rewind import Point, RewindPoints
from model.training.routing_use import RoutingUse
from model.training.runtime import describe_numerics, set_up
from model.training.schedules import learning_rate, merged_steps
from model.training.stages import Stage, lay_out_stages, stage_at
from model.training.state import (
    RunState,
    Stopwatch,
    collect_tensors,
    collect_weights,
    restore_tensors,
    tail_begins,
)
from model.training.trackers import MetricsFile, open_mirror
from model.training.trunk import Snapshots
from model.transformer import Transformer, build_model
from model.typed import to_plain

# Shapes: B sequences, T positions.

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED = 75
"""Exit code of a process whose run was saved on SIGTERM (EX_TEMPFAIL: run it again)."""
LINES_PER_RUN = 200
"""About how often a run logs: a function of its length alone, so that no line depends on time."""
PROGRESS_EVERY_S = 1.0

OnProgress = Callable[[int, int, float], None]
"""Called as ``on_progress(step, num_steps, tokens_per_s)``, at most about once a second."""


class Interrupted(SystemExit):
    """The run was asked to stop, and was saved. Uncaught, it ends the process with code 75."""

    def __init__(self, step: int) -> None:
        super().__init__(EXIT_INTERRUPTED)
        self.step = step


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What one run measured; its losses are None where a diverged run's weights give no number."""

    status: Literal["done", "diverged"]
    reason: str
    """Why a run diverged, and at which step; empty for a done one."""
    steps: int
    tokens: int
    loss_nats: float | None
    bits_per_byte: float | None
    train_loss_nats: float
    """Mean over the last tenth of the steps."""
    by_domain: Mapping[str, DomainLoss]
    load_by_layer: tuple[LayerLoad, ...]
    wall_s: float
    """Of all attempts, without steps that were lost and done again."""
    tokens_per_s: float
    """Of the training steps; evaluation and checkpoints left out."""
    seconds: Mapping[str, float]
    """``wall_s`` by activity: setup, data, step, log, evaluate, checkpoint."""
    epochs: Mapping[str, float]
    """How often each domain's training text was gone through."""
    numerics: Mapping[str, Any]
    """What decides the bits besides the spec: torch, device, threads."""
    stages: tuple[Mapping[str, Any], ...] = ()
    """Of a run with stages, each that is over: ``name``, ``steps`` at its end, ``sequence_length``,
    ``loss_nats`` and, by position in the sequence, ``by_position``."""
    rewinds: tuple[Mapping[str, Any], ...] = ()
    """Each time the run went back: ``step``, ``from_step``, ``reason``."""
    fp8_fallen: tuple[str, ...] = ()
    """Layers that went back from FP8 to bfloat16."""


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
    model, optimizer = _build(model_config, config, corpus, device)
    layers = mixture_layers(model_config)
    health = Health(model_config, config.num_steps, config.health)
    rewinding = RewindPoints(config.num_steps) if config.health.on_spike == "rewind" else None
    num_experts = model_config.moe.num_experts if model_config.moe else 0
    state = RunState(health.state, RoutingUse(len(layers), num_experts, device))
    spans = corpus.spans(
        num_steps=config.num_steps,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
    )
    stages = lay_out_stages(model_config, config, spans)
    one_length = len({stage.sequence_length for stage in stages}) == 1
    reader = Reader(corpus, spans)
    evaluators: dict[int, Evaluator] = {}

    def evaluator_of(stage: Stage) -> Evaluator:
        length = stage.sequence_length
        if length not in evaluators:
            evaluators[length] = Evaluator(
                corpus,
                sequence_length=length,
                tokens_per_domain=config.evaluation.heldout_tokens,
                precision=config.precision,
                device=device,
            )
        return evaluators[length]

    def positions_in(stage: Stage) -> list[list[float]]:
        tokens = config.evaluation.heldout_tokens // LOOK_EVERY
        windows = [corpus.heldout(d, stage.sequence_length, tokens) for d in corpus.domains]
        batch = torch.from_numpy(np.concatenate(windows)).to(device)
        return [list(found) for found in loss_by_position(model, batch, config.precision)]

    identity = run_identity(model_config, config, corpus.fingerprint)
    checkpoints, metrics_path = run_dir / "checkpoints", run_dir / "metrics.jsonl"
    found = load_newest(checkpoints, lambda c: _why_unusable(c, identity, metrics_path))
    snapshots = Snapshots(
        snapshots_dir or run_dir / "snapshots",
        trunk_identity(model_config, config, corpus.fingerprint),
        trunk_dir,
    )
    is_merged = False
    if found is not None:
        is_merged = restore_tensors(found.tensors, model, optimizer)
        state.use.restore(found.tensors)
        state = RunState.from_plain(found.state["run"], state.use)
        if rewinding is not None:
            rewinding.restore(found.tensors, found.state["rewind_points"])
        logger.info("resuming at step %d of %d", state.step, config.num_steps)
    elif (trunk := snapshots.start_for(config)) is not None:
        restore_tensors(trunk.tensors, model, optimizer)
        before = RunState.from_plain(trunk.state["run"], state.use)
        state.begin_from_trunk(before, config.num_steps)
        logger.info("going on from a trunk at step %d of %d", state.step, config.num_steps)
    health.state = state.health
    fp8 = Fp8Layers(model, state.fp8_fallen) if config.precision == "fp8" else None
    metrics = MetricsFile(metrics_path, found.state["metrics_offset"] if found else 0)
    settings = {"model": to_plain(model_config), "train": to_plain(config)}
    mirror = open_mirror(runtime.tracker, run_dir, state.mirror_id, settings, name)
    state.mirror_id = mirror.id
    watch = Stopwatch(state.seconds)

    def log(line: Mapping[str, Any]) -> None:
        line = {"step": state.step, "tokens": state.step * config.batch_tokens, **line}
        metrics.write(line)
        mirror.log(line)

    def keep(step: int) -> None:
        if step in kept_states:
            tensors = collect_tensors(model, optimizer, state)
        else:
            tensors = collect_weights(model)
        snapshots.keep(step, tensors, {"run": state.to_plain()})
        watch.lap("checkpoint")

    def save() -> None:
        plain = {
            "identity": identity,
            "metrics_offset": metrics.synced_offset(),
            "run": state.to_plain(),
        }
        if is_merged:
            tensors = {**collect_weights(model), **state.use.to_tensors()}
        else:
            tensors = collect_tensors(model, optimizer, state)
        if rewinding is not None:
            point_tensors, plain["rewind_points"] = rewinding.to_checkpoint()
            tensors |= point_tensors
        contents = Checkpoint(state.step, tensors, plain)
        save_checkpoint(checkpoints, contents, keep=config.checkpoint.keep)
        watch.lap("checkpoint")

    def take_point() -> None:
        assert rewinding is not None
        tensors = {name: t.clone() for name, t in collect_tensors(model, optimizer, state).items()}
        offset = metrics.synced_offset()
        rewinding.take(Point(state.step, tensors, copy.deepcopy(state.to_plain()), offset))

    def go_back(reason: str, bad_step: int) -> bool:
        """To before what went wrong; False where that is not wanted, or not possible any more."""
        nonlocal state
        if rewinding is None or len(state.rewinds) >= config.health.max_rewinds:
            return False
        point = rewinding.before(bad_step)
        if point is None:
            return False
        skipped = bad_step - point.step
        told = {"step": point.step, "from_step": bad_step, "reason": reason}
        kept = {
            "seconds": state.seconds,
            "rewinds": [*state.rewinds, told],
            "fp8_fallen": state.fp8_fallen,
            "skipped_steps": state.skipped_steps + skipped,
        }
        restore_tensors(point.tensors, model, optimizer)
        state.use.restore(point.tensors)
        state = RunState.from_plain({**copy.deepcopy(point.state), **kept}, state.use)
        health.state = state.health
        metrics.cut(point.metrics_offset)
        log({"kind": "rewind", **told, "skipped_tokens": skipped * config.batch_tokens})
        for folder in (checkpoints, snapshots.own):
            for path in checkpoint_paths(folder):
                if path > step_folder(folder, point.step):
                    shutil.rmtree(path)
        save()
        return True

    line_every = math.ceil(config.num_steps / LINES_PER_RUN)
    briefly_after = brief_steps(config)
    is_merge = config.schedule.kind == "wsm"
    kept_states = frozenset(config.checkpoint.states_at)
    kept = kept_states.union(config.checkpoint.weights_at, merged_steps(config) if is_merge else ())
    saved_step, saved_at = state.step if found else None, watch.last
    shown_step, shown_at = state.step, watch.last
    reason = ""

    try:
        with _sigterm_noticed() as is_stopping:
            while state.step < config.num_steps and not reason:
                stage = stage_at(stages, state.step)
                if model.rotary.config != stage.attention:
                    model.rotary = Rotary(stage.attention)
                batch = reader.batch(state.step + state.skipped_steps).to(device)
                watch.lap("data")

                is_looked_at = fp8 is not None and fp8.is_due(state.step)
                if fp8 is not None and is_looked_at:
                    fp8.watch()
                optimizer.zero_grad(set_to_none=True)
                loss_nats, mtp_nats, loads = _forward_backward(model, batch, config)
                grad_norm = clip_gradients(model, config.optimizer.clip_norm)
                reason = health.check_finite(state.step + 1, loss_nats, grad_norm)
                if reason:
                    if not go_back(reason, state.step + 1):
                        break
                    reason = ""
                    continue
                lr = stage.lr_factor * learning_rate(config, state.step)
                set_learning_rate(optimizer, lr)
                optimizer.step()
                update_biases(model, loads, stage.balance)
                state.use.count(loads)
                state.count(loss_nats, mtp_nats, grad_norm)
                if state.step > tail_begins(config.num_steps):
                    state.tail_steps += 1
                    state.tail_nats += loss_nats
                state.count_tails(loss_nats, config.checkpoint.ends_at)
                if fp8 is not None and is_looked_at:
                    log(fp8.verdict())
                    state.fp8_fallen = list(fp8.fallen)
                reason = health.check_loss(state.step, loss_nats)
                now = watch.lap("step")
                if reason and go_back(reason, state.step):
                    reason = ""
                    continue

                if state.step % line_every == 0 or state.step == config.num_steps:
                    reason = reason or health.check_load(
                        state.line_step, state.step, state.use.load_LE
                    )
                    log(_train_line(state, config, lr, layers))
                    state.begin_line()
                    watch.lap("log")
                if state.step in briefly_after:
                    evaluation = evaluator_of(stage).briefly(model, state.use.choices_LTK)
                    # Of other windows where the stages' lengths differ: no two can be compared.
                    state.use.choices_LTK = evaluation.choices_LTK if one_length else None
                    log(evaluation.line())
                    watch.lap("evaluate")
                if state.step == stage.last_step and stage is not stages[-1] and not reason:
                    measured = _stage_measured(stage, state, evaluator_of(stage)(model))
                    measured["by_position"] = positions_in(stage)
                    state.stages.append(measured)
                    log({"kind": "stage", **measured})
                    watch.lap("evaluate")
                if state.step in kept and not reason and not snapshots.has(state.step):
                    keep(state.step)
                if rewinding is not None and rewinding.is_due(state.step, health.rise):
                    take_point()
                if now - saved_at >= config.checkpoint.every_s or is_stopping.is_set():
                    save()
                    saved_step, saved_at = state.step, watch.last
                if is_stopping.is_set():
                    raise Interrupted(state.step)
                if on_progress is not None and now - shown_at >= PROGRESS_EVERY_S:
                    done = (state.step - shown_step) * config.batch_tokens
                    try:
                        on_progress(state.step, config.num_steps, done / (now - shown_at))
                    except BaseException:
                        save()
                        raise
                    shown_step, shown_at = state.step, now

        if reason:
            log({"kind": "diverged", "reason": reason})
        elif is_merge and not is_merged:
            model.load_state_dict(snapshots.merged(config))
            is_merged = True
            save()
        elif saved_step != state.step:
            save()
        # A readout of a trunk may have no evaluation before: its record must not depend on that.
        earlier_LTK = None if config.schedule.trunk else state.use.choices_LTK
        last = stage_at(stages, state.step)
        model.rotary = Rotary(last.attention)
        evaluation = evaluator_of(last)(model, earlier_LTK)
        is_finite = math.isfinite(evaluation.loss_nats)
        if not is_finite:
            reason = reason or f"held-out loss is {evaluation.loss_nats} at step {state.step}"
        else:
            log(evaluation.final_line())
            if last.name:
                measured = _stage_measured(last, state, evaluation)
                measured["by_position"] = positions_in(last)
                log({"kind": "stage", **measured})
                state.stages.append(measured)
        watch.lap("evaluate")
        result = TrainResult(
            status="diverged" if reason else "done",
            reason=reason,
            steps=state.step,
            tokens=state.step * config.batch_tokens,
            loss_nats=evaluation.loss_nats if is_finite else None,
            bits_per_byte=evaluation.bits_per_byte if is_finite else None,
            train_loss_nats=_tail_loss(state),
            by_domain=evaluation.by_domain if is_finite else {},
            load_by_layer=evaluation.load_by_layer,
            wall_s=sum(state.seconds.values()),
            tokens_per_s=_tokens_per_s(state, config),
            seconds=dict(state.seconds),
            epochs=corpus.epochs_of(spans, state.step),
            numerics=describe_numerics(device),
            stages=tuple(state.stages),
            rewinds=tuple(state.rewinds),
            fp8_fallen=tuple(state.fp8_fallen),
        )
        mirror.summary(to_plain(result))
        return result
    finally:
        metrics.close()
        mirror.close()


def _build(
    model_config: ModelConfig, config: TrainConfig, corpus: PreparedCorpus, device: torch.device
) -> tuple[Transformer, torch.optim.AdamW]:
    if model_config.vocab_size != corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({model_config.vocab_size}) must be that of the corpus's tokenizer "
            f"({corpus.vocab_size})"
        )
    corpus.require_length(config.sequence_length)
    model = build_model(model_config, seed=config.seed, device=device)
    return model, build_optimizer(model, config.optimizer)


def _forward_backward(
    model: Transformer, batch_BT: Tensor, config: TrainConfig
) -> tuple[float, float, list[Tensor]]:
    """Leave gradients of the training loss on the model.

    Returns:
        The language-model loss, the multi-token-prediction loss (0 without such a block), and the
        load of each mixture layer.
    """
    balance = config.balance
    weigh_routing = balance.aux_loss_weight > 0 or balance.z_loss_weight > 0
    request = RoutingRequest(losses=weigh_routing)
    with computing_in(config.precision, batch_BT.device):
        result = model(batch_BT[:, :-1], batch_BT[:, 1:], request=request)
    loss, mtp_loss = result.loss_nats, result.mtp_loss_nats
    total = loss if mtp_loss is None else loss + config.mtp_loss_weight * mtp_loss
    if weigh_routing:
        for stats in result.routing:
            total = total + balance.aux_loss_weight * stats.aux_loss
            total = total + balance.z_loss_weight * stats.z_loss
    total.backward()
    mtp_nats = 0.0 if mtp_loss is None else mtp_loss.item()
    return loss.item(), mtp_nats, [stats.load_E for stats in result.routing]


def _train_line(
    state: RunState, config: TrainConfig, lr: float, layers: tuple[int, ...]
) -> dict[str, Any]:
    num_steps = state.step - state.line_step
    line: dict[str, Any] = {
        "kind": "train",
        "train_loss_nats": state.line_nats / num_steps,
        "mtp_loss_nats": state.line_mtp_nats / num_steps,
        "lr": lr,
        "grad_norm": state.line_grad_norm,
    }
    if layers:
        line |= {"layers": layers, **state.use.metrics(num_steps)}
    return line | {
        "tokens_per_s": _tokens_per_s(state, config),
        "wall_s": sum(state.seconds.values()),
    }


def _stage_measured(stage: Stage, state: RunState, evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": stage.name,
        "steps": state.step,
        "sequence_length": stage.sequence_length,
        "loss_nats": evaluation.loss_nats,
    }


def _tokens_per_s(state: RunState, config: TrainConfig) -> float:
    """Of the run's own steps; 0 where a trunk did them all."""
    trained_s = state.seconds.get("step", 0.0) + state.seconds.get("data", 0.0)
    done = (state.step - state.first_step) * config.batch_tokens
    return done / trained_s if done else 0.0


def _tail_loss(state: RunState) -> float:
    """Mean of the last tenth; a run that diverged before it has its smoothed loss."""
    if state.tail_steps == 0:
        return state.health.smoothed_nats
    return state.tail_nats / state.tail_steps


def _why_unusable(checkpoint: Checkpoint, identity: str, metrics_path: Path) -> str:
    """Why a whole checkpoint can't be resumed from; empty if it can.

    Raises:
        ConfigError: it belongs to another run.
    """
    if checkpoint.state["identity"] != identity:
        raise ConfigError(
            f"{metrics_path.parent}: holds checkpoints of a run with another model, training "
            "config or corpus; use a new folder, or delete its checkpoints/ to begin again"
        )
    length = metrics_path.stat().st_size if metrics_path.exists() else 0
    if length < checkpoint.state["metrics_offset"]:
        return f"metrics.jsonl has {length} bytes, it was saved with more"
    return ""


@contextmanager
def _sigterm_noticed() -> Iterator[threading.Event]:
    """An event that SIGTERM sets, unless the caller handles SIGTERM or this is not its thread."""
    event = threading.Event()
    is_ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    )
    if not is_ours:
        yield event
        return
    signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
