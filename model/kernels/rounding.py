"""Whether compiled operations round the factors of their products to bfloat16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_is_on = False


@contextmanager
def to_bfloat16() -> Iterator[None]:
    """Within, the compiled operations compute as under autocast.

    Factors of products with weights are rounded to bfloat16 as they are used and each product is
    accumulated in float32; everything between products stays float32, so nothing is cast in memory.
    The router's products stay float32, as under autocast.
    """
    global _is_on
    before, _is_on = _is_on, True
    try:
        yield
    finally:
        _is_on = before


def is_on() -> bool:
    """Whether the caller is within :func:`to_bfloat16`."""
    return _is_on
