"""In which order the runs of a plan start.

Two wishes pull apart. Slots stay busy to the end when the longest runs start first (Graham's
longest-processing-time rule: at most 4/3 of the best schedule); a mistake is found, and a first
curve drawn, when cheap runs of every size come first. Cheap runs cost little, so both are had:
*scouts*, the cheapest run of each size and variant, go first as far as they fit into SCOUT_FRAC of
the whole estimate, then everything else, longest first. The scouts delay the longest run by at most
that share.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

SCOUT_FRAC = 0.05


def start_order(wall_s: Sequence[float], families: Sequence[Hashable]) -> list[int]:
    """Indices in the order to start them; ``families`` is the size and variant of each run."""
    cheapest_first = sorted(range(len(wall_s)), key=lambda index: wall_s[index])
    scouts: list[int] = []
    seen: set[Hashable] = set()
    left_s = SCOUT_FRAC * sum(wall_s)
    for index in cheapest_first:
        if families[index] in seen or wall_s[index] > left_s:
            continue
        seen.add(families[index])
        scouts.append(index)
        left_s -= wall_s[index]
    rest = set(range(len(wall_s))) - set(scouts)
    return scouts + sorted(rest, key=lambda index: (-wall_s[index], index))


def makespan_s(wall_s: Sequence[float], slots: int) -> float:
    """Seconds until the last run ends when each starts, in order, on the slot that frees first."""
    free_at = [0.0] * slots
    for seconds in wall_s:
        slot = min(range(slots), key=free_at.__getitem__)
        free_at[slot] += seconds
    return max(free_at)
