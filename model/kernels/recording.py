"""Calls into compiled kernels, recorded as they are made so that they can be replayed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A compiled function and what it was called with."""

    function: Callable[..., Any]
    plain: list[Any]
    """Numbers and addresses."""
    kept: tuple[Any, ...]
    """The tensors behind the addresses, alive as long as this is."""

    def ready(self) -> Call:
        """The same with its arguments converted to C values, which takes a third off each call."""
        types = self.function.argtypes  # type: ignore[attr-defined]
        values = [of(value) for of, value in zip(types, self.plain, strict=True)]
        return self._replace(plain=values)

    def again(self) -> Any:
        """The same call on the same memory."""
        return self.function(*self.plain)


_taken_down: list[Call] | None = None


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """All calls made within, in their order."""
    global _taken_down
    before, _taken_down = _taken_down, []
    try:
        yield _taken_down
    finally:
        _taken_down = before


def call(function: Callable[..., Any], plain: list[Any], kept: tuple[Any, ...]) -> Any:
    """``function(*plain)``, written down where somebody wants it."""
    if _taken_down is not None:
        _taken_down.append(Call(function, plain, kept))
    return function(*plain)
