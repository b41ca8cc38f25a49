"""On a GPU: from the scores of all experts to a token's choice and gates, one pass each way.

The plain way (``model.router``) is some forty launches a layer, and its gradient is added up by
index, which PyTorch does without leaving anything to chance only by waiting for the device. Here a
program has a few tokens' scores in registers, group by group, and takes the best experts out one
after the other. The K experts of a token are distinct, so the scores' gradient needs no sum.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from model.kernels.step import Rule
from model.kernels.triton_launch import launch, quotient_up
from model.kernels.triton_tiling import power_of_2

# Shapes: T tokens, E experts, K experts per token, G groups of S experts.

TILE = 2048
"""Scores that a program holds at once, 16 for each thread of four warps."""


def choose(scores_TE: Tensor, bias_E: Tensor | None, rule: Rule) -> tuple[Tensor, Tensor]:
    """(experts [T, K] int64, gates [T, K] float32) by float32 ``scores_TE``.

    ``bias_E`` enters the choice and not the gates. A token's experts are distinct whatever the
    scores are; the best comes first.
    """
    expert_TK, gate_TK = _Choice.apply(scores_TE, bias_E, rule)
    return expert_TK, gate_TK


class _Choice(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scores_TE: Tensor, bias_E: Tensor | None, rule: Rule
    ) -> tuple[Tensor, Tensor]:
        scores_TE = scores_TE.contiguous()
        tokens, num_experts = scores_TE.shape
        k = rule.experts_per_token
        expert_TK = torch.empty(tokens, k, dtype=torch.int64, device=scores_TE.device)
        gate_TK = scores_TE.new_empty(tokens, k)
        group_size = num_experts // rule.num_groups
        lanes = power_of_2(rule.num_groups) * power_of_2(group_size)
        rows = max(1, TILE // lanes)
        launch(
            _choose,
            (quotient_up(tokens, rows),),
            scores_TE,
            scores_TE if bias_E is None else bias_E,
            expert_TK,
            gate_TK,
            tokens,
            K=k,
            G=rule.num_groups,
            S=group_size,
            KEPT=rule.groups_per_token,
            BIASED=bias_E is not None,
            NORMALIZE=rule.normalize_gates,
            SCALE=rule.routed_scale,
            ROWS=rows,
            G_LANES=power_of_2(rule.num_groups),
            S_LANES=power_of_2(group_size),
            K_LANES=power_of_2(k),
        )
        ctx.save_for_backward(scores_TE, expert_TK)
        ctx.rule = rule
        ctx.mark_non_differentiable(expert_TK)
        return expert_TK, gate_TK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        scores_TE, expert_TK = ctx.saved_tensors
        rule: Rule = ctx.rule
        tokens, num_experts = scores_TE.shape
        d_scores_TE = torch.empty_like(scores_TE)
        lanes = power_of_2(num_experts)
        rows = max(1, TILE // lanes)
        launch(
            _choose_backward,
            (quotient_up(tokens, rows),),
            grads[1].contiguous(),
            scores_TE,
            expert_TK,
            d_scores_TE,
            tokens,
            K=rule.experts_per_token,
            E=num_experts,
            NORMALIZE=rule.normalize_gates,
            SCALE=rule.routed_scale,
            ROWS=rows,
            LANES=lanes,
        )
        return d_scores_TE, None, None


LEAST = tl.constexpr(-1.0e38)
"""Stands for what is no number, above the minus infinity of what cannot be chosen."""


@triton.jit
def _choose(
    scores_TE,
    bias_E,
    expert_TK,
    gate_TK,
    tokens,
    K: tl.constexpr,
    G: tl.constexpr,
    S: tl.constexpr,
    KEPT: tl.constexpr,
    BIASED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    G_LANES: tl.constexpr,
    S_LANES: tl.constexpr,
    K_LANES: tl.constexpr,
):
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = token < tokens
    row = scores_TE + token.to(tl.int64) * (G * S)
    group, member = tl.arange(0, G_LANES), tl.arange(0, S_LANES)
    expert = group[:, None] * S + member[None, :]
    real = (group < G)[:, None] & (member < S)[None, :]
    inside = there[:, None, None] & real[None, :, :]
    wish = tl.load(row[:, None, None] + expert[None, :, :], mask=inside, other=0.0)
    if BIASED:
        wish += tl.load(bias_E + expert, mask=real, other=0.0)[None, :, :]
    wish = tl.where(wish > LEAST, wish, LEAST)  # of no number too
    wish = tl.where(real[None, :, :], wish, float("-inf"))
    if KEPT < G:
        best = tl.max(wish, 2)
        is_best = member[None, None, :] == tl.argmax(wish, 2)[:, :, None]
        both = best + tl.max(tl.where(is_best, float("-inf"), wish), 2)
        both = tl.where(both > LEAST, both, LEAST)
        both = tl.where((group < G)[None, :], both, float("-inf"))
        kept = tl.zeros([ROWS, G_LANES], tl.int1)
        for _ in tl.static_range(KEPT):
            chosen = group[None, :] == tl.argmax(both, 1)[:, None]
            kept = kept | chosen
            both = tl.where(chosen, float("-inf"), both)
        wish = tl.where(kept[:, :, None], wish, float("-inf"))
    wish = wish.reshape(ROWS, G_LANES * S_LANES)
    lane = tl.arange(0, G_LANES * S_LANES)
    nth = tl.arange(0, K_LANES)
    number = tl.zeros([ROWS, K_LANES], tl.int32)
    for place in tl.static_range(K):
        at = tl.argmax(wish, 1)
        wish = tl.where(lane[None, :] == at[:, None], float("-inf"), wish)
        chosen = (at // S_LANES) * S + at % S_LANES
        number = tl.where(nth[None, :] == place, chosen[:, None], number)
    inside = there[:, None] & (nth < K)[None, :]
    gate = tl.load(row[:, None] + number, mask=inside, other=0.0)
    if NORMALIZE:
        gate = gate / (tl.sum(gate, 1) + 1e-20)[:, None]
    place = token.to(tl.int64)[:, None] * K + nth[None, :]
    tl.store(expert_TK + place, number.to(tl.int64), mask=inside)
    tl.store(gate_TK + place, gate * SCALE, mask=inside)


@triton.jit
def _choose_backward(
    grad_TK,
    scores_TE,
    expert_TK,
    d_scores_TE,
    tokens,
    K: tl.constexpr,
    E: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    LANES: tl.constexpr,
):
    """With n = s / Σs, dn: ds = (dn - Σ dn·n) / Σs for the chosen, 0 for all others."""
    token = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = token < tokens
    row = token.to(tl.int64) * E
    total = tl.zeros([ROWS], tl.float32)
    along = tl.zeros([ROWS], tl.float32)
    if NORMALIZE:
        for nth in tl.static_range(K):
            number = tl.load(expert_TK + token * K + nth, mask=there, other=0)
            score = tl.load(scores_TE + row + number, mask=there, other=0.0)
            total += score
            along += score * tl.load(grad_TK + token * K + nth, mask=there, other=0.0)
        total += 1e-20
        along = along / total
    lane = tl.arange(0, LANES)
    d_scores = tl.zeros([ROWS, LANES], tl.float32)
    for nth in tl.static_range(K):
        number = tl.load(expert_TK + token * K + nth, mask=there, other=0)
        d_score = tl.load(grad_TK + token * K + nth, mask=there, other=0.0) * SCALE
        if NORMALIZE:
            d_score = (d_score - along * SCALE) / total
        d_scores = tl.where(lane[None, :] == number[:, None], d_score[:, None], d_scores)
    inside = there[:, None] & (lane < E)[None, :]
    tl.store(d_scores_TE + row[:, None] + lane[None, :], d_scores, mask=inside)
