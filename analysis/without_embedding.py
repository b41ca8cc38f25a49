"""Which column of a table counts parameters without the embedding, where another was taken for N.

The embedding is most of a small model and little of a large one, so a law in the total count bends.
On 34 cuts of ten published tables that have both, the miss of the largest run was 2.6 % without it
and 5.1 % with it (medians; LOG.md, 2026-11-27).
"""

from __future__ import annotations

import re

from analysis.points import Points

NAMED_SO = re.compile(r"no[nt]?[\W_]*emb|w(ithout|/?o)[\W_]*emb", re.IGNORECASE)
"""How such columns are called: non_emb_params, N_no_emb, params_wo_embedding."""


def column_without_embedding(points: Points) -> str | None:
    """Its name, or None where there is none, or it is the size already.

    Args:
        points: of a table; their further columns of numbers are looked at.
    """
    if NAMED_SO.search(points.size_variable):
        return None
    for name, column in points.extra.items():
        smaller = all(0 < ours < size for ours, size in zip(column, points.size, strict=True))
        if NAMED_SO.search(name) and points.size and smaller:
            return name
    return None
