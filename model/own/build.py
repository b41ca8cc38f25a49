"""A user's own part, built for one block."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from torch import nn

from model.config import ModelConfig
from model.errors import ConfigError
from model.own.parts import OwnPart, PartKind, part_of
from model.own.source import class_of
from model.router import Router


def own_or(
    config: ModelConfig, kind: PartKind, layer: int, built_in: Callable[[], nn.Module]
) -> nn.Module:
    """The user's part of block ``layer``, built as ``Class(config, layer)``; else the built-in one.

    A router without an ``__init__`` of its own is built as the built-in one is.

    Raises:
        ConfigError: it can't be built so, or is not what that part must be.
    """
    part = part_of(config.own, kind)
    if part is None:
        return built_in()
    own_class = class_of(part)
    needed = Router if kind == "router" else nn.Module
    if not issubclass(own_class, needed):
        raise ConfigError(
            f"own.{kind}: {part.name} must be a {needed.__module__}.{needed.__qualname__}"
        )
    try:
        module = _built(own_class, config, layer)
    except Exception as error:  # whatever the user's code does
        raise own_error(
            part,
            "can't be built as Class(config, layer) (without values, on the meta device)",
            error,
        ) from error
    for name, _ in module.named_buffers():
        if not (kind == "router" and name == "selection_bias"):
            raise ConfigError(
                f"own.{kind}: {part.name} keeps a buffer {name!r}, which no rule gives a value; "
                "make it a parameter, or compute it in forward"
            )
    return module


def _built(own_class: type[nn.Module], config: ModelConfig, layer: int) -> nn.Module:
    if issubclass(own_class, Router) and own_class.__init__ is Router.__init__:
        assert config.moe is not None  # check_own: a model without experts has no place for it
        return own_class(config.moe, config.hidden_size)
    return own_class(config, layer)


def own_error(part: OwnPart, what: str, error: Exception) -> ConfigError:
    """What the user's code did, with the line it did it in."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {frame.filename for frame in frames if part.source in frame.filename}
    lines = [f"{f.filename.rpartition('/')[2]}:{f.lineno}" for f in frames if f.filename in files]
    place = f" ({lines[-1]})" if lines else ""
    said = f"{type(error).__name__}: {error}"
    return ConfigError(f"own.{part.kind}: {part.name} {what}: {said}{place}")
