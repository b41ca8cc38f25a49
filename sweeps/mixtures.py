"""Shares of the training text as an axis of a sweep: the rest of it stays in proportion.

``data.weights.math: [0.16, 0.32]`` tries two shares of the domain ``math`` over the whole run,
``data.stages.second.weights.math: [...]`` in one stage. What runs are measured by, the weights of
the corpus without the axis, is the same in all of them, and so are the tokens: only the order and
the proportion in which they are read differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.errors import ConfigError
from model.training.corpora import CorpusConfig
from model.training.sources import DataStage
from model.typed import build

WHOLE_RUN = "run"
"""The stage that a run without stages becomes when its mixture is varied."""


def is_share(path: str) -> bool:
    """Whether an axis is of the text; which of them can be varied :func:`with_shares` says."""
    return path == "data" or path.startswith("data.")


def without_shares(variant: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant sets besides shares: values of the sweep's own config."""
    return {path: value for path, value in variant.items() if not is_share(path)}


def with_shares(
    corpus: CorpusConfig, measured_by: Mapping[str, float], variant: Mapping[str, Any]
) -> CorpusConfig:
    """``corpus`` trained on in the shares that ``variant`` sets, still measured by ``measured_by``.

    Args:
        corpus: of the sweep, without its axes.
        measured_by: its weights as prepared, naming every domain.
        variant: dotted path to value; those that are not of the text are left aside. A value is
            one domain's share (of those not named each keeps its proportion to the others), or all.

    Raises:
        ConfigError: a path that is no share, a domain or a stage there is not, shares beyond 1.
    """
    given: dict[str, dict[str, float]] = {}
    for path, value in variant.items():
        if is_share(path):
            stage, shares = _read(path, value, corpus)
            given.setdefault(stage, {}).update(shares)
    if not given:
        return corpus
    if not corpus.stages:
        mixed = _mixed("data.weights", measured_by, given[WHOLE_RUN])
        stages: tuple[DataStage, ...] = (DataStage(name=WHOLE_RUN, frac=1.0, weights=mixed),)
    else:
        stages = tuple(
            replace(stage, weights=_mixed(f"data.stages.{stage.name}.weights", stage.weights, new))
            if (new := given.get(stage.name))
            else stage
            for stage in corpus.stages
        )
    return replace(corpus, weights=dict(measured_by), stages=stages)


@dataclass(frozen=True, kw_only=True)
class _Shares:
    weights: dict[str, float]


def _read(path: str, value: Any, corpus: CorpusConfig) -> tuple[str, dict[str, float]]:
    """The stage that a path is about, and the shares its value gives."""
    names = [stage.name for stage in corpus.stages]
    stage, rest = WHOLE_RUN, path.split(".")[1:]
    if rest[:1] == ["stages"] and len(rest) > 1:
        stage, rest = rest[1], rest[2:]
        if stage not in names:
            raise ConfigError(
                f"{path}: the data has no stage {stage!r}; it has: {', '.join(names) or 'none'}"
            )
    elif names and rest[:1] == ["weights"]:
        raise ConfigError(
            f"{path}: the data has stages, each with shares of its own; name one: "
            + " or ".join(".".join(["data.stages", name, *rest]) for name in names)
        )
    if rest[:1] != ["weights"]:
        raise ConfigError(
            f"{path}: of the text a sweep varies the shares alone (data.weights.DOMAIN, "
            "data.stages.STAGE.weights.DOMAIN); plan a sweep for each other value"
        )
    domain = ".".join(rest[1:])
    where = path.removesuffix(f".{domain}").removesuffix(".weights")
    plain = {"weights": {domain: value} if domain else value}
    return stage, build(_Shares, plain, where=where).weights


def _mixed(where: str, before: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """All shares: those given, and the others in proportion in what is left."""
    for domain, share in given.items():
        if domain not in before:
            raise ConfigError(f"{where}.{domain}: no such domain; there are: {', '.join(before)}")
        if not 0 <= share <= 1:
            raise ConfigError(f"{where}.{domain}: a share lies between 0 and 1, got {share:g}")
    left = 1 - math.fsum(given.values())
    others = math.fsum(share for name, share in before.items() if name not in given)
    if left < -1e-6 or (left > 1e-6 and others == 0):
        listed = ", ".join(f"{name} {share:g}" for name, share in given.items())
        raise ConfigError(
            f"{where}: {listed} sum to {1 - left:g} and nothing else can make it 1; the shares of "
            "a mixture sum to 1"
        )
    scale = max(left, 0.0) / others if others else 0.0
    return {name: given.get(name, share * scale) for name, share in before.items()}
