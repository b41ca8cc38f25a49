"""Parameters, FLOPs and good manners of a user's own part, measured from the module itself.

A probe of a few sequences goes through each block, in float64 on the CPU, where only plain
operations serve, and the dispatcher counts their products. It also shows whether the part may stand
in a language model: the right shapes, the same answer twice, and no look at a later position or
another sequence, which would make its losses too good to be true.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.balance import RoutingRequest
from model.block import Block
from model.config import ModelConfig
from model.errors import ConfigError
from model.init import initialize
from model.layers import Rotary
from model.moe import MoE
from model.own.build import own_error
from model.own.parts import OwnCounts, OwnPart, PartKind
from model.own.source import Source
from model.router import Routing

# Shapes: B sequences, T positions, D model width.

SEQUENCES = 2
MOST_PARAMS = 100_000_000
"""Of one layer's part: the probe is computed on a CPU."""
CHANGED = 1e-9
"""Relative change of an output, in float64, that is no rounding."""


@lru_cache(maxsize=1024)
def with_own(
    config: ModelConfig, own: tuple[tuple[PartKind, Source], ...], sequence_length: int
) -> ModelConfig:
    """``config`` with these parts and their counts; their classes must be loaded.

    Raises:
        ConfigError: a part can't be built, answers in a wrong shape, or is too large to measure.
    """
    blank = tuple(OwnCounts() for _ in range(config.num_layers + config.mtp_depth))
    parts = tuple(
        OwnPart(
            kind=kind,
            name=source.name,
            source=source.hash,
            sequence_length=sequence_length,
            counts=blank,
        )
        for kind, source in own
    )
    config = replace(config, own=parts)
    counts: dict[PartKind, list[OwnCounts]] = {kind: [] for kind, _ in own}
    for layer in range(len(blank)):
        probe = _Probe(config, layer, sequence_length)
        for part in parts:
            counts[part.kind].append(probe.counts(part))
    return replace(config, own=tuple(replace(p, counts=tuple(counts[p.kind])) for p in parts))


@lru_cache(maxsize=1024)
def check_own_parts(config: ModelConfig) -> None:
    """Refuse parts whose losses would not mean what a loss means.

    Raises:
        ConfigError: a part's answers differ between two passes, look ahead, or look at another
            sequence; or it keeps numbers that are no parameters.
    """
    for layer in range(config.num_layers + config.mtp_depth):
        _Probe(config, layer, config.own[0].sequence_length).check()


