// The experts in vector registers, forward and backward, fused per tile of one expert's tokens.
// `experts.h` has the formula.
//
// D is innermost in both weights, so in fp32 all six matrix products stream contiguous rows and no weight is
// ever packed or transposed:
//
//   forward   H^T  [2H, n] = W_gate_up [2H, D] . X^T [D, n]        tokens in the vector lanes
//             y    [n, D] += gate * (A [n, H] . W_down [H, D])     straight into the rows of y
//   backward  dA^T [H, n]  = W_down [H, D] . dY^T [D, n]
//             dW_down     += (gate A)^T [H, n] . dY [n, D]         dY and X read where they lie
//             dW_gate_up  += dH^T [2H, n] . X [n, D]
//             dx   [n, D] += dH [n, 2H] . W_gate_up [2H, D]        straight into the rows of dx
//
// with n <= TILE tokens of one expert. Nothing of size T*K*D is ever stored. The gate's gradient is <A, dA>
// per token, so the experts' outputs need not be saved either; only the pre-activations H are, and without a
// buffer for them the backward pass recomputes them.
//
// With BF16 all tensors stay fp32, but the factors of every product are rounded to bfloat16, paired along the
// reduction dimension (products.h); tokens are rounded once per pass, weights once per expert and pass. Accumulation is
// fp32.

#pragma once

#include "experts.h"
#include "products.h"

namespace {

// Most tokens of one expert in a tile; a multiple of every LANES. Of 32, 48 and 64 on Zen 4, 48 was the best or
// within noise of it for widths 64 to 512.
constexpr int64_t TILE = 48;

// Values in a word of a factor, and the words needed for n values.
template <bool BF16>
constexpr int64_t PER_WORD = BF16 ? 2 : 1;
template <bool BF16>
constexpr int64_t words(int64_t n) {
    return (n + PER_WORD<BF16> - 1) / PER_WORD<BF16>;
}

// One vector of words from the `left` remaining values of a row, zero-padded.
template <bool BF16>
inline vec row_words(const float* p, int64_t left) {
    const auto part = [&](int64_t from) {
        if (left >= from + LANES) return load(p + from);
        return left > from ? load_first(p + from, static_cast<int>(left - from)) : vec{};
    };
#if defined(__AVX512BF16__)
    if constexpr (BF16) return neighbour_words(part(0), part(LANES));
#endif
    return part(0);
}

// A left factor of M rows of D values, in words along D.
template <bool BF16>
const float* row_factor(const float* w, int64_t M, int64_t D, float* packed) {
    if constexpr (!BF16) return w;
    const int64_t all = words<BF16>(D);
    for (int64_t m = 0; m < M; m++)
        for (int64_t c = 0; c < all; c += LANES) {
            const vec v = row_words<BF16>(w + m * D + 2 * c, D - 2 * c);
            store_first(packed + m * all + c, v, static_cast<int>(std::min<int64_t>(LANES, all - c)));
        }
    return packed;
}

// All tokens' rows in words along D: those of `source`, or (BF16) a rounded copy. Each thread rounds its share.
template <bool BF16>
struct TokenRows {
    TokenRows(const float* source, int64_t T, int64_t D)
        : source(source), T(T), D(D), stride(words<BF16>(D)), rounded(BF16 ? T * stride : 0) {}
    void round(int thread, int threads) {
        const int64_t from = T * thread / threads, to = T * (thread + 1) / threads;
        row_factor<BF16>(source + from * D, to - from, D, rounded.data + from * stride);
    }
    const float* row(int64_t token) const { return (BF16 ? rounded.data : source) + token * stride; }
    const float* source;
    int64_t T, D, stride;
    Buffer rounded;
};

// Gathers the tokens' rows, transposed: columns[c*np + i] is word c of token[i]'s, zero for i in [n, np).
template <bool BF16>
void gather_columns(const TokenRows<BF16>& source, const int64_t* token, int64_t n, int64_t np, float* columns) {
    for (int64_t i0 = 0; i0 < np; i0 += LANES) {
        for (int64_t c0 = 0; c0 < source.stride; c0 += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, source.stride - c0));
            vec r[LANES];
            for (int i = 0; i < LANES; i++) {
                if (i0 + i >= n)
                    r[i] = vec{};
                else if (count == LANES)
                    r[i] = load(source.row(token[i0 + i]) + c0);
                else
                    r[i] = load_first(source.row(token[i0 + i]) + c0, count);
            }
            transpose(r);
            for (int64_t c = 0; c < count; c++) store(columns + (c0 + c) * np + i0, r[c]);
        }
    }
}

