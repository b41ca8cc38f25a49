"""The optimizers, as Ling 2.0 uses AdamW, and the clipping of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from model.kernels import adamw
from model.training.adamw import AdamW
from model.training.adamw8bit import AdamW8bit
from model.training.config import MuonConfig, OptimizerConfig
from model.training.matrices import hidden_matrices
from model.training.muon import Muon

Optimizer = torch.optim.Optimizer | Muon


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, muon: type[Muon] = Muon
) -> Optimizer:
    """AdamW (arXiv:1711.05101); matrices decay, vectors (the norms' weights) do not.

    As in Megatron-LM, the embedding, the output layer and the routers are matrices and decay too.
    With Muon that is so as well.

    Args:
        model: a whole one, or the stages that one process has of it.
        config: what decides the updates.
        muon: how Muon's are computed.
    """
    if config.muon is not None:
        return _of_matrices(muon, model, config, config.muon)
    groups = _groups(model.parameters(), config)
    if config.kind == "adamw8bit":
        betas = config.beta1, config.beta2
        return AdamW8bit(groups, lr=config.peak_lr, betas=betas, eps=config.eps)
    return _adamw(groups, config)


def _of_matrices(
    muon: type[Muon], model: nn.Module, config: OptimizerConfig, settings: MuonConfig
) -> Muon:
    matrices = hidden_matrices(model, per_head=settings.per_head)
    rest = [p for p in model.parameters() if p not in matrices]
    return muon(
        matrices,
        _adamw(_groups(rest, config), config),
        lr=config.peak_lr,
        weight_decay=config.weight_decay,
        momentum=settings.momentum,
    )


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig) -> AdamW:
    betas = config.beta1, config.beta2
    return AdamW(groups, lr=config.peak_lr, betas=betas, eps=config.eps, fused=True)


def _groups(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> list[dict[str, Any]]:
    every = list(parameters)
    matrices = [p for p in every if p.ndim >= 2]
    vectors = [p for p in every if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Use ``lr`` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(
    parameters: Iterable[Tensor], clip_norm: float, norm: float | None = None
) -> float:
    """Scale all gradients so that their joint norm is at most ``clip_norm``; the norm before.

    What ``torch.nn.utils.clip_grad_norm_`` does, at 0.6 of its cost for small models (2026-11-23).

    Args:
        parameters: whose gradients they are.
        clip_norm: most of the norm.
        norm: of them all, where it is known.
    """
    grads = [p.grad for p in parameters if p.grad is not None]
    if adamw.serves(grads):
        norm = adamw.global_norm(grads)
        if norm > clip_norm:
            adamw.scale(grads, clip_norm / norm)
        return norm
    if norm is None:
        norm = global_norm(grads).item()
    if norm > clip_norm:
        torch._foreach_mul_(grads, clip_norm / norm)
    return norm


def global_norm(grads: list[Tensor]) -> Tensor:
    """The joint norm of all of them, a float32 number on their device."""
    norms = torch._foreach_norm(grads, 2, torch.promote_types(grads[0].dtype, torch.float32))
    return torch.linalg.vector_norm(torch.stack(norms))


def state_names(optimizer: Optimizer, parameter: nn.Parameter) -> tuple[str, ...]:
    """What the state of a parameter has: numbers of its shape, and for AdamW a count of steps."""
    if isinstance(optimizer, Muon) and parameter in optimizer.matrices:
        return ("momentum",)
    return ("step", "exp_avg", "exp_avg_sq")


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimizer's state under the names of the parameters, for a checkpoint."""
    return {
        f"{key}.{name}": value
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state[parameter].items()
    }


def load_optimizer_tensors(
    model: nn.Module, optimizer: Optimizer, tensors: dict[str, Tensor]
) -> None:
    """The inverse of :func:`optimizer_tensors`, on the devices of the parameters."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        key, _, name = full_name.partition(".")
        parameter = parameters[name]
        optimizer.state[parameter][key] = tensor.to(parameter.device, copy=True)
