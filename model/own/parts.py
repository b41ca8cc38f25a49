"""What a model says of a part that a user's own Python computes. Torch-free.

A part is named as ``package.module:Class``, stands in a model by the hash of its source, and brings
its own counts, measured from the module itself (:mod:`model.own.measure`): no formula knows them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.errors import ConfigError

PartKind = Literal["attention", "feed_forward", "experts", "router", "norm"]

GROUPS: dict[PartKind, str] = {
    "attention": "attention",
    "feed_forward": "dense_ffn",
    "experts": "routed_experts",
    "router": "router",
    "norm": "norms",
}
"""The group of parameters that each part's are counted in."""


@dataclass(frozen=True, kw_only=True)
class OwnCounts:
    """One layer's part, measured."""

    params: int = 0
    vectors: int = 0
    """Those of ``params`` in tensors of one dimension, which multiply no matrix."""
    forward_flops: float = 0.0
    """Matrix products and convolutions of one forward pass, FLOPs a token."""

    @property
    def train_flops(self) -> float:
        """Of those products, a token: the backward pass does each twice more."""
        return 3.0 * self.forward_flops

    @property
    def visited(self) -> int:
        """Parameters a token visits: a multiply-add, 2 FLOPs, is one weight of one token."""
        return self.vectors + min(self.params - self.vectors, round(self.forward_flops / 2))


@dataclass(frozen=True, kw_only=True)
class OwnPart:
    """One kind of part, in every block that has it."""

    kind: PartKind
    name: str
    """``package.module:Class``."""
    source: str
    """Hash of the module's file and of those beside it that it imports."""
    sequence_length: int
    """At which the counts were measured; attention's products grow with it."""
    counts: tuple[OwnCounts, ...]
    """By layer, prediction blocks last; zeros where a layer does not have the part."""


def part_of(own: tuple[OwnPart, ...], kind: PartKind) -> OwnPart | None:
    """The part of that kind, None where the block's own serves."""
    return next((part for part in own if part.kind == kind), None)


def check_own(own: tuple[OwnPart, ...], *, is_mixture: bool, num_blocks: int) -> None:
    """Whether a model of ``num_blocks`` blocks can have these parts.

    Raises:
        ConfigError: naming the part that has no place.
    """
    kinds = [part.kind for part in own]
    for part in own:
        if kinds.count(part.kind) > 1:
            raise ConfigError(f"own: {part.kind} is given twice")
        if part.kind in ("experts", "router") and not is_mixture:
            raise ConfigError(f"own.{part.kind}: a model without experts has no place for it")
        if part.kind == "feed_forward" and is_mixture:
            raise ConfigError(
                "own.feed_forward: it takes the place of the whole mixture; own.experts keeps the "
                "router"
            )
        if len(part.counts) != num_blocks:
            raise ConfigError(
                f"own.{part.kind}: counts of {len(part.counts)} layers, the model has {num_blocks}"
            )


def refuse_own(own: tuple[OwnPart, ...], what: str) -> None:
    """Say that ``what`` knows the built-in parts alone.

    Raises:
        ConfigError: there are parts of the user's own.
    """
    if own:
        named = ", ".join(f"{part.kind} ({part.name})" for part in own)
        raise ConfigError(f"{what} knows the built-in parts only; this model has its own {named}")