// The right factor whose n rows are tokens and reduced over: in place, or (BF16) packed in pairs of rows.
template <bool BF16>
Right summed_tokens(const TokenRows<BF16>& source, const int64_t* token, int64_t n, const float** pointers,
                    float* packed) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) {
        const int64_t D = source.D;
        for (int64_t i = 0; i < n; i += 2) {
            const float *first = source.row(token[i]), *second = i + 1 < n ? source.row(token[i + 1]) : nullptr;
            float* pairs = packed + i / 2 * D;
            for (int64_t c = 0; c < source.stride; c += LANES, pairs += 2 * LANES) {
                const int count = static_cast<int>(std::min<int64_t>(LANES, source.stride - c));
                const vec a = load_first(first + c, count), b = second ? load_first(second + c, count) : vec{};
                const int64_t left = D - 2 * c;
                store_first(pairs, interleave<false>(a, b), static_cast<int>(std::min<int64_t>(LANES, left)));
                if (left > LANES)
                    store_first(pairs + LANES, interleave<true>(a, b),
                                static_cast<int>(std::min<int64_t>(LANES, left - LANES)));
            }
        }
        return {packed, D, nullptr};
    }
#endif
    for (int64_t i = 0; i < n; i++) pointers[i] = source.row(token[i]);
    return {nullptr, 0, pointers};
}

// A right factor of K rows of D values, in words along K.
template <bool BF16>
Right column_factor(const float* w, int64_t K, int64_t D, float* packed) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) {
        for (int64_t k = 0; k < K; k += 2)
            for (int64_t c = 0; c < D; c += LANES) {
                const int count = static_cast<int>(std::min<int64_t>(LANES, D - c));
                const float* first = w + k * D + c;
                const vec high = k + 1 < K ? load_first(first + D, count) : vec{};
                store_first(packed + k / 2 * D + c, pair_words(load_first(first, count), high), count);
            }
        return {packed, D, nullptr};
    }
#endif
    return {w, D, nullptr};
}

// Stores rows j .. j+PER_WORD-1 of an inner activation in the layout that reduces over these rows.
template <bool BF16>
inline void store_rows(float* out, int64_t j, int64_t np, int64_t i, const vec* rows) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) return store(out + j / 2 * np + i, pair_words(rows[0], rows[1]));
#endif
    store(out + j * np + i, rows[0]);
}

// Stores a row of an inner activation in the layout that reduces over tokens.
template <bool BF16>
inline void store_tokens(float* out, int64_t j, int64_t np, int64_t i, vec row) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) return store_bf16(reinterpret_cast<uint16_t*>(out) + j * np + i, row);
#endif
    store(out + j * np + i, row);
}

// Pre-activations saved between forward and backward: as floats, or (BF16) as bfloat16.
template <bool BF16>
inline vec read_kept(const float* kept, int64_t at) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) return load_bf16(reinterpret_cast<const uint16_t*>(kept) + at);
#endif
    return load(kept + at);
}

// hT[2H, np] = W_gate_up . X^T
template <bool BF16>
void project_up(const float* w, const float* xT, int64_t H, int64_t D, int64_t np, float* hT) {
    const int64_t k = words<BF16>(D);
    multiply<BF16>({w, k, 1, {xT, np, nullptr}, 2 * H, np, k}, StoredRows{hT, np});
}

