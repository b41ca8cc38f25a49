// The experts, forward and backward, on a CPU's tile unit (tiles.h); `experts.h` has the formula.
//
// Tokens stand in the rows of every product, so x and dy are packed as they lie. With n <= BLOCK tokens
// of one expert, all factors in PARTS parts:
//
//   forward   H    [n, 2H] = X [n, D] . W_gate_up^T [D, 2H]
//             y    [n, D] += gate * (A [n, H] . W_down [H, D])
//   backward  dA   [n, H]  = dY [n, D] . W_down^T [D, H]
//             dx   [n, D] += dH [n, 2H] . W_gate_up [2H, D]
//             dW_down     += (gate A)^T [H, n] . dY [n, D]
//             dW_gate_up  += dH^T [2H, n] . X [n, D]
//
// The weights are packed once per expert and pass. The gate's gradient is <A, dA> per token. What is kept
// for the backward pass is H, a row of 2H values for every pair of token and expert in the order of the
// experts: as floats, or with PARTS = 1 as bfloat16.
#pragma once

#include "experts.h"
#include "tiles.h"

#if defined(__AVX512BF16__)

namespace {

// Of 32, 64, 128 and 256, 128 was best or within the noise of the best for widths 64 to 512.
constexpr int64_t BLOCK = 128;
constexpr int64_t PACKING_COST = 32;  // of an expert's weights, in tokens

inline float sum_of(vec v) { return _mm512_reduce_add_ps((__m512)v); }

// Squares and tiles of a layer's widths. The rows of W_gate_up are padded to whole squares in each half.
struct Squares {
    explicit Squares(const Layer& l)
        : D(squares_of(l.D)), H(squares_of(l.H)), D_depth(depths_of(l.D)), H_depth(depths_of(l.H)) {}
    int64_t D, H, D_depth, H_depth;
    static constexpr int64_t n = BLOCK / SIDE, n_depth = BLOCK / DEPTH;
};

// Row i of a padded W_gate_up of one expert; null for padding.
inline const float* gate_up_row(const float* w, int64_t i, const Layer& l, const Squares& s) {
    const int64_t half = i / (s.H * SIDE), j = i % (s.H * SIDE);
    return j < l.H ? w + (half * l.H + j) * l.D : nullptr;
}

// The pre-activations kept for token i of those that begin at `first`: 16 of the gate's (half 0) or up's.
template <int PARTS>
inline vec read_kept(const float* kept, int64_t i, int64_t half, int64_t j, int64_t H) {
    const int64_t at = (2 * i + half) * H + j * SIDE;
    const int count = static_cast<int>(std::min(SIDE, H - j * SIDE));
    if constexpr (PARTS == 1) return load_first_bf16(reinterpret_cast<const uint16_t*>(kept) + at, count);
    return load_first(kept + at, count);
}
template <int PARTS>
inline void keep(float* kept, int64_t i, int64_t half, int64_t j, int64_t H, vec v) {
    const int64_t at = (2 * i + half) * H + j * SIDE;
    const int count = static_cast<int>(std::min(SIDE, H - j * SIDE));
    if constexpr (PARTS == 1) return store_first_bf16(reinterpret_cast<uint16_t*>(kept) + at, v, count);
    store_first(kept + at, v, count);
}

// rows[token] += scale * (A . B), A [n tokens] of `depth` tiles, B of D columns; `squares` is room for n x 2.
template <int PARTS>
void add_product_to_rows(const float* a, const float* b, int64_t depth, const int64_t* token, int64_t n,
                         const float* scale, float* rows, int64_t D, float* squares) {
    const int64_t columns = squares_of(D);
    for (int64_t j = 0; j < columns; j += 2) {
        const int64_t wide = std::min<int64_t>(2, columns - j);
        multiply_tiles<PARTS>(a, squares_of(n), tile_at<PARTS>(b, j, 0, depth), wide, depth, squares, 2, false);
        for (int64_t i = 0; i < n; i++) {
            const float* sums = squares + i / SIDE * 2 * SQUARE + i % SIDE * SIDE;
            const vec by = splat(scale ? scale[i] : 1.0f);
            for (int64_t c = 0; c < wide; c++) {
                const int64_t at = (j + c) * SIDE;
                const int count = static_cast<int>(std::min(SIDE, D - at));
                float* target = rows + token[i] * D + at;
                store_first(target, load_first(target, count) + by * load(sums + c * SQUARE), count);
            }
        }
    }
}

// Squares [rows, D] of a weight's gradient, out to where it belongs.
inline void unpack_squares(const float* squares, int64_t rows, int64_t D, float* out) {
    const int64_t columns = squares_of(D);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const int count = static_cast<int>(std::min(SIDE, D - j * SIDE));
            const vec v = load(squares + (i / SIDE * columns + j) * SQUARE + i % SIDE * SIDE);
            store_first(out + i * D + j * SIDE, v, count);
        }
}