class _Probe:
    """One block with its parts, and what goes through it."""

    def __init__(self, config: ModelConfig, layer: int, sequence_length: int) -> None:
        self._config, self._layer = config, layer
        with torch.device("meta"):
            self._block = Block(config, layer)
        for part in config.own:
            size = sum(p.numel() for module in self._modules(part) for p in module.parameters())
            if size > MOST_PARAMS:
                raise ConfigError(
                    f"own.{part.kind}: {part.name} has {size:,} parameters in a layer; it is "
                    f"measured by computing it here, up to {MOST_PARAMS:,}"
                )
        self._block.to(torch.float64).to_empty(device="cpu")
        initialize(self._block, config, seed=0)
        shape = (SEQUENCES, sequence_length, config.hidden_size)
        self._x_BTD = self._drawn(shape, seed=0)
        self._inside: OwnPart | None = None
        self._inputs: dict[nn.Module, tuple[Any, ...]] = {}
        self._inputs_inside: tuple[Any, ...] = ()
        for part in config.own:
            for module in self._modules(part):
                self._watch(part, module)

    def counts(self, part: OwnPart) -> OwnCounts:
        """Parameters and products of a part."""
        modules = self._modules(part)
        if not modules:
            return OwnCounts()
        self._answer(self._x_BTD)
        flops = 0
        for module in modules:
            counter = FlopCounterMode(display=False)
            with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
                module(*self._inputs[module])
            flops += counter.get_total_flops()
        params = [p for module in modules for p in module.parameters()]
        return OwnCounts(
            params=sum(p.numel() for p in params),
            vectors=sum(p.numel() for p in params if p.ndim < 2),
            forward_flops=flops / self._x_BTD[..., 0].numel(),
        )

    def check(self) -> None:
        """Raise ConfigError where the block does not behave like one of a language model."""
        x_BTD = self._x_BTD
        torch.manual_seed(0)
        first = self._answer(x_BTD)
        torch.manual_seed(1)
        if not first.isfinite().all():
            raise self._refused("answer with numbers that are not finite")
        if not torch.equal(first, self._answer(x_BTD)):
            raise self._refused(
                "answer differently to the same input twice (dropout, random numbers or a memory "
                "of the last call), so that no run could be measured again or resumed"
            )
        half = x_BTD.shape[1] // 2
        other = self._drawn(tuple(x_BTD.shape), seed=1)
        later = torch.cat([x_BTD[:, :half], other[:, half:]], dim=1)
        if _differ(first[:, :half], self._answer(later)[:, :half]):
            raise self._refused(
                "look ahead: an answer changes with a later position, and a loss of what can be "
                "looked up means nothing (experts of limited capacity do this too)"
            )
        beside = torch.cat([x_BTD[:1], other[1:]])
        if _differ(first[:1], self._answer(beside)[:1]):
            raise self._refused("look at another sequence of the batch (batch statistics do this)")
        self._backward()

    def _backward(self) -> None:
        try:
            self._answer(self._x_BTD.clone().requires_grad_()).square().mean().backward()
        except ConfigError:
            raise
        except Exception as error:  # of the user's operations
            raise self._refused(f"fail in the backward pass: {error}") from error

    def _answer(self, x_BTD: Tensor) -> Tensor:
        rotary = Rotary(self._config.attention)
        try:
            with sdpa_kernel(SDPBackend.MATH):
                answer: Tensor = self._block(x_BTD, rotary, RoutingRequest())[0]
        except ConfigError:
            raise
        except Exception as error:  # whatever the user's forward does
            if self._inside is None:
                raise
            part, shapes = self._inside, _shapes(self._inputs_inside)
            raise own_error(part, f"failed in forward, given {shapes}", error) from error
        return answer if x_BTD.requires_grad else answer.detach()

    def _modules(self, part: OwnPart) -> Sequence[nn.Module]:
        block, is_mixture = self._block, isinstance(self._block.feed_forward, MoE)
        if part.kind == "norm":
            return [block.attention_norm, block.feed_forward_norm]
        if part.kind == "attention":
            return [block.attention]
        if part.kind == "feed_forward":
            return [block.feed_forward]
        if not is_mixture:
            return []  # a leading dense layer
        return [getattr(block.feed_forward, part.kind)]

    def _watch(self, part: OwnPart, module: nn.Module) -> None:
        """Remember what goes into ``module``, and look at what comes out."""

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            self._inside, self._inputs_inside = part, inputs
            self._inputs[module] = inputs

        def leave(_: nn.Module, inputs: tuple[Any, ...], answer: Any) -> None:
            self._inside = None
            asked = self._asked(part, inputs[0])
            found = answer._asdict() if isinstance(answer, Routing) else {"": answer}
            for name, shape in asked.items():
                tensor = found.get(name)
                got = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
                if got != shape:
                    field = f" {name}" if name else ""
                    raise ConfigError(
                        f"own.{part.kind}: {part.name} answers{field} {got}, expected {shape}"
                    )

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _asked(self, part: OwnPart, x: Tensor) -> dict[str, tuple[int, ...]]:
        """Shapes of the answer to ``x``, by field where it has several."""
        moe = self._config.moe
        if part.kind != "router" or moe is None:
            return {"": tuple(x.shape)}
        chosen, all_experts = (len(x), moe.experts_per_token), (len(x), moe.num_experts)
        return {
            "expert_TK": chosen,
            "gate_TK": chosen,
            "logits_TE": all_experts,
            "scores_TE": all_experts,
        }

    def _refused(self, what: str) -> ConfigError:
        named = ", ".join(f"own.{part.kind}: {part.name}" for part in self._config.own)
        return ConfigError(f"{named}: blocks like layer {self._layer}'s {what}")

    @staticmethod
    def _drawn(shape: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


def _differ(before: Tensor, after: Tensor) -> bool:
    return bool((before - after).abs().max() > CHANGED * before.abs().max())


def _shapes(inputs: tuple[Any, ...]) -> str:
    return ", ".join(
        str(list(x.shape)) if isinstance(x, Tensor) else type(x).__name__ for x in inputs
    )