template <bool BF16>
int32_t vectors_forward(const Layer& l, float* y, float* saved) {
    constexpr int PER = PER_WORD<BF16>;
    TokenRows<BF16> x(l.x, l.T, l.D);
    const auto run = [&](const Routing& r, int me, float* my_y) {
        const int64_t D = l.D, H = l.H;
        Buffer xT(words<BF16>(D) * TILE), own_h(BF16 || !saved ? 2 * H * TILE : 0), aT(H * TILE);
        Buffer packed_in(BF16 ? 2 * H * words<BF16>(D) : 0), packed_out(BF16 ? H / 2 * D : 0);
        const float* w_in = nullptr;
        Right w_out{};
        float* rows[TILE];
        float scale[TILE];
        int64_t current = -1;
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const Tile& tile = r.tiles[t];
            const int64_t np = tile.np, e = tile.expert;
            if (e != current) {
                w_in = row_factor<BF16>(l.w_gate_up + e * 2 * H * D, 2 * H, D, packed_in.data);
                w_out = column_factor<BF16>(l.w_down + e * H * D, H, D, packed_out.data);
                current = e;
            }
            float* kept = saved ? saved + tile.saved * 2 * H / PER : nullptr;
            float* hT = BF16 || !saved ? own_h.data : kept;
            gather_columns(x, &r.token[tile.first], tile.n, np, xT.data);
            project_up<BF16>(w_in, xT.data, H, D, np, hT);
            for (int64_t j = 0; j < H; j += PER)
                for (int64_t i = 0; i < np; i += LANES) {
                    vec a[PER];
                    for (int k = 0; k < PER; k++) {
                        const vec g = load(hT + (j + k) * np + i), u = load(hT + (H + j + k) * np + i);
                        a[k] = g * sigmoid(g) * u;
                        if (BF16 && kept) {
                            store_tokens<BF16>(kept, j + k, np, i, g);
                            store_tokens<BF16>(kept, H + j + k, np, i, u);
                        }
                    }
                    store_rows<BF16>(aT.data, j, np, i, a);
                }
            for (int64_t i = 0; i < tile.n; i++) {
                rows[i] = my_y + r.token[tile.first + i] * D;
                scale[i] = l.gate[r.slot[tile.first + i]];
            }
            multiply<BF16>({aT.data, 1, np, w_out, tile.n, D, H / PER}, ScaledRows{rows, scale});
        }
    };
    return over_experts(
        l, TILE, 0, y, [](const Routing&) {}, [&](int me) { x.round(me, l.threads); }, run, [](int) {});
}