// H [n, 2H] of the tokens' rows, as squares.
template <int PARTS>
void project_up(const Layer& l, const Squares& s, const int64_t* token, int64_t n, const float* w_in,
                float* x_tiles, float* h) {
    pack_along<PARTS, false>([&](int64_t i) { return l.x + token[i] * l.D; }, n, l.D, x_tiles);
    multiply_tiles<PARTS>(x_tiles, squares_of(n), w_in, 2 * s.H, s.D_depth, h, 2 * s.H, false);
}

template <int PARTS>
int32_t tiles_forward(const Layer& l, float* y, float* saved) {
    const Squares s(l);
    const int64_t D = l.D, H = l.H, tile = PARTS * SQUARE;
    const Routing r = route(l.expert, l.T * l.K, l.K, l.E, l.threads, BLOCK, PACKING_COST);
    if (!r.valid) return 1;
    RowSums sums(y, l.T, D, l.threads);
#pragma omp parallel num_threads(l.threads)
    {
        const TileRegisters registers;
        const int me = omp_get_thread_num();
        float* my_y = sums.of(me);
        Buffer x_tiles(s.n * s.D_depth * tile), h(s.n * 2 * s.H * SQUARE), a_tiles(s.n * s.H_depth * tile);
        Buffer w_in(2 * s.H * s.D_depth * tile), w_out(s.D * s.H_depth * tile), squares(s.n * 2 * SQUARE);
        float scale[BLOCK];
        int64_t current = -1;
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const int64_t n = r.tiles[t].n, first = r.tiles[t].first, e = r.tiles[t].expert;
            const int64_t* token = &r.token[first];
            if (e != current) {
                const float *in = l.w_gate_up + e * 2 * H * D, *out = l.w_down + e * H * D;
                pack_along<PARTS, true>([&](int64_t i) { return gate_up_row(in, i, l, s); }, 2 * s.H * SIDE, D,
                                        w_in.data);
                pack_across<PARTS>([&](int64_t i) { return out + i * D; }, H, D, w_out.data);
                current = e;
            }
            float* kept = saved ? saved + first * 2 * H / (PARTS == 1 ? 2 : 1) : nullptr;
            project_up<PARTS>(l, s, token, n, w_in.data, x_tiles.data, h.data);
            prefetch_rows(l.x, r, t, r.range[me + 1], D);
            for (int64_t i = 0; i < squares_of(n) * SIDE; i++) {
                float* row = h.data + i / SIDE * 2 * s.H * SQUARE + i % SIDE * SIDE;
                for (int64_t j = 0; j < s.H; j++) {
                    const vec g = load(row + j * SQUARE), u = load(row + (s.H + j) * SQUARE);
                    if (kept && i < n) {
                        keep<PARTS>(kept, i, 0, j, H, g);
                        keep<PARTS>(kept, i, 1, j, H, u);
                    }
                    store(row + j * SQUARE, g * sigmoid(g) * u);
                }
                pack_row_along<PARTS>(row, s.H, i, a_tiles.data);
                if (i < n) scale[i] = l.gate[r.slot[first + i]];
            }
            add_product_to_rows<PARTS>(a_tiles.data, w_out.data, s.H_depth, token, n, scale, my_y, D, squares.data);
        }
#pragma omp barrier
        sums.reduce(me);
    }
    return 0;
}

