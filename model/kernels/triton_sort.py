"""On a GPU: visits sorted by expert and cut into tiles, without the host ever knowing the loads.

A stable counting sort in three launches. Every other kernel of the expert layer reads the tables
built here, so a step never waits for the host and fits in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.triton_launch import launch, quotient_up

# Shapes: T tokens, E experts, K experts per token, P = T·K visits, sorted by expert.

CHUNK = 512
"""Visits whose places one program finds, in steps of ``STEP``."""
STEP = 32


class Visits(NamedTuple):
    """Where each visit lies among all, sorted by expert, and the tiles that they are cut into."""

    slot_P: Tensor
    """int32: the visit's place in [T, K]; within an expert in the order of the tokens."""
    row_TK: Tensor
    """int32 [P]: the inverse, where in the sorted order a token's K visits lie."""
    start_E: Tensor
    """int32 [E + 1]: an expert's first visit, and P."""
    tile_expert: Tensor
    """int32 [most tiles there can be]: whose tokens a tile holds."""
    tile_row: Tensor
    """int32: a tile's first visit."""
    num_tiles: Tensor
    """int32 [1]: tiles in use; the tables say nothing beyond."""
    workspace: Tensor
    """All of these."""
    top_k: int
    tile_rows: int
    """Most visits of a tile."""

    @classmethod
    def of(
        cls, workspace: Tensor, shape_TK: tuple[int, ...], num_experts: int, tile_rows: int
    ) -> Visits:
        """The tables that lie in ``workspace``, as :func:`sort_visits` makes it."""
        tables = workspace.split(_sizes(shape_TK, num_experts, tile_rows))
        return cls(*tables[:6], workspace, shape_TK[1], tile_rows)  # type: ignore[call-arg]

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What a kernel needs to find its tile: starts, experts and rows of tiles, their number."""
        return self.start_E, self.tile_expert, self.tile_row, self.num_tiles

    @property
    def most_tiles(self) -> int:
        """As many tiles as any routing could need."""
        return self.tile_expert.shape[0]


def sort_visits(expert_TK: Tensor, num_experts: int, tile_rows: int) -> Visits:
    """Sort and tile the visits of ``expert_TK`` (int64, a token's K distinct, each below E)."""
    shape_TK, visits = expert_TK.shape, expert_TK.numel()
    sizes = _sizes(shape_TK, num_experts, tile_rows)
    workspace = torch.empty(sum(sizes), dtype=torch.int32, device=expert_TK.device)
    found = Visits.of(workspace, shape_TK, num_experts, tile_rows)
    before_CE, steps = _count_chunks(expert_TK, num_experts)
    chunks, lanes = before_CE.shape
    numbers = (chunks, num_experts, tile_rows)
    launch(_cut, (1,), before_CE, *found.tables, *numbers, LANES=lanes, ROWS=16, warps=8)
    found_at = (found.start_E, found.slot_P, found.row_TK, visits, num_experts)
    launch(_place, (chunks,), expert_TK, before_CE, *found_at, **steps)
    return found


def count_visits(expert_TK: Tensor, num_experts: int) -> Tensor:
    """Choices of each expert, int64 [E]; unlike ``bincount`` without waiting for the device."""
    count_CE, _ = _count_chunks(expert_TK, num_experts)
    return count_CE[:, :num_experts].sum(0)


def _count_chunks(expert_TK: Tensor, num_experts: int) -> tuple[Tensor, dict[str, int]]:
    """Choices of each expert by chunk, int32 [chunks, lanes], and how a chunk is gone through."""
    visits = expert_TK.numel()
    chunks, lanes = quotient_up(visits, CHUNK), 1 << (num_experts - 1).bit_length()
    count_CE = torch.empty(chunks, lanes, dtype=torch.int32, device=expert_TK.device)
    steps = {"LANES": lanes, "CHUNK": CHUNK, "STEP": STEP}
    launch(_count, (chunks,), expert_TK, count_CE, visits, **steps)
    return count_CE, steps


def _sizes(shape_TK: tuple[int, ...], num_experts: int, tile_rows: int) -> list[int]:
    """Numbers of each table, as many as keep the next one's beginning aligned."""
    visits = shape_TK[0] * shape_TK[1]
    # An expert's last tile may hold a single visit; no routing needs more tiles than these.
    tiles = min(visits, visits // tile_rows + num_experts)
    return [visits, visits, num_experts + 1, tiles, tiles, 1]


@triton.jit
def _count(
    expert_TK, count_CE, visits, LANES: tl.constexpr, CHUNK: tl.constexpr, STEP: tl.constexpr
):
    """How many visits of a chunk go to each expert."""
    chunk = tl.program_id(0)
    lane = tl.arange(0, LANES)
    count = tl.zeros([LANES], tl.int32)
    for first in range(0, CHUNK, STEP):
        visit = chunk * CHUNK + first + tl.arange(0, STEP)
        expert = tl.load(expert_TK + visit, mask=visit < visits, other=-1).to(tl.int32)
        count += tl.sum((expert[:, None] == lane[None, :]).to(tl.int32), 0)
    tl.store(count_CE + chunk * LANES + lane, count)


@triton.jit
def _cut(
    count_CE,
    start_E,
    tile_expert,
    tile_row,
    num_tiles,
    chunks,
    num_experts,
    tile_rows,
    LANES: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Counts become what came before in earlier chunks; starts and tiles of every expert."""
    lane = tl.arange(0, LANES)
    row = tl.arange(0, ROWS)
    load = tl.zeros([LANES], tl.int32)
    for first in range(0, chunks, ROWS):
        at = (first + row)[:, None] * LANES + lane[None, :]
        inside = (first + row < chunks)[:, None]
        count = tl.load(count_CE + at, mask=inside, other=0)
        tl.store(count_CE + at, load[None, :] + tl.cumsum(count, 0) - count, mask=inside)
        load += tl.sum(count, 0)
    start = tl.cumsum(load, 0) - load
    real = lane < num_experts
    tl.store(start_E + lane, start, mask=real)
    tl.store(start_E + num_experts, tl.sum(load, 0))
    tiles = (load + tile_rows - 1) // tile_rows
    tile = tl.cumsum(tiles, 0) - tiles
    tl.store(num_tiles, tl.sum(tiles, 0))
    for nth in range(tl.max(tiles, 0)):
        there = nth < tiles
        tl.store(tile_expert + tile + nth, lane, mask=there)
        tl.store(tile_row + tile + nth, start + nth * tile_rows, mask=there)


@triton.jit
def _place(
    expert_TK,
    before_CE,
    start_E,
    slot_P,
    row_TK,
    visits,
    num_experts,
    LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    STEP: tl.constexpr,
):
    """Each visit goes behind those of its expert that stand before it."""
    chunk = tl.program_id(0)
    lane = tl.arange(0, LANES)
    free = tl.load(before_CE + chunk * LANES + lane)
    free += tl.load(start_E + lane, mask=lane < num_experts, other=0)
    for first in range(0, CHUNK, STEP):
        visit = chunk * CHUNK + first + tl.arange(0, STEP)
        inside = visit < visits
        expert = tl.load(expert_TK + visit, mask=inside, other=-1).to(tl.int32)
        chosen = (expert[:, None] == lane[None, :]).to(tl.int32)
        earlier = tl.cumsum(chosen, 0) - chosen
        row = tl.sum(chosen * (free[None, :] + earlier), 1)
        tl.store(slot_P + row, visit, mask=inside)
        tl.store(row_TK + visit, row, mask=inside)
        free += tl.sum(chosen, 0)
