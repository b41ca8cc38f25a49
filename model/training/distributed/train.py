"""The training loop of one process of many: every rank takes the same decisions at the same step.

What a run is does not change with the number of processes: the same windows, initial values, rules
and learning rates as :func:`model.training.trainer.train`, and the same lines of training in
``metrics.jsonl``; its lines of evaluation have the same losses, without the use of the experts.
Losses, norms and loads are those of the global batch on every rank, so a rule that ends a run ends
it everywhere; what depends on a clock or a signal is rank 0's to say. What this loop does not know
it refuses: stages, going back, FP8, shared trunks.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.config import ModelConfig, require
from model.errors import ConfigError
from model.training.config import TrainConfig
from model.training.data import PreparedCorpus
from model.training.distributed import checkpoint
from model.training.distributed.config import ParallelConfig
from model.training.distributed.engine import Engine
from model.training.evaluate import (
    DomainLoss,
    brief_steps,
    few_of,
    heldout_windows,
    mixture_layers,
)
from model.training.health import Health
from model.training.identity import run_identity
from model.training.lines import steps_per_line, tokens_per_s, train_line
from model.training.optim import set_learning_rate
from model.training.reader import Reader
from model.training.routing_use import RoutingUse
from model.training.saving import why_unusable
from model.training.schedules import learning_rate
from model.training.state import RunState
from model.training.stopping import Interrupted
from model.training.stopwatch import Stopwatch
from model.training.trackers import MetricsFile
from model.typed import to_plain

GO_ON, SAVE, STOP = range(3)


@dataclass(frozen=True, kw_only=True)
class DistributedResult:
    """What the run measured; the losses are None where a diverged run's weights give no number."""

    status: Literal["done", "diverged"]
    reason: str
    steps: int
    tokens: int
    loss_nats: float | None
    by_domain: Mapping[str, DomainLoss]
    load_by_layer: tuple[tuple[float, ...], ...]
    """Share of the choices each expert received on the held-out windows, by mixture layer."""
    tokens_per_s: float
    """Of the training steps, evaluation and checkpoints left out."""
    parallel: ParallelConfig


def train(
    model: ModelConfig,
    config: TrainConfig,
    corpus: PreparedCorpus,
    parallel: ParallelConfig,
    run_dir: Path,
    device: torch.device,
) -> DistributedResult:
    """Train one run with all processes of the default group, going on from its checkpoints.

    Raises:
        ConfigError: the run asks for what this loop does not know, or the sizes fit neither the
            model, the batch nor the number of processes.
        Interrupted: rank 0 was sent SIGTERM, and the run is saved.
    """
    require_known(config, has_stages=bool(corpus.stages))
    if model.vocab_size != corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({model.vocab_size}) must be that of the corpus's tokenizer "
            f"({corpus.vocab_size})"
        )
    engine = Engine(model, config, parallel, device)
    health = Health(model, limits=config.health, num_steps=config.num_steps)
    layers = mixture_layers(model)
    num_experts = model.moe.num_experts if model.moe else 0
    state = RunState(health.state, RoutingUse(len(layers), num_experts, device))
    identity = run_identity(model, config, corpus.fingerprint)
    metrics_path = run_dir / "metrics.jsonl"

    found = checkpoint.load_newest(
        engine,
        run_dir / "checkpoints",
        lambda saved: why_unusable(saved, identity, metrics_path),
    )
    if found is not None:
        state.become(found["run"])
        state.use.restore({name: torch.tensor(rows) for name, rows in found["use"].items()})
    metrics = None
    if engine.is_first_rank:
        metrics = MetricsFile(metrics_path, found["metrics_offset"] if found else 0)

    def log(line: Mapping[str, Any]) -> None:
        if metrics is not None:
            tokens = state.step * config.batch_tokens
            metrics.write({"step": state.step, "tokens": tokens, **line})

    def save() -> None:
        plain = {
            "identity": identity,
            "run": state.to_plain(),
            "use": {name: rows.tolist() for name, rows in state.use.to_tensors().items()},
            "metrics_offset": metrics.synced_offset() if metrics is not None else 0,
        }
        folder = run_dir / "checkpoints"
        checkpoint.save(engine, folder, state.step, plain, keep=config.checkpoint.keep)

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    spans = corpus.spans(
        num_steps=config.num_steps,
        batch_tokens=config.batch_tokens,
        sequence_length=config.sequence_length,
    )
    reader = Reader(corpus, spans)
    heldout = heldout_windows(corpus, config.sequence_length, config.evaluation.heldout_tokens)
    line_every, briefly_after = steps_per_line(config), brief_steps(config)
    watch = Stopwatch(state.seconds)
    saved_at = watch.last
    reason = ""
    while state.step < config.num_steps and not reason:
        windows = reader.batch(state.step)
        watch.lap("data")
        engine.optimizer.zero_grad(set_to_none=True)
        result = engine.forward_backward(windows)
        grad_norm = engine.clip(config.optimizer.clip_norm)
        reason = health.check_finite(state.step + 1, result.loss_nats, grad_norm)
        if reason:
            break
        lr = learning_rate(config, state.step)
        set_learning_rate(engine.optimizer, lr)
        engine.optimizer.step()
        engine.update_biases(result.load_LE, config.balance)
        state.use.count([*result.load_LE])
        state.count(result.loss_nats, result.mtp_nats, grad_norm)
        reason = health.check_loss(state.step, result.loss_nats)
        now = watch.lap("step")
        if state.step % line_every == 0 or state.step == config.num_steps:
            load_LE = state.use.load_LE
            reason = reason or health.check_load(state.line_step, state.step, load_LE)
            log(train_line(state, config, lr, layers))
            state.begin_line()
            watch.lap("log")
        if state.step in briefly_after:
            by_domain, _ = evaluate(engine, corpus, few_of(heldout))
            log({"kind": "eval", **_losses(by_domain, corpus)})
            watch.lap("evaluate")
        is_due = now - saved_at >= config.checkpoint.every_s
        wanted = engine.agree(STOP if stopping else SAVE if is_due else GO_ON)
        if wanted != GO_ON:
            save()
            saved_at = watch.lap("checkpoint")
        if wanted == STOP:
            raise Interrupted(state.step)

    if reason:
        log({"kind": "diverged", "reason": reason})
    else:
        save()
    by_domain, load_LE = evaluate(engine, corpus, heldout)
    losses = _losses(by_domain, corpus)
    is_finite = math.isfinite(losses["loss_nats"])
    if is_finite:
        log({"kind": "eval", **losses, "final": True})
    else:
        reason = reason or f"held-out loss is {losses['loss_nats']} at step {state.step}"
    if metrics is not None:
        metrics.close()
    share_LE = load_LE.double() / load_LE.sum(-1, keepdim=True)
    return DistributedResult(
        status="diverged" if reason else "done",
        reason=reason,
        steps=state.step,
        tokens=state.step * config.batch_tokens,
        loss_nats=losses["loss_nats"] if is_finite else None,
        by_domain=by_domain if is_finite else {},
        load_by_layer=tuple(tuple(row) for row in share_LE.tolist()),
        tokens_per_s=tokens_per_s(state, config),
        parallel=parallel,
    )