template <bool BF16>
int32_t vectors_backward(const Layer& l, const float* saved, const Gradients& out) {
    constexpr int PER = PER_WORD<BF16>;
    std::optional<WeightGradients> shares;
    TokenRows<BF16> x(l.x, l.T, l.D), dy(out.dy, l.T, l.D);
    const auto run = [&](const Routing& r, int me, float* my_dx) {
        const int64_t D = l.D, H = l.H;
        const WeightGradients& weights = *shares;
        const int64_t dw = words<BF16>(D), tw = words<BF16>(TILE);
        Buffer dyT(dw * TILE), daT(H * TILE), awT(H * tw), dhT(2 * H * tw);
        Buffer dhP(BF16 ? H * TILE : 0), x_pairs(BF16 ? tw * D : 0), dy_pairs(BF16 ? tw * D : 0);
        Buffer xT(saved ? 0 : dw * TILE), own_h(saved ? 0 : 2 * H * TILE);
        Buffer packed_in(BF16 && !saved ? 2 * H * dw : 0), packed_in_columns(BF16 ? H * D : 0);
        Buffer packed_out(BF16 ? H * dw : 0);
        const float *w_in = nullptr, *w_out = nullptr;
        Right w_in_columns{};
        const float *x_rows[TILE], *dy_rows[TILE];
        float* rows[TILE];
        float gates[TILE], ones[TILE];
        std::fill_n(ones, TILE, 1.0f);
        weights.clear_unvisited(me);
        int64_t current = -1;
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const Tile& tile = r.tiles[t];
            const int64_t n = tile.n, np = tile.np, e = tile.expert;
            const int64_t* token = &r.token[tile.first];
            const bool add = e == current;  // to the weights' gradients
            if (e != current) {
                const float* w = l.w_gate_up + e * 2 * H * D;
                if (!saved) w_in = row_factor<BF16>(w, 2 * H, D, packed_in.data);
                w_in_columns = column_factor<BF16>(w, 2 * H, D, packed_in_columns.data);
                w_out = row_factor<BF16>(l.w_down + e * H * D, H, D, packed_out.data);
                current = e;
            }
            gather_columns(dy, token, n, np, dyT.data);
            if (!saved) {
                gather_columns(x, token, n, np, xT.data);
                project_up<BF16>(w_in, xT.data, H, D, np, own_h.data);
            }
            multiply<BF16>({w_out, dw, 1, {dyT.data, np, nullptr}, H, np, dw}, StoredRows{daT.data, np});

            const float* kept = saved ? saved + tile.saved * 2 * H / PER : nullptr;
            const auto pre_activation = [&](int64_t at) {
                return saved ? read_kept<BF16>(kept, at) : load(own_h.data + at);
            };
            float* dh_rows = BF16 ? dhP.data : dhT.data;  // in fp32 one layout serves both sums
            for (int64_t i = 0; i < np; i++) gates[i] = i < n ? l.gate[r.slot[tile.first + i]] : 0.0f;
            for (int64_t i0 = 0; i0 < np; i0 += LANES) {
                const vec w = load(gates + i0);
                vec dgate_sum{};
                for (int64_t j0 = 0; j0 < H; j0 += PER) {
                    vec d_gate[PER], d_up[PER];
                    for (int k = 0; k < PER; k++) {
                        const int64_t j = j0 + k, at = j * np + i0;
                        const vec g = pre_activation(at), u = pre_activation(H * np + at);
                        const vec sig = sigmoid(g), silu = g * sig;
                        const vec a = silu * u, da = load(daT.data + at);
                        dgate_sum += a * da;
                        const vec dwa = w * da;
                        d_gate[k] = dwa * u * (sig + silu * (1.0f - sig));
                        d_up[k] = dwa * silu;
                        store_tokens<BF16>(awT.data, j, np, i0, w * a);
                        if (BF16) {
                            store_tokens<BF16>(dhT.data, j, np, i0, d_gate[k]);
                            store_tokens<BF16>(dhT.data, H + j, np, i0, d_up[k]);
                        }
                    }
                    store_rows<BF16>(dh_rows, j0, np, i0, d_gate);
                    store_rows<BF16>(dh_rows, H + j0, np, i0, d_up);
                }
                for (int i = 0; i < LANES && i0 + i < n; i++)
                    out.dgate[r.slot[tile.first + i0 + i]] = dgate_sum[i];
            }

            float *dw_in = weights.gate_up(me, e), *dw_out = weights.down(me, e);
            const Right dy_n = summed_tokens(dy, token, n, dy_rows, dy_pairs.data);
            multiply<BF16>({awT.data, np / PER, 1, dy_n, H, D, words<BF16>(n)}, dw_out, D, add);
            const Right x_n = summed_tokens(x, token, n, x_rows, x_pairs.data);
            multiply<BF16>({dhT.data, np / PER, 1, x_n, 2 * H, D, words<BF16>(n)}, dw_in, D, add);
            for (int64_t i = 0; i < n; i++) rows[i] = my_dx + token[i] * D;
            multiply<BF16>({dh_rows, 1, np, w_in_columns, n, D, 2 * H / PER}, ScaledRows{rows, ones});
        }
    };
    return over_experts(
        l, TILE, 0, out.dx, [&](const Routing& r) { shares.emplace(l, r, out); },
        [&](int me) { x.round(me, l.threads), dy.round(me, l.threads); }, run,
        [&](int me) { shares->add_shares(me); });
}

}  // namespace
