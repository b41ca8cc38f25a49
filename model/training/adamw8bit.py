"""AdamW with moments of one byte, for weights in float32 or bfloat16.

A parameter's state takes 2.03 bytes in place of 8. Weights in bfloat16 are rounded up or down at
random, with chances that keep the mean (arXiv:2010.06192): an update is often less than half the
distance of two such numbers and would be lost by rounding to the nearest. So no float32 copy is
needed, and 16 billion parameters are trained in 100 GB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from model.kernels import on_gpu
from model.training.moments import (
    BLOCK,
    Packed,
    draws_of,
    in_blocks,
    pack_first,
    pack_second,
    random_bits,
    round_at_random,
    unpack_first,
    unpack_second,
)

SMALLEST = 4096
"""Parameters of fewer elements keep float32 moments: they take no room (as in arXiv:2110.02861)."""
CPU_CHUNK, GPU_CHUNK = 2**16, 2**24
"""Elements updated at once the plain way: what stays in a cache; what keeps a GPU busy."""


class Rule(NamedTuple):
    """One step's numbers, for one parameter."""

    lr: float
    weight_decay: float
    beta1: float
    beta2: float
    eps: float
    step: int
    seed: int
    """Of the roundings; 31 bits."""

    @property
    def first_correction(self) -> float:
        """What the first moment is divided by, since it began at 0."""
        return 1 - self.beta1**self.step

    @property
    def second_correction(self) -> float:
        """The same of the second moment."""
        return 1 - self.beta2**self.step


class AdamW8bit(torch.optim.Optimizer):
    """AdamW (arXiv:1711.05101) on moments of one byte (:mod:`model.training.moments`).

    ``state`` has ``step`` and, by name, codes and scales; there is nothing else to save. Gradients
    may be of another float type than the weights.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        is_fused: bool = True,
    ) -> None:
        """``is_fused``: one kernel a parameter where there is one (CUDA devices, triton)."""
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0}
        super().__init__(params, defaults)
        self.is_fused = is_fused
        groups = [(p, group) for group in self.param_groups for p in group["params"]]
        self._place = {p: (place, group) for place, (p, group) in enumerate(groups)}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for parameter in self._place:
            if parameter.grad is not None:
                self.update(parameter)

    @torch.no_grad()
    def update(self, parameter: Tensor) -> None:
        """One parameter's step by its gradient."""
        assert parameter.grad is not None
        place, group = self._place[parameter]
        state = self.state[parameter]
        if not state:
            state.update(initial_state(parameter))
        state["step"] += 1
        step = int(state["step"])
        beta1, beta2 = group["betas"]
        rule = Rule(
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            step=step,
            seed=_seed(place, step),
        )
        if "exp_avg_scale" not in state:
            _update_small(parameter, parameter.grad, state, rule)
        elif (fused := on_gpu.module_for("adamw8bit", parameter)) and self.is_fused:
            fused.update(parameter, parameter.grad.contiguous(), state, rule, BLOCK)
        else:
            _update_packed(parameter, parameter.grad, state, rule)


def initial_state(parameter: Tensor) -> dict[str, Tensor]:
    """Moments of zero."""
    count, device = parameter.numel(), parameter.device
    step = torch.zeros((), dtype=torch.float32)
    if count < SMALLEST:
        flat = torch.zeros(count, dtype=torch.float32, device=device)
        return {"step": step, "exp_avg": flat, "exp_avg_sq": flat.clone()}
    scale_B = torch.zeros(-(-count // BLOCK), dtype=torch.float32, device=device)
    return {
        "step": step,
        "exp_avg": torch.zeros(count, dtype=torch.int8, device=device),
        "exp_avg_scale": scale_B,
        "exp_avg_sq": torch.zeros(count, dtype=torch.uint8, device=device),
        "exp_avg_sq_scale": scale_B.clone(),
    }


def update_in_backward(model: nn.Module, optimizer: AdamW8bit) -> list[RemovableHandle]:
    """Update each parameter as soon as its gradient is whole, and drop the gradient.

    So no two parameters' gradients need exist at once; in return their joint norm can't be known
    before the first update, and a step is one backward pass. Remove the handles to stop.
    """

    def now(parameter: Tensor) -> None:
        optimizer.update(parameter)
        parameter.grad = None

    return [p.register_post_accumulate_grad_hook(now) for p in model.parameters()]


def _update_packed(parameter: Tensor, grad: Tensor, state: dict[str, Tensor], rule: Rule) -> None:
    """The plain way, a chunk at a time: the truth that the fused kernel is held against."""
    weight_n, grad_n = parameter.view(-1), grad.reshape(-1)
    chunk = GPU_CHUNK if parameter.is_cuda else CPU_CHUNK
    for start in range(0, weight_n.numel(), chunk):
        part = slice(start, min(start + chunk, weight_n.numel()))
        blocks = slice(start // BLOCK, -(-part.stop // BLOCK))
        count = part.stop - start
        first = Packed(state["exp_avg"][part], state["exp_avg_scale"][blocks])
        second = Packed(state["exp_avg_sq"][part], state["exp_avg_sq_scale"][blocks])
        grad_BK = in_blocks(grad_n[part].float())
        mean_BK, square_BK = _moments(unpack_first(first), unpack_second(second), grad_BK, rule)
        # The padding of a last block takes part and is dropped again.
        bits = random_bits(start, grad_BK.numel(), rule.seed, weight_n.device)
        _move(weight_n[part], mean_BK.view(-1)[:count], square_BK.view(-1)[:count], bits, rule)
        bits_BK = bits.view_as(grad_BK)
        packed = pack_first(mean_BK, draws_of(bits_BK, 16))
        first.codes_n.copy_(packed.codes_n[:count])
        first.scale_B.copy_(packed.scale_B)
        packed = pack_second(square_BK, draws_of(bits_BK, 24))
        second.codes_n.copy_(packed.codes_n[:count])
        second.scale_B.copy_(packed.scale_B)


def _update_small(parameter: Tensor, grad: Tensor, state: dict[str, Tensor], rule: Rule) -> None:
    weight_n, grad_n = parameter.view(-1), grad.reshape(-1).float()
    mean_n, square_n = _moments(state["exp_avg"], state["exp_avg_sq"], grad_n, rule)
    bits_n = random_bits(0, weight_n.numel(), rule.seed, weight_n.device)
    _move(weight_n, mean_n, square_n, bits_n, rule)


def _moments(mean: Tensor, square: Tensor, grad: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Both moving averages, in place."""
    mean.mul_(rule.beta1).add_(grad, alpha=1 - rule.beta1)
    square.mul_(rule.beta2).addcmul_(grad, grad, value=1 - rule.beta2)
    return mean, square


def _move(weight_n: Tensor, mean_n: Tensor, square_n: Tensor, bits_n: Tensor, rule: Rule) -> None:
    """The weights, by the moments."""
    root_n = (square_n * (1 / rule.second_correction)).sqrt_().add_(rule.eps)
    moved_n = weight_n.float() * (1 - rule.lr * rule.weight_decay)
    moved_n.addcdiv_(mean_n, root_n, value=-rule.lr / rule.first_correction)
    if weight_n.dtype == torch.bfloat16:
        weight_n.copy_(round_at_random(moved_n, bits_n[: weight_n.numel()]))
    else:
        weight_n.copy_(moved_n)


def _seed(place: int, step: int) -> int:
    """Of the roundings of the optimizer's parameter number ``place`` in one step."""
    digest = hashlib.blake2b(f"{place}/{step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") >> 1
