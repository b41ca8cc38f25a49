"""Layers over pipeline stages: even in time instead of in number, and what that gains.

Rank r holds stages r, r + P, r + 2P, ... Its order of forward and backward passes is fixed, by
interleaved 1F1B (arXiv:2104.04473) or with the weights' gradients put off to where it would wait
(zero-bubble, arXiv:2401.10241); when each can begin follows from the others, so the time of a step,
the bubble and the activations held are had by playing it through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.training.distributed.config import ParallelConfig
from windtunnel.machine.costs import BlockCosts

LONGEST = 12
"""Rounds of the pipeline that are played through; each further one takes as long as the last."""
LOOKED_AT = 32
"""Moves of a block that are looked at in full, of those with the best score."""

Kind = Literal["forward", "backward", "inputs", "weights"]
"""Of a pass: a zero-bubble pipeline's backward passes are two, for a stage's inputs and weights."""
Pass = tuple[Kind, int, int]
"""Kind, stage, micro-batch."""

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Flow:
    """One step through the pipeline, without reading data, reducing gradients and updating."""

    seconds: float
    bubble: float
    """Share of all ranks' time in which they wait."""
    imbalance: float
    """Work of the busiest rank over the mean, minus 1: what no schedule can hide."""
    held: tuple[tuple[int, ...], ...]
    """By rank and its stages in order, the micro-batches whose activations wait for their (last)
    backward pass when the rank has most of them."""


def stage_seconds(costs: BlockCosts, counts: Sequence[int]) -> tuple[float, ...]:
    """Forward seconds of stages with so many blocks each."""
    before = (0.0, *accumulate(costs.layers))
    ends = tuple(accumulate(counts))
    seconds = [before[end] - before[end - count] for end, count in zip(ends, counts, strict=True)]
    seconds[-1] += costs.mtp + costs.output
    return tuple(seconds)


