// The experts on a CPU's tile unit (tiles.h): what forward and backward share; `experts.h` has the formula.
//
// Tokens are the rows of every product, so x and dy are packed without a transpose. With n <= BLOCK tokens of one
// expert, and every factor in PARTS parts:
//
//   forward   H    [n, 2H] = X [n, D] . W_gate_up^T [D, 2H]
//             y    [n, D] += gate * (A [n, H] . W_down [H, D])
//   backward  dA   [n, H]  = dY [n, D] . W_down^T [D, H]
//             dx   [n, D] += dH [n, 2H] . W_gate_up [2H, D]
//             dW_down     += (gate A)^T [H, n] . dY [n, D]
//             dW_gate_up  += dH^T [2H, n] . X [n, D]
//
// All vector work is overlapped with a product (beside.h). Products go by groups of rows; while one group is
// multiplied, the previous one goes through SwiGLU or is added to its tokens' rows. Factors are packed during a
// product that does not need them: tokens for the weight gradients during the first two products of the backward
// pass, the next block and its expert's weights during the last.
//
// The gate's gradient is <A, dA> per token. Saved for the backward pass is H, 2H values for each (token, expert)
// pair in expert order: as floats, or with PARTS = 1 as bfloat16.
#pragma once

#include "experts.h"
#include "tile_products.h"

#if defined(__AVX512BF16__)

namespace {

// Of 32, 64, 128 and 256 tokens, 128 was the best or within noise of it for widths 64 to 512.
constexpr int64_t BLOCK = 128;
constexpr int64_t PACKING_COST = 32;  // of packing an expert's weights, in tokens
constexpr int64_t SECOND_CACHE_BYTES = 2 << 20;

inline float sum_of(vec v) { return _mm512_reduce_add_ps((__m512)v); }

// A layer's widths in squares and tiles. Each half of W_gate_up is padded to whole squares of rows.
template <int PARTS>
struct Squares {
    explicit Squares(const Layer& l)
        : D(squares_of(l.D)), H(squares_of(l.H)), D_depth(depths_of(l.D)), H_depth(depths_of(l.H)) {
        group = 3 * H * D * PARTS * SQUARE * 2 <= SECOND_CACHE_BYTES ? 2 : 4;
        rows = std::max<int64_t>(1, (PARTS == 1 ? 512 : 128) / l.D);
    }
    int64_t D, H, D_depth, H_depth;
    int64_t group;  // squares of rows multiplied at a time; more where the packed weights overflow L2
    int64_t rows;   // tokens in a piece of vector work (beside.h), about a hundred instructions
    static constexpr int64_t n = BLOCK / SIDE, n_depth = BLOCK / DEPTH;
};

// Row i of a padded W_gate_up of one expert; null for padding.
inline const float* gate_up_row(const float* w, int64_t i, int64_t H, int64_t D) {
    const int64_t padded = squares_of(H) * SIDE;
    if (i >= padded) i -= padded, w += H * D;
    return i < H ? w + i * D : nullptr;
}

// The first word of row i of a left factor.
template <int PARTS, class Pointer>
inline Pointer row_at(Pointer left, int64_t i, int64_t depth) {
    return tile_at<PARTS>(left, i / SIDE, 0, depth) + i % SIDE * SIDE;
}

// The two rows of the reduction dimension that the words of a pair hold.
template <int PARTS>
inline std::pair<int64_t, int64_t> rows_of_pair(int64_t pair) {
    const int64_t k = pair / SIDE * DEPTH, w = pair % SIDE;
    return {k + first_of_word<PARTS>(w), k + second_of_word<PARTS>(w)};
}

// 16 saved pre-activations of token i of a block whose own begin at `kept`: of the gate (half 0) or of up.
template <int PARTS>
inline vec read_kept(const float* kept, int64_t i, int64_t half, int64_t j, int64_t H) {
    const int64_t at = (2 * i + half) * H + j * SIDE;
    const int count = static_cast<int>(std::min(SIDE, H - j * SIDE));
    if constexpr (PARTS == 1) return load_first_bf16(reinterpret_cast<const uint16_t*>(kept) + at, count);
    return count == SIDE ? load(kept + at) : load_first(kept + at, count);
}
template <int PARTS>
inline void keep(float* kept, int64_t i, int64_t half, int64_t j, int64_t H, vec v) {
    const int64_t at = (2 * i + half) * H + j * SIDE;
    const int count = static_cast<int>(std::min(SIDE, H - j * SIDE));
    if constexpr (PARTS == 1) return store_first_bf16(reinterpret_cast<uint16_t*>(kept) + at, v, count);
    count == SIDE ? store(kept + at, v) : store_first(kept + at, v, count);
}

// target[D] += scale * row i of squares.
inline void add_squares_row(const float* squares, int64_t i, float scale, int64_t D, float* target) {
    const float* sums = squares + i / SIDE * squares_of(D) * SQUARE + i % SIDE * SIDE;
    const vec by = splat(scale);
    for (; D >= SIDE; D -= SIDE, target += SIDE, sums += SQUARE) store(target, load(target) + by * load(sums));
    const int left = static_cast<int>(D);
    if (left) store_first(target, load_first(target, left) + by * load(sums), left);
}

// One thread's part of a pass over the experts. Functions that take a `Beside` queue their work there.
template <int PARTS>
struct TilesPass {
    static constexpr int64_t TILE = PARTS * SQUARE;
    const Layer& l;
    const Routing& r;
    const Squares<PARTS> s{l};
    Asides asides{};