template <int PARTS>
int32_t tiles_backward(const Layer& l, const float* saved, const Gradients& out) {
    const Squares s(l);
    const int64_t D = l.D, H = l.H, tile = PARTS * SQUARE;
    const Routing r = route(l.expert, l.T * l.K, l.K, l.E, l.threads, BLOCK, PACKING_COST);
    if (!r.valid) return 1;
    RowSums sums(out.dx, l.T, D, l.threads);
    const WeightGradients weights(l, r, out);
#pragma omp parallel num_threads(l.threads)
    {
        const TileRegisters registers;
        const int me = omp_get_thread_num();
        float* my_dx = sums.of(me);
        weights.clear_unvisited(me);
        Buffer dy_left(s.n * s.D_depth * tile), dy_right(s.D * s.n_depth * tile), x_right(s.D * s.n_depth * tile);
        Buffer da(s.n * s.H * SQUARE), inner(s.n * 3 * s.H * SQUARE), squares(s.n * 2 * SQUARE);
        Buffer dh_left(s.n * s.H * tile), inner_left(3 * s.H * s.n_depth * tile);
        Buffer w_in_columns(s.D * s.H * tile), w_out(s.H * s.D_depth * tile);
        Buffer w_in(saved ? 0 : 2 * s.H * s.D_depth * tile), x_left(saved ? 0 : s.n * s.D_depth * tile);
        Buffer h(saved ? 0 : s.n * 2 * s.H * SQUARE);
        Buffer dw(3 * s.H * s.D * SQUARE);
        int64_t current = -1;
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const int64_t n = r.tiles[t].n, first = r.tiles[t].first, e = r.tiles[t].expert;
            const int64_t m = squares_of(n), n_depth = depths_of(n);
            const int64_t* token = &r.token[first];
            const bool add = e == current;  // to the weights' gradients
            if (e != current) {
                const float *in = l.w_gate_up + e * 2 * H * D, *down = l.w_down + e * H * D;
                const auto in_row = [&](int64_t i) { return gate_up_row(in, i, l, s); };
                if (!saved) pack_along<PARTS, true>(in_row, 2 * s.H * SIDE, D, w_in.data);
                pack_across<PARTS>(in_row, 2 * s.H * SIDE, D, w_in_columns.data);
                pack_along<PARTS, true>([&](int64_t i) { return down + i * D; }, H, D, w_out.data);
                current = e;
            }
            const bool last_of_expert = t + 1 == r.range[me + 1] || r.tiles[t + 1].expert != e;
            const auto dy_row = [&](int64_t i) { return out.dy + token[i] * D; };
            pack_along<PARTS, false>(dy_row, n, D, dy_left.data);
            pack_across<PARTS>(dy_row, n, D, dy_right.data);
            prefetch_rows(out.dy, r, t, r.range[me + 1], D);
            if (!saved) project_up<PARTS>(l, s, token, n, w_in.data, x_left.data, h.data);
            pack_across<PARTS>([&](int64_t i) { return l.x + token[i] * D; }, n, D, x_right.data);
            prefetch_rows(l.x, r, t, r.range[me + 1], D);
            multiply_tiles<PARTS>(dy_left.data, m, w_out.data, s.H, s.D_depth, da.data, s.H, false);

            const float* kept = saved ? saved + first * 2 * H / (PARTS == 1 ? 2 : 1) : nullptr;
            for (int64_t i = 0; i < m * SIDE; i++) {
                // In squares [n, 3H]: d_gate, d_up, gate * a. Rows past the last token are zeros.
                float* row = inner.data + i / SIDE * 3 * s.H * SQUARE + i % SIDE * SIDE;
                const float* da_row = da.data + i / SIDE * s.H * SQUARE + i % SIDE * SIDE;
                const float* h_row = h.data + i / SIDE * 2 * s.H * SQUARE + i % SIDE * SIDE;
                const bool token_row = i < n;
                const vec w = splat(token_row ? l.gate[r.slot[first + i]] : 0.0f);
                vec dgate_sum{};
                for (int64_t j = 0; j < s.H; j++) {
                    vec g{}, u{};
                    if (!saved) {
                        g = load(h_row + j * SQUARE);
                        u = load(h_row + (s.H + j) * SQUARE);
                    } else if (token_row) {
                        g = read_kept<PARTS>(kept, i, 0, j, H);
                        u = read_kept<PARTS>(kept, i, 1, j, H);
                    }
                    const vec sig = sigmoid(g), silu = g * sig, a = silu * u;
                    const vec da_part = load(da_row + j * SQUARE), dwa = w * da_part;
                    dgate_sum += a * da_part;
                    store(row + j * SQUARE, dwa * u * (sig + silu * (1.0f - sig)));
                    store(row + (s.H + j) * SQUARE, dwa * silu);
                    store(row + (2 * s.H + j) * SQUARE, w * a);
                }
                pack_row_along<PARTS>(row, 2 * s.H, i, dh_left.data);
                if (token_row) out.dgate[r.slot[first + i]] = sum_of(dgate_sum);
            }
            pack_squares_across<PARTS>(inner.data, m, 3 * s.H, 3 * s.H, inner_left.data);

            float* dw_out = dw.data + 2 * s.H * s.D * SQUARE;
            const float* aw_left = tile_at<PARTS>(inner_left.data, 2 * s.H, 0, n_depth);
            multiply_tiles<PARTS>(aw_left, s.H, dy_right.data, s.D, n_depth, dw_out, s.D, add);
            multiply_tiles<PARTS>(inner_left.data, 2 * s.H, x_right.data, s.D, n_depth, dw.data, s.D, add);
            add_product_to_rows<PARTS>(dh_left.data, w_in_columns.data, s.H, token, n, nullptr, my_dx, D,
                                       squares.data);
            if (last_of_expert) {
                const int64_t up = s.H * s.D * SQUARE;
                unpack_squares(dw.data, H, D, weights.gate_up(me, e));
                unpack_squares(dw.data + up, H, D, weights.gate_up(me, e) + H * D);
                unpack_squares(dw_out, H, D, weights.down(me, e));
            }
        }
#pragma omp barrier
        sums.reduce(me);
        weights.add_shares(me);
    }
    return 0;
}

}  // namespace

#endif
