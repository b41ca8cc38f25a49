"""Parts of the block that a recipe takes from the user's own Python, by name.

``recipe.modules.experts=my_package.my_module:MyExperts``. The class is built for every block that
has the part as ``MyExperts(config, layer)``; what each part is given and answers is in
docs/howto/own_variant.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from model.config import ModelConfig
from model.errors import ConfigError
from model.own.parts import GROUPS, PartKind
from model.own.source import Source, find_source, keep_source, load_class

WHERE = "recipe.modules"
Sources = tuple[tuple[PartKind, Source], ...]


@dataclass(frozen=True, kw_only=True)
class OwnModules:
    """``package.module:Class`` in place of a built-in part; null: the built-in one."""

    attention: str | None = None
    """Mixes positions; its own QK-norm and rotation, if any."""
    feed_forward: str | None = None
    """In place of the whole mixture, router and shared expert included."""
    experts: str | None = None
    """The routed experts."""
    router: str | None = None
    """Chooses and weighs experts; a subclass of model.router.Router."""
    norm: str | None = None
    """The two norms on a block's way in; QK-norm and the last norm stay."""


BUILT_IN = OwnModules()


def own_sources(modules: OwnModules, data_dir: Path) -> Sources:
    """The sources of the named parts, kept under ``data_dir`` and loaded.

    Raises:
        ConfigError: a name leads nowhere, or can't be imported.
    """
    found: list[tuple[PartKind, Source]] = []
    for kind in GROUPS:
        name = getattr(modules, kind)
        if name is not None:
            where = f"{WHERE}.{kind}"
            source = find_source(name, where)
            keep_source(source, data_dir)
            load_class(name, source.hash, data_dir, where)
            found.append((kind, source))
    return tuple(found)


def with_own_parts(model: ModelConfig, own: Sources, sequence_length: int) -> ModelConfig:
    """``model`` with these parts and their measured counts."""
    if not own:
        return model
    from model.own.measure import with_own  # here: planning needs torch for these parts alone

    with _as_the_recipe_says():
        return with_own(model, own, sequence_length)


def check_parts(model: ModelConfig) -> None:
    """Refuse parts that do not behave like those of a language model (:mod:`model.own.measure`)."""
    if model.own:
        from model.own.measure import check_own_parts

        with _as_the_recipe_says():
            check_own_parts(model)


@contextmanager
def _as_the_recipe_says() -> Iterator[None]:
    """Messages name the options of a recipe where the model names its parts."""
    try:
        yield
    except ConfigError as error:
        text = str(error)
        for kind in GROUPS:
            text = text.replace(f"own.{kind}:", f"recipe.modules.{kind}:")
        raise ConfigError(text if text.startswith(WHERE) else f"{WHERE}: {text}") from None