    int64_t tokens(int64_t t) const { return r.tiles[t].n; }
    const int64_t* token(int64_t t) const { return &r.token[r.tiles[t].first]; }
    int64_t slot(int64_t t, int64_t i) const { return r.slot[r.tiles[t].first + i]; }
    float gate(int64_t t, int64_t i) const { return l.gate[slot(t, i)]; }
    bool new_expert(int64_t t) const { return r.tiles[t].expert != r.tiles[t - 1].expert; }
    const float* w_gate_up(int64_t t) const { return l.w_gate_up + r.tiles[t].expert * 2 * l.H * l.D; }
    const float* w_down(int64_t t) const { return l.w_down + r.tiles[t].expert * l.H * l.D; }
    // Block t's part of what is saved between the passes.
    template <class Pointer>
    Pointer kept(Pointer saved, int64_t t) const {
        return saved ? saved + r.tiles[t].first * 2 * l.H / (PARTS == 1 ? 2 : 1) : nullptr;
    }

    // Queues a prefetch of the rows of `source` that belong to block t's tokens.
    void fetch_rows(Beside& beside, const float* source, int64_t t) {
        const int64_t D = l.D, *of = token(t);
        beside.add_rows(tokens(t), s.rows, [=](int64_t i) {
            const float* row = source + of[i] * D;
            // In assembly: GCC removes a function that does nothing but __builtin_prefetch.
            for (int64_t c = 0; c < D; c += SIDE) asm volatile("prefetcht1 %0" : : "m"(row[c]));
        });
    }
    // Queues packing those rows as a left factor, or as a right factor that reduces over them.
    void pack_left(Beside& beside, const float* source, int64_t t, float* out) {
        const int64_t D = l.D, n = tokens(t), *of = token(t), depth = s.D_depth;
        beside.add_rows(squares_of(n) * SIDE, s.rows, [=](int64_t i) {
            float* at = row_at<PARTS>(out, i, depth);
            if (i < n)
                pack_row<PARTS>(source + of[i] * D, D, at);
            else
                pack_zeros<PARTS>(D, at);
        });
    }
    void pack_right(Beside& beside, const float* source, int64_t t, float* out) {
        const int64_t D = l.D, n = tokens(t), *of = token(t), depth = depths_of(n);
        beside.add_rows(depth * SIDE, s.rows, [=](int64_t pair) {
            const auto [i, j] = rows_of_pair<PARTS>(pair);
            pack_pair<PARTS>(i < n ? source + of[i] * D : nullptr, j < n ? source + of[j] * D : nullptr, D, depth,
                             pair_at<PARTS>(out, pair));
        });
    }
    // Queues packing H rows of weights, padded to whole squares, as the columns of a right factor.
    void pack_as_columns(Beside& beside, const float* w, float* out) {
        const int64_t D = l.D, H = l.H, depth = s.D_depth, pieces = depth * COLUMN_PIECES<PARTS>;
        beside.add(s.H * pieces, [=](int64_t i) {
            const int64_t r = i / pieces, piece = i % pieces, k = piece / COLUMN_PIECES<PARTS>;
            pack_columns<PARTS>(w + r * SIDE * D, H - r * SIDE, D, k, piece % COLUMN_PIECES<PARTS>,
                                tile_at<PARTS>(out, r, k, depth));
        });
    }
    // Queues packing the weights row(i) as a right factor that reduces over them.
    template <class Row>
    void pack_as_rows(Beside& beside, Row row, int64_t depth, float* out) {
        const int64_t D = l.D;
        beside.add(depth * SIDE, [=](int64_t pair) {
            const auto [i, j] = rows_of_pair<PARTS>(pair);
            pack_pair<PARTS>(row(i), row(j), D, depth, pair_at<PARTS>(out, pair));
        });
    }

    // Steps of a product taken in groups of its m squares of rows.
    int64_t group_steps(int64_t m, int64_t n, int64_t depth) const {
        int64_t steps = 0;
        for (int64_t i = 0; i < m; i += s.group) steps += steps_of<PARTS>(std::min(s.group, m - i), n, depth);
        return steps;
    }
    // C [m, n squares] = A . B in groups of rows. before(i, rows) queues what must be done during the group that
    // starts at square i; out(i) is where its sums go.
    template <class Out, class Before>
    void by_groups(int64_t m, const float* a, const float* b, int64_t n, int64_t depth, Out out, Before before) {
        for (int64_t i = 0; i < m; i += s.group) {
            const int64_t rows = std::min(s.group, m - i);
            before(i, rows);
            asides.now.share(steps_of<PARTS>(rows, n, depth));
            multiply_tiles<PARTS>(tile_at<PARTS>(a, i, 0, depth), rows, b, n, depth, out(i), n, false, asides);
            asides.now.finish();
        }
    }
    int64_t last_group(int64_t m) const { return (m - 1) / s.group * s.group; }

    // The sums [., D] of two groups: one is added to its rows while the next is computed.
    Buffer squares{2 * s.group * s.D * SQUARE};
    float* group_squares(int64_t i) { return squares.data + i / s.group % 2 * s.group * s.D * SQUARE; }

    // Queues adding the sums of the group that starts at square i, times `scale`, to their tokens' rows.
    void add_rows(int64_t t, int64_t i, int64_t m, const float* scale, float* rows) {
        const int64_t D = l.D, *of = token(t) + i * SIDE, n = std::min(m * SIDE, tokens(t) - i * SIDE);
        const float *sums = group_squares(i), *by = scale ? scale + i * SIDE : nullptr;
        asides.now.add_rows(n, s.rows, [=](int64_t row) {
            add_squares_row(sums, row, by ? by[row] : 1.0f, D, rows + of[row] * D);
        });
    }
};

}  // namespace

#endif