def require_known(config: TrainConfig, *, has_stages: bool) -> None:
    """Refuse what a run over many processes would leave out without a word.

    ``has_stages``: whether its data has.

    Raises:
        ConfigError: naming it.
    """
    over_many = "a run over many processes"
    require(
        config.schedule.kind in ("wsd", "cosine", "constant"),
        f"schedule.kind {config.schedule.kind}: {over_many} does not average its checkpoints; use "
        "wsd, cosine or constant",
    )
    require(
        not has_stages and not config.stages,
        f"stages: {over_many} has one mixture, sequence length and rule from its first step to its "
        "last; train each stage of the data as a run",
    )
    require(
        config.precision != "fp8",
        f"precision fp8: {over_many} computes in fp32 or bf16; use one of them",
    )
    require(
        config.health.on_spike == "end",
        f"health.on_spike {config.health.on_spike}: {over_many} ends at a spike; use end",
    )
    kept = (*config.checkpoint.states_at, *config.checkpoint.weights_at)
    require(not kept, f"checkpoint: {over_many} keeps no states for others to go on from")


def evaluate(
    engine: Engine, corpus: PreparedCorpus, windows_by_domain: Mapping[str, Tensor]
) -> tuple[dict[str, DomainLoss], Tensor]:
    """Loss by domain, and the load [L, E] over all of them; the same on every rank."""
    by_domain, load_LE = {}, None
    for name, windows in windows_by_domain.items():
        nats, load = engine.evaluate(windows)
        targets = windows[:, 1:]
        num_bytes = corpus.count_bytes(targets.numpy())
        by_domain[name] = DomainLoss(
            loss_nats=nats / targets.numel(),
            bits_per_byte=nats / math.log(2) / num_bytes,
            tokens=targets.numel(),
            bytes=num_bytes,
        )
        load_LE = load if load_LE is None else load_LE + load
    assert load_LE is not None, "a corpus has domains"
    return by_domain, load_LE


def _losses(by_domain: Mapping[str, DomainLoss], corpus: PreparedCorpus) -> dict[str, Any]:
    mixed = math.fsum(corpus.weights[name] * loss.loss_nats for name, loss in by_domain.items())
    return {"loss_nats": mixed, "by_domain": {n: to_plain(d) for n, d in by_domain.items()}}