def uniform(num_layers: int, num_stages: int) -> tuple[int, ...]:
    """As many blocks on every stage as can be, whatever they cost."""
    ends = [stage * num_layers // num_stages for stage in range(num_stages + 1)]
    return tuple(end - start for start, end in pairwise(ends))


def balanced(costs: BlockCosts, parallel: ParallelConfig) -> tuple[int, ...]:
    """Blocks on each stage so that the ranks' work is as even as moving single blocks makes it.

    From the uniform split, the one move of a block between two stages that lowers the squared work
    of ranks and of stages most, until none does. Of ranks alone is not enough: at any time all work
    on stages of one round of the pipeline, and wait for the slowest. No rank gets more blocks than
    the uniform split's fullest one, for its memory.

    All moves are scored at once by the two stages they change most. Those between them change too
    where dense blocks border on mixtures, so the best few are looked at again in full.
    """
    counts = np.array(uniform(len(costs.layers), parallel.num_stages))
    rank_of = np.arange(len(counts)) % parallel.pipeline
    most = np.bincount(rank_of, counts).max()

    def unevenness(split: IntArray) -> float:
        seconds = np.array(stage_seconds(costs, split.tolist()))
        return float((np.bincount(rank_of, seconds) ** 2).sum() + (seconds**2).sum())

    best = unevenness(counts)
    while True:
        better: IntArray | None = None
        for source, to in _likely_moves(costs, counts, rank_of, most):
            moved = counts.copy()
            moved[source] -= 1
            moved[to] += 1
            value = unevenness(moved)
            if value < best * (1 - 1e-9):
                best, better = value, moved
        if better is None:
            return tuple(counts.tolist())
        counts = better


def _likely_moves(
    costs: BlockCosts, counts: IntArray, rank_of: IntArray, most: int
) -> list[tuple[int, int]]:
    """The moves (source, to) that lower the squares most, the stages between left out.

    Legend: S stages, P ranks, L layers.
    """
    stages = np.arange(len(counts))
    seconds_S = np.array(stage_seconds(costs, counts.tolist()))
    work_S = np.bincount(rank_of, seconds_S)[rank_of].astype(np.float64)
    blocks_S = np.bincount(rank_of, counts)[rank_of]
    # A later stage takes the source's last block, an earlier one its first; an earlier neighbour
    # hands `to` the block before its first, a later one the block after its last.
    ends_S = np.cumsum(counts)
    layers_L = np.array((*costs.layers, 0.0, 0.0))  # past either end: never moved
    is_later_SS = stages[:, None] < stages
    before_S, after_S = layers_L[ends_S - 1], layers_L[ends_S]
    first_S, previous_S = layers_L[ends_S - counts], layers_L[ends_S - counts - 1]
    lost_SS = np.where(is_later_SS, before_S[:, None], first_S[:, None])
    gained_SS = np.where(is_later_SS, previous_S, after_S)
    same_rank_SS = rank_of[:, None] == rank_of
    change_SS = _square_change(seconds_S[:, None], -lost_SS) + _square_change(seconds_S, gained_SS)
    apart_SS = _square_change(work_S[:, None], -lost_SS) + _square_change(work_S, gained_SS)
    within_SS = _square_change(work_S[:, None], gained_SS - lost_SS)
    change_SS += np.where(same_rank_SS, within_SS, apart_SS)
    is_allowed_SS = (counts > 0)[:, None] & (same_rank_SS | (blocks_S < most))
    is_allowed_SS &= stages[:, None] != stages
    change_SS[~is_allowed_SS] = np.inf
    flat = np.argsort(change_SS, axis=None, kind="stable")[:LOOKED_AT]
    pairs = (divmod(int(index), len(counts)) for index in flat)
    return [pair for pair in pairs if np.isfinite(change_SS[pair])]


def _square_change(value: FloatArray, change: FloatArray) -> FloatArray:
    """(value + change)^2 - value^2."""
    return change * (2 * value + change)


def play(
    forward: Sequence[float],
    parallel: ParallelConfig,
    num_micro: int,
    backward_ratio: float,
    split: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Flow:
    """Play a step through.

    Args:
        forward: seconds of each stage's forward pass of one micro-batch.
        parallel: the pipeline's sizes.
        num_micro: micro-batches of a step.
        backward_ratio: seconds of a backward pass over those of the forward pass.
        split: of zero-bubble's two backward passes, each stage's seconds for its inputs' and for
            its weights' gradients; None: half a backward pass each.
    """
    ranks, stages = parallel.pipeline, parallel.num_stages
    if ranks == 1:
        seconds = sum(forward) * (1 + backward_ratio) * num_micro
        return Flow(
            seconds=seconds,
            bubble=0.0,
            imbalance=0.0,
            held=most_held(parallel, num_micro),
        )
    if num_micro > LONGEST * ranks:
        short, longer = (
            play(forward, parallel, rounds * ranks, backward_ratio, split)
            for rounds in (LONGEST // 2, LONGEST)
        )
        each = (longer.seconds - short.seconds) / (LONGEST // 2 * ranks)
        seconds = longer.seconds + (num_micro - LONGEST * ranks) * each
        busy = (1 - longer.bubble) * longer.seconds * num_micro / (LONGEST * ranks)
        return replace(longer, seconds=seconds, bubble=1 - busy / seconds)
    orders = [_order(rank, parallel, num_micro) for rank in range(ranks)]
    backward = [backward_ratio * stage for stage in forward]
    half = [stage / 2 for stage in backward]
    lengths: dict[Kind, Sequence[float]] = {"forward": forward, "backward": backward}
    lengths["inputs"], lengths["weights"] = split or (half, half)
    back: Kind = "inputs" if parallel.schedule == "zero_bubble" else "backward"
    done: dict[Pass, float] = {}
    clock, place = [0.0] * ranks, [0] * ranks
    waiting = True
    while waiting:
        waiting = False
        for rank, order in enumerate(orders):
            while place[rank] < len(order):
                kind, stage, micro = order[place[rank]]
                needs: Pass | None = None
                if kind == "forward":
                    needs = ("forward", stage - 1, micro) if stage else None
                elif kind == back:
                    is_last = stage + 1 == stages
                    needs = ("forward", stage, micro) if is_last else (back, stage + 1, micro)
                if needs is not None:
                    if needs not in done:
                        break
                    clock[rank] = max(clock[rank], done[needs])
                clock[rank] += lengths[kind][stage]
                done[kind, stage, micro] = clock[rank]
                place[rank] += 1
                waiting = True
    assert all(at == len(order) for at, order in zip(place, orders, strict=True)), "a deadlock"
    work = [sum(lengths[kind][stage] for kind, stage, _ in order) for order in orders]
    seconds = max(clock)
    return Flow(
        seconds=seconds,
        bubble=1 - sum(work) / (ranks * seconds),
        imbalance=max(work) * ranks / sum(work) - 1,
        held=most_held(parallel, num_micro),
    )


def most_held(parallel: ParallelConfig, num_micro: int) -> tuple[tuple[int, ...], ...]:
    """`Flow.held`: the order of the passes decides it, so nothing has to be played."""
    ranks = parallel.pipeline
    if ranks == 1:
        return ((1,),)
    orders = (_order(rank, parallel, min(num_micro, LONGEST * ranks)) for rank in range(ranks))
    return tuple(_most_held(order, rank, parallel) for rank, order in enumerate(orders))


def _order(rank: int, parallel: ParallelConfig, num_micro: int) -> list[Pass]:
    """The passes of one rank, in order, as PyTorch's schedules have them."""
    ranks, virtual = parallel.pipeline, parallel.virtual
    in_round = num_micro // max(1, num_micro // ranks)
    total = num_micro * virtual
    is_split = parallel.schedule == "zero_bubble"

    def at(index: int, kind: Kind) -> Pass:
        chunk = index // in_round % virtual
        chunk = chunk if kind == "forward" else virtual - 1 - chunk
        micro = index // (in_round * virtual) * in_round + index % in_round
        return kind, chunk * ranks + rank, micro

    ahead = ranks - 1 - rank
    warm_up = (virtual - 1) * in_round + (1 if virtual == 1 or is_split else 2) * ahead
    warm_up = min(warm_up, total)
    order = [at(index, "forward") for index in range(warm_up)]
    for index in range(total):
        if warm_up + index < total:
            order.append(at(warm_up + index, "forward"))
        order.append(at(index, "inputs" if is_split else "backward"))
        if is_split and index >= rank:
            order.append(at(index - rank, "weights"))
    if is_split:
        order += [at(index, "weights") for index in range(max(0, total - rank), total)]
    return order


def _most_held(order: Sequence[Pass], rank: int, parallel: ParallelConfig) -> tuple[int, ...]:
    held = dict.fromkeys(range(rank, parallel.num_stages, parallel.pipeline), 0)
    most, found = 0, tuple(held.values())
    change = {"forward": 1, "backward": -1, "inputs": 0, "weights": -1}
    for kind, stage, _ in order:
        held[stage] += change[kind]
        if sum(held.values()) > most:
            most, found = sum(held.values()), tuple(held.values())
    return found
