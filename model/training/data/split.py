"""Which documents are never trained on: decided by the hash of their content.

A document keeps its side when others are added or removed, on every machine and in every run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.errors import ConfigError


def count_heldout(high: NDArray[np.uint64], heldout_frac: float, domain: str) -> int:
    """How many documents of a domain are held out: those whose hash falls below the share.

    In a domain so small that no hash does (or every one), the lowest is held out and the others
    are trained on, so that every domain with two documents has both sides.

    Args:
        high: first 8 bytes of the documents' digests, as numbers in rising order.
        heldout_frac: share of the documents.
        domain: for the message.

    Raises:
        ConfigError: when a domain has a single document and cannot have both.
    """
    if len(high) < 2:
        raise ConfigError(
            f"data: domain {domain!r} has a single document, so none can be held out; "
            "add text to it, lower its document_bytes, or join domains"
        )
    # Of a hash's 64 bits 52 make a fraction exactly.
    position = (high >> np.uint64(12)).astype(np.float64) / 2.0**52
    return min(max(int((position < heldout_frac).sum()), 1), len(high) - 1)
