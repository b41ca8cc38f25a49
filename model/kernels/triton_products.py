"""On a GPU: the grouped products of the expert layer, tile by tile of one expert's visits.

    gate_up      H = x[token] . W_gate_upᵀ,  A = silu(H_gate) * H_up      rows gathered
    project      Y = A . W_down  and  dX = dH . W_gate_up                 rows as they lie
    down_grad    dA = dy[token] . W_downᵀ; dH, gate * A and <A, dA>       rows gathered
    weight_grad  dW = leftᵀ . right[token], summed over an expert's own   rows gathered

Factors are as the caller has them (bfloat16, float16 or float32), sums are float32. A tile's
expert and first visit come from tables on the device (``triton_sort``): a fixed number of programs
takes one tile after the other until the tables end, so no launch depends on the loads. An
expert's last tile is half as tall where that holds its visits. Each number is summed by
one program in one order, hence the same bits on every repeat.

SCALED factors are FP8: each 128 numbers of a row along the dimension summed over have a scale, and
so has each block of 128 x 128 of an expert's matrix; a step of 128 is scaled as it is added.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Shapes: T tokens, D model width, E experts, K experts per token, W expert width, P = T·K visits.
# A tile is ROWS visits by COLS columns, summed over DEPTH at a time.


@triton.jit
def _tile(tile_expert, tile_row, start_E, number):
    """(expert, first visit, first visit of the next expert) of a tile."""
    expert = tl.load(tile_expert + number)
    return expert.to(tl.int64), tl.load(tile_row + number), tl.load(start_E + expert + 1)


@triton.jit
def gate_up(
    x_TD,
    x_scale,
    w_E2WD,
    w_scale,
    h_P2W,
    a_PW,
    slot_P,
    start_E,
    tile_expert,
    tile_row,
    num_tiles,
    T,
    K,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Both projections of a tile's tokens and their SwiGLU; with KEEP also what went into it."""
    strips: tl.constexpr = (W + COLS - 1) // COLS
    tensors = (x_TD, x_scale, w_E2WD, w_scale, h_P2W, a_PW, slot_P, T, K)
    for number in range(tl.program_id(0), tl.load(num_tiles) * strips, tl.num_programs(0)):
        expert, first, end = _tile(tile_expert, tile_row, start_E, number // strips)
        tile = (expert, first, end, number % strips)
        if ROWS > 64 and end - first <= ROWS // 2:
            _gate_up_tile(*tensors, *tile, D, W, ROWS // 2, COLS, DEPTH, KEEP, SCALED, PRECISION)
        else:
            _gate_up_tile(*tensors, *tile, D, W, ROWS, COLS, DEPTH, KEEP, SCALED, PRECISION)


@triton.jit
def _gate_up_tile(
    x_TD,
    x_scale,
    w_E2WD,
    w_scale,
    h_P2W,
    a_PW,
    slot_P,
    T,
    K,
    expert,
    begin,
    end,
    strip,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    KEEP: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    visit = begin + tl.arange(0, ROWS)
    own = visit < end
    token = tl.load(slot_P + visit, mask=own, other=0) // K
    col = strip * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)
    x = x_TD + token.to(tl.int64)[:, None] * D + depth[None, :]
    w = w_E2WD + expert * (2 * W * D) + tl.minimum(col, W - 1)[None, :] * D + depth[:, None]
    col_block = strip * COLS // 128
    gate = tl.zeros([ROWS, COLS], tl.float32)
    up = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, D, DEPTH):
        if D % DEPTH == 0:
            x_tile = tl.load(x)
            gate_tile = tl.load(w)
            up_tile = tl.load(w + W * D)
        else:
            left = D - first
            x_tile = tl.load(x, mask=(depth < left)[None, :], other=0.0)
            gate_tile = tl.load(w, mask=(depth < left)[:, None], other=0.0)
            up_tile = tl.load(w + W * D, mask=(depth < left)[:, None], other=0.0)
        if SCALED:
            block = first // 128
            rows_scale = tl.load(x_scale + block * T + token)[:, None]
            at = w_scale + (expert * (2 * W // 128) + col_block) * (D // 128) + block
            up_scale = tl.load(at + (W // 128) * (D // 128))
            gate += tl.dot(x_tile, gate_tile) * (rows_scale * tl.load(at))
            up += tl.dot(x_tile, up_tile) * (rows_scale * up_scale)
        else:
            gate = tl.dot(x_tile, gate_tile, gate, input_precision=PRECISION)
            up = tl.dot(x_tile, up_tile, up, input_precision=PRECISION)
        x += DEPTH
        w += DEPTH
    inside = own[:, None] & (col < W)[None, :]
    row = visit.to(tl.int64)[:, None]
    if KEEP:
        h = h_P2W + row * (2 * W) + col[None, :]
        tl.store(h, gate.to(h_P2W.dtype.element_ty), mask=inside)
        tl.store(h + W, up.to(h_P2W.dtype.element_ty), mask=inside)
    a = gate * tl.sigmoid(gate) * up
    tl.store(a_PW + row * W + col[None, :], a.to(a_PW.dtype.element_ty), mask=inside)


@triton.jit
def project(
    left_PM,
    left_scale,
    w_EMN,
    w_scale,
    out_PN,
    start_E,
    tile_expert,
    tile_row,
    num_tiles,
    P,
    M: tl.constexpr,
    N: tl.constexpr,
    W_E: tl.constexpr,
    W_M: tl.constexpr,
    W_N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = left . w of the visit's expert; a step along E, M or N of w is W_E, W_M or W_N."""
    strips: tl.constexpr = (N + COLS - 1) // COLS
    tensors = (left_PM, left_scale, w_EMN, w_scale, out_PN, P)
    for number in range(tl.program_id(0), tl.load(num_tiles) * strips, tl.num_programs(0)):
        expert, first, end = _tile(tile_expert, tile_row, start_E, number // strips)
        tile = (expert, first, end, number % strips)
        if ROWS > 64 and end - first <= ROWS // 2:
            _project_tile(
                *tensors, *tile, M, N, W_E, W_M, W_N, ROWS // 2, COLS, DEPTH, SCALED, PRECISION
            )
        else:
            _project_tile(
                *tensors, *tile, M, N, W_E, W_M, W_N, ROWS, COLS, DEPTH, SCALED, PRECISION
            )


@triton.jit
def _project_tile(
    left_PM,
    left_scale,
    w_EMN,
    w_scale,
    out_PN,
    P,
    expert,
    begin,
    end,
    strip,
    M: tl.constexpr,
    N: tl.constexpr,
    W_E: tl.constexpr,
    W_M: tl.constexpr,
    W_N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    visit = begin + tl.arange(0, ROWS)
    own = visit < end
    col = strip * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)
    row = tl.where(own, visit, 0).to(tl.int64)
    left = left_PM + row[:, None] * M + depth[None, :]
    w = w_EMN + expert * W_E + depth[:, None] * W_M + col[None, :] * W_N
    total = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, M, DEPTH):
        if M % DEPTH == 0 and N % COLS == 0:
            left_tile = tl.load(left)
            w_tile = tl.load(w)
        else:
            there = depth < M - first
            left_tile = tl.load(left, mask=there[None, :], other=0.0)
            w_tile = tl.load(w, mask=there[:, None] & (col < N)[None, :], other=0.0)
        if SCALED:
            block = first // 128
            rows_scale = tl.load(left_scale + block * P + row)[:, None]
            at = (expert * (M // 128) + block) * (N // 128) + strip * COLS // 128
            total += tl.dot(left_tile, w_tile) * (rows_scale * tl.load(w_scale + at))
        else:
            total = tl.dot(left_tile, w_tile, total, input_precision=PRECISION)
        left += DEPTH
        w += DEPTH * W_M
    inside = own[:, None] & (col < N)[None, :]
    out = out_PN + visit.to(tl.int64)[:, None] * N + col[None, :]
    tl.store(out, total.to(out_PN.dtype.element_ty), mask=inside)


@triton.jit
def down_grad(
    dy_TD,
    dy_scale,
    w_EWD,
    w_scale,
    h_P2W,
    gate_TK,
    dh_P2W,
    weighted_PW,
    dgate_PS,
    slot_P,
    start_E,
    tile_expert,
    tile_row,
    num_tiles,
    T,
    K,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Back through the down projection and SwiGLU.

    With y = gate * (A . W_down), d gate = <A . W_down, dy> = <A, dy . W_downᵀ> (SonicMoE,
    arXiv:2512.14080), so the answers were not kept. ``weighted`` is gate * A, the left factor of
    dW_down; ``dgate`` has one number for each strip of columns, to be summed.
    """
    strips: tl.constexpr = (W + COLS - 1) // COLS
    tensors = (
        dy_TD,
        dy_scale,
        w_EWD,
        w_scale,
        h_P2W,
        gate_TK,
        dh_P2W,
        weighted_PW,
        dgate_PS,
        slot_P,
        T,
        K,
    )
    for number in range(tl.program_id(0), tl.load(num_tiles) * strips, tl.num_programs(0)):
        expert, first, end = _tile(tile_expert, tile_row, start_E, number // strips)
        tile = (expert, first, end, number % strips)
        if ROWS > 64 and end - first <= ROWS // 2:
            _down_grad_tile(*tensors, *tile, D, W, ROWS // 2, COLS, DEPTH, SCALED, PRECISION)
        else:
            _down_grad_tile(*tensors, *tile, D, W, ROWS, COLS, DEPTH, SCALED, PRECISION)


@triton.jit
def _down_grad_tile(
    dy_TD,
    dy_scale,
    w_EWD,
    w_scale,
    h_P2W,
    gate_TK,
    dh_P2W,
    weighted_PW,
    dgate_PS,
    slot_P,
    T,
    K,
    expert,
    begin,
    end,
    strip,
    D: tl.constexpr,
    W: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    SCALED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    strips: tl.constexpr = (W + COLS - 1) // COLS
    visit = begin + tl.arange(0, ROWS)
    own = visit < end
    slot = tl.load(slot_P + visit, mask=own, other=0)
    col = strip * COLS + tl.arange(0, COLS)
    depth = tl.arange(0, DEPTH)
    dy = dy_TD + (slot // K).to(tl.int64)[:, None] * D + depth[None, :]
    w = w_EWD + expert * (W * D) + tl.minimum(col, W - 1)[None, :] * D + depth[:, None]
    da = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, D, DEPTH):
        if D % DEPTH == 0:
            dy_tile = tl.load(dy)
            w_tile = tl.load(w)
        else:
            left = D - first
            dy_tile = tl.load(dy, mask=(depth < left)[None, :], other=0.0)
            w_tile = tl.load(w, mask=(depth < left)[:, None], other=0.0)
        if SCALED:
            block = first // 128
            rows_scale = tl.load(dy_scale + block * T + slot // K)[:, None]
            at = (expert * (W // 128) + strip * COLS // 128) * (D // 128) + block
            da += tl.dot(dy_tile, w_tile) * (rows_scale * tl.load(w_scale + at))
        else:
            da = tl.dot(dy_tile, w_tile, da, input_precision=PRECISION)
        dy += DEPTH
        w += DEPTH
    share = tl.load(gate_TK + slot, mask=own, other=0.0).to(tl.float32)
    # In parts: all columns at once would not fit into the registers.
    part: tl.constexpr = COLS // 4 if COLS > 128 else COLS // 2
    col = strip * COLS + tl.arange(0, part)
    left, right = _halves(da)
    if COLS > 128:
        first, second = _halves(left)
        third, fourth = _halves(right)
        dgate = _swiglu_grad(first, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
        col += part
        dgate += _swiglu_grad(second, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
        col += part
        dgate += _swiglu_grad(third, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
        col += part
        dgate += _swiglu_grad(fourth, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
    else:
        dgate = _swiglu_grad(left, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
        col += part
        dgate += _swiglu_grad(right, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W)
    tl.store(dgate_PS + slot * strips + strip, dgate, mask=own)


@triton.jit
def _halves(tile):
    """The left and the right half of its columns."""
    rows: tl.constexpr = tile.shape[0]
    half: tl.constexpr = tile.shape[1] // 2
    return tl.split(tile.reshape(rows, 2, half).permute(0, 2, 1))


@triton.jit
def _swiglu_grad(da, h_P2W, dh_P2W, weighted_PW, share, visit, own, col, W: tl.constexpr):
    """Stores dH and gate * A of some columns; returns their part of <A, dA>."""
    inside = own[:, None] & (col < W)[None, :]
    row = visit.to(tl.int64)[:, None]
    at = row * (2 * W) + col[None, :]
    gate = tl.load(h_P2W + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(h_P2W + at + W, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    a = silu * up
    # Beyond the expert's own visits and columns gate and up are zero, and so is A.
    dgate = tl.sum(a * da, 1)
    da *= share[:, None]
    weighted = weighted_PW + row * W + col[None, :]
    tl.store(weighted, (share[:, None] * a).to(weighted_PW.dtype.element_ty), mask=inside)
    d_gate = da * up * (sigmoid + silu * (1.0 - sigmoid))
    tl.store(dh_P2W + at, d_gate.to(dh_P2W.dtype.element_ty), mask=inside)
    tl.store(dh_P2W + at + W, (da * silu).to(dh_P2W.dtype.element_ty), mask=inside)
    return dgate


@triton.jit
def weight_grad(
    left_PM,
    right_TN,
    out_EMN,
    slot_P,
    start_E,
    K,
    M: tl.constexpr,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out[e] = Σ over the visits of e of left ⊗ right[token]; zero for an expert without any."""
    strips: tl.constexpr = (N + COLS - 1) // COLS
    bands: tl.constexpr = (M + ROWS - 1) // ROWS
    number = tl.program_id(0)
    expert = number // (bands * strips)
    row = (number // strips) % bands * ROWS + tl.arange(0, ROWS)
    col = (number % strips) * COLS + tl.arange(0, COLS)
    begin = tl.load(start_E + expert)
    end = tl.load(start_E + expert + 1)
    total = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(begin, end, DEPTH):
        visit = first + tl.arange(0, DEPTH)
        own = visit < end
        token = tl.load(slot_P + visit, mask=own, other=0) // K
        left = left_PM + visit.to(tl.int64)[None, :] * M + row[:, None]
        right = right_TN + token.to(tl.int64)[:, None] * N + col[None, :]
        left_tile = tl.load(left, mask=own[None, :] & (row < M)[:, None], other=0.0)
        right_tile = tl.load(right, mask=own[:, None] & (col < N)[None, :], other=0.0)
        total = tl.dot(left_tile, right_tile, total, input_precision=PRECISION)
    out = out_EMN + expert.to(tl.int64) * (M * N) + row[:, None] * N + col[None, :]
    inside = (row < M)[:, None] & (col < N)[None, :]
    tl.store(out, total.to(out_EMN.dtype.element_ty), mask=inside)


@triton.jit
def combine(
    answer_PD,
    gate_TK,
    row_TK,
    out_TD,
    T,
    K: tl.constexpr,
    D: tl.constexpr,
    TOKENS: tl.constexpr,
    COLS: tl.constexpr,
    WEIGHTED: tl.constexpr,
):
    """out[t] = Σ over the K visits of t of (gate *) answer, in their order."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    col = tl.program_id(1) * COLS + tl.arange(0, COLS)
    there = token < T
    inside = there[:, None] & (col < D)[None, :]
    total = tl.zeros([TOKENS, COLS], tl.float32)
    for nth in tl.static_range(K):
        row = tl.load(row_TK + token * K + nth, mask=there, other=0).to(tl.int64)
        at = answer_PD + row[:, None] * D + col[None, :]
        answer = tl.load(at, mask=inside, other=0.0).to(tl.float32)
        if WEIGHTED:
            gate = tl.load(gate_TK + token * K + nth, mask=there, other=0.0).to(tl.float32)
            answer *= gate[:, None]
        total += answer
    out = out_TD + token.to(tl.int64)[:, None] * D + col[None, :]
    tl.store(out, total.to(out_TD.dtype.element_ty), mask=inside)
