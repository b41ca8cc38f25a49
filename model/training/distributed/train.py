"""The training loop of one process of many: every rank takes the same decisions at the same step.

What a run is does not change with the number of processes: the same windows, initial values, rules
and learning rates as :func:`model.training.trainer.train`, the same lines in ``metrics.jsonl``.
Losses, norms and loads are those of the global batch on every rank, so a rule that ends a run ends
it everywhere; what depends on a clock or a signal is rank 0's to say.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from model.balance import load_metrics
from model.config import ModelConfig, require
from model.errors import ConfigError
from model.training.config import TrainConfig
from model.training.data import PreparedCorpus
from model.training.distributed import checkpoint
from model.training.distributed.config import ParallelConfig
from model.training.distributed.engine import Engine
from model.training.evaluate import DomainLoss, brief_steps, mixture_layers
from model.training.health import Health, HealthState
from model.training.identity import run_identity
from model.training.lines import steps_per_line
from model.training.optim import set_learning_rate
from model.training.schedules import learning_rate
from model.training.stopping import Interrupted
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
    """Of the training steps of this attempt."""
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
        ConfigError: the sizes fit neither the model, the batch nor the number of processes.
        Interrupted: rank 0 was sent SIGTERM, and the run is saved.
    """
    require(
        config.schedule.kind in ("wsd", "cosine", "constant"),
        f"schedule.kind {config.schedule.kind}: a run over many processes does not average its "
        "checkpoints; use wsd, cosine or constant",
    )
    if model.vocab_size != corpus.vocab_size:
        raise ConfigError(
            f"model.vocab_size ({model.vocab_size}) must be that of the corpus's tokenizer "
            f"({corpus.vocab_size})"
        )
    engine = Engine(model, config, parallel, device)
    health, step = Health(model, limits=config.health, num_steps=config.num_steps), 0
    identity = run_identity(model, config, corpus.fingerprint)
    metrics_path = run_dir / "metrics.jsonl"

    def why_unusable(plain: dict[str, Any]) -> str:
        if plain["identity"] != identity:
            raise ConfigError(
                f"{run_dir}: holds checkpoints of a run with another model, training config or "
                "corpus; use a new folder, or delete its checkpoints/ to begin again"
            )
        return ""

    found = checkpoint.load_newest(engine, run_dir / "checkpoints", why_unusable)
    if found is not None:
        step, health.state = found["step"], HealthState(**found["health"])
    metrics = None
    if engine.is_first_rank:
        metrics = MetricsFile(metrics_path, found["metrics_offset"] if found else 0)

    def log(line: Mapping[str, Any]) -> None:
        if metrics is not None:
            metrics.write({"step": step, "tokens": step * config.batch_tokens, **line})

    def save() -> None:
        plain = {
            "identity": identity,
            "step": step,
            "health": to_plain(health.state),
            "metrics_offset": metrics.synced_offset() if metrics is not None else 0,
        }
        checkpoint.save(engine, run_dir / "checkpoints", step, plain, keep=config.checkpoint.keep)

    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: stopping.append(number))
    windows_per_step = config.batch_tokens // config.sequence_length
    line_every = steps_per_line(config)
    briefly_after = brief_steps(config)
    first_step, began, saved_at = step, time.perf_counter(), time.perf_counter()
    reason = ""
    while step < config.num_steps and not reason:
        windows = corpus.windows(step * windows_per_step, windows_per_step, config.sequence_length)
        engine.optimizer.zero_grad(set_to_none=True)
        result = engine.forward_backward(torch.from_numpy(windows))
        grad_norm = engine.clip(config.optimizer.clip_norm)
        reason = health.check_finite(step + 1, result.loss_nats, grad_norm)
        if reason:
            break
        lr = learning_rate(config, step)
        set_learning_rate(engine.optimizer, lr)
        engine.optimizer.step()
        engine.update_biases(result.load_LE, config.balance)
        step += 1
        reason = health.check_loss(step, result.loss_nats)
        if step % line_every == 0 or step == config.num_steps:
            load = load_metrics(result.load_LE)._asdict() if result.load_LE.numel() else {}
            log(
                {
                    "kind": "train",
                    "train_loss_nats": result.loss_nats,
                    "mtp_loss_nats": result.mtp_nats,
                    "lr": lr,
                    "grad_norm": grad_norm,
                    "layers": mixture_layers(model),
                    **{name: value.tolist() for name, value in load.items()},
                }
            )
        if step in briefly_after:
            by_domain, _ = evaluate(engine, corpus, config.evaluation.heldout_tokens // 8)
            log({"kind": "eval", **_losses(by_domain, corpus)})
        is_due = time.perf_counter() - saved_at >= config.checkpoint.every_s
        wanted = engine.agree(STOP if stopping else SAVE if is_due else GO_ON)
        if wanted != GO_ON:
            save()
            saved_at = time.perf_counter()
        if wanted == STOP:
            raise Interrupted(step)

    tokens_per_s = (step - first_step) * config.batch_tokens / (time.perf_counter() - began)
    if reason:
        log({"kind": "diverged", "reason": reason})
    else:
        save()
    by_domain, load_LE = evaluate(engine, corpus, config.evaluation.heldout_tokens)
    losses = _losses(by_domain, corpus)
    is_finite = math.isfinite(losses["loss_nats"])
    if is_finite:
        log({"kind": "eval", **losses, "final": True})
    else:
        reason = reason or f"held-out loss is {losses['loss_nats']} at step {step}"
    if metrics is not None:
        metrics.close()
    share_LE = load_LE.double() / load_LE.sum(-1, keepdim=True)
    return DistributedResult(
        status="diverged" if reason else "done",
        reason=reason,
        steps=step,
        tokens=step * config.batch_tokens,
        loss_nats=losses["loss_nats"] if is_finite else None,
        by_domain=by_domain if is_finite else {},
        load_by_layer=tuple(tuple(row) for row in share_LE.tolist()),
        tokens_per_s=tokens_per_s,
        parallel=parallel,
    )


def evaluate(
    engine: Engine, corpus: PreparedCorpus, tokens_per_domain: int
) -> tuple[dict[str, DomainLoss], torch.Tensor]:
    """Held-out loss by domain, and the load [L, E] over all of them; the same on every rank."""
    by_domain, load_LE = {}, None
    for name in corpus.domains:
        held = corpus.heldout(name, engine.train.sequence_length, tokens_per_domain)
        nats, load = engine.evaluate(torch.from_numpy(held))
        targets = held[:, 1:]
        num_bytes = corpus.count_bytes(targets)
        by_domain[name] = DomainLoss(
            loss_nats=nats / targets.size,
            bits_per_byte=nats / math.log(2) / num_bytes,
            tokens=targets.size,
            bytes=num_bytes,
        )
        load_LE = load if load_LE is None else load_LE + load
    assert load_LE is not None, "a corpus has domains"
    return by_domain, load_LE


def _losses(by_domain: Mapping[str, DomainLoss], corpus: PreparedCorpus) -> dict[str, Any]:
    mixed = math.fsum(corpus.weights[name] * loss.loss_nats for name, loss in by_domain.items())
    return {"loss_nats": mixed, "by_domain": {n: to_plain(d) for n, d in by_domain.items()}}
