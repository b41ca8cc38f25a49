"""Every initial value of a model, in one table."""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.errors import ConfigError
from model.experts import RoutedExperts
from model.layers import RMSNorm
from model.router import Router


@torch.no_grad()
def initialize(
    model: nn.Module, config: ModelConfig, seed: int, drawn_on: torch.device | str = "cpu"
) -> None:
    """Fill every parameter and buffer of ``model`` in place.

    Each parameter draws from its own generator, seeded by ``seed`` and the parameter's name: the
    values depend neither on the global random state nor on the order in which modules were built,
    and block 3 of a deeper model starts like block 3 of a shallower one. Drawn in float32 on the
    CPU, so that every device and type starts from the same numbers; another ``drawn_on`` is faster
    for a large model and has numbers of its own.
    """
    for module_name, module in model.named_modules():
        for name, parameter in module.named_parameters(module_name, recurse=False):
            value = initial_value(module, name, parameter.shape, config, seed, drawn_on)
            parameter.copy_(value)
        for buffer in module.buffers(recurse=False):
            buffer.zero_()  # the routers' selection biases


def initial_value(
    module: nn.Module,
    name: str,
    shape: torch.Size,
    config: ModelConfig,
    seed: int,
    drawn_on: torch.device | str = "cpu",
) -> Tensor:
    """Norms 1; router U(±1/√d), PyTorch's default linear; everything else N(0, init_std²).

    In a module of the user's own (see :mod:`model.own`) that holds for its tensors of two and more
    dimensions; biases begin at 0, and other vectors at the constant that its class names for them
    in ``initial``, a mapping of parameter name to number.

    Raises:
        ConfigError: a vector of a user's module has no value.
    """
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest()
    number = int.from_bytes(digest, "little", signed=True)
    generator = torch.Generator(drawn_on).manual_seed(number)
    value = torch.empty(shape, dtype=torch.float32, device=drawn_on)
    last = name.rpartition(".")[2]
    constant = getattr(type(module), "initial", {}).get(last)
    match module:
        case _ if constant is not None:
            return value.fill_(constant)
        case RMSNorm() | nn.RMSNorm() | nn.LayerNorm() | nn.GroupNorm():
            return value.fill_(0 if last == "bias" else 1)
        case Router() if last == "weight":
            bound = 1 / math.sqrt(shape[-1])
            return value.uniform_(-bound, bound, generator=generator)
        case nn.Module() if last == "bias" and len(shape) == 1:
            return value.fill_(0)
        case nn.Linear() | nn.Embedding() | RoutedExperts():
            return value.normal_(0, config.init_std, generator=generator)
    if type(module).__module__.partition(".")[0] == "model":
        raise TypeError(f"no initial value for {name}: {type(module).__name__} is not in the table")
    if len(shape) >= 2:
        return value.normal_(0, config.init_std, generator=generator)
    raise ConfigError(
        f"no initial value for {name}: {type(module).__name__} is to say it, "
        f"e.g. initial = {{{last!r}: 1.0}} in the class"
    )
