// Causal attention of the query heads of one sequence that share a key head, with QK-norm and the rotary embedding,
// forward and backward, reading the joint projection directly.
//
// Queries are in the vector lanes, a block at a time against all keys up to its end: the softmax then needs no
// reduction across lanes, a block's scores stay in L1, and nothing of size T*T is stored. Queries and keys are
// normalised and rotated as they are read, whole vectors of positions at a time; the backward pass does that again
// and recomputes the scores.
//
// "Columns" are [H][BLOCK] floats, positions in the lanes. "Rows" are [positions][width()], zero-padded from H to
// whole vectors, so that products have remainders only in their number of rows.
#pragma once

#include "team.h"
#include "vectors.h"

namespace {

constexpr int WIDE = 2;                  // vectors in a block
constexpr int64_t BLOCK = WIDE * LANES;  // positions
#if defined(WT_FEW_TILES)  // the sanitizer build
constexpr int MOST_ROWS = 3;
#else
constexpr int MOST_ROWS = 12;  // of a tile: its 24 sums and two vectors of the right factor fit in the registers
#endif

// C[MR, NR vectors] = (C +) A[MR, K] . B[K, NR vectors]
template <int MR, int NR, bool ADD>
void small_tile(const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row, int64_t K, float* c,
                int64_t c_row) {
    vec sum[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) sum[i][j] = ADD ? load(c + i * c_row + j * LANES) : vec{};
    for (int64_t k = 0; k < K; k++) {
        vec right[NR];
#pragma GCC unroll 2
        for (int j = 0; j < NR; j++) right[j] = load(b + j * LANES);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            const vec left = splat(a[i * a_row]);
#pragma GCC unroll 2
            for (int j = 0; j < NR; j++) sum[i][j] += left * right[j];
        }
        a += a_k;
        b += b_row;
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 2
        for (int j = 0; j < NR; j++) store(c + i * c_row + j * LANES, sum[i][j]);
}

template <int MR, int NR, bool ADD, class... Rest>
void small_tile_of(int rows, Rest... rest) {
    if constexpr (MR > 0) {
        if (rows == MR) return small_tile<MR, NR, ADD>(rest...);
        small_tile_of<MR - 1, NR, ADD>(rows, rest...);
    }
}

// C[M, NR vectors] for any M, in tiles as equal in height as possible.
template <int NR, bool ADD>
void small_product(int64_t M, const float* a, int64_t a_row, int64_t a_k, const float* b, int64_t b_row,
                   int64_t K, float* c, int64_t c_row) {
    const int64_t tiles = (M + MOST_ROWS - 1) / MOST_ROWS;
    for (int64_t tile = 0, i = 0; tile < tiles; tile++) {
        const int rows = static_cast<int>((M - i + tiles - tile - 1) / (tiles - tile));
        small_tile_of<MOST_ROWS, NR, ADD>(rows, a + i * a_row, a_row, a_k, b, b_row, K, c + i * c_row, c_row);
        i += rows;
    }
}

struct Attention {
    int64_t T, Q, G, H, R, table_row;
    const float *q_norm, *k_norm;  // H weights each, or both null
    const float *cos, *sin;
    float eps;

    int64_t row() const { return (Q + 2 * G) * H; }
    int64_t heads_per_key() const { return Q / G; }
    int64_t width() const { return round_up(H, LANES); }
    int64_t padded() const { return round_up(T, BLOCK); }
    double ns() const { return static_cast<double>(heads_per_key()) * T * T * H * NS_AN_ATTENDED; }  // of a key head
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(H)); }
};

// columns[h * BLOCK + i] = rows[i * stride + h] for i < count, else 0.
inline void to_columns(const float* rows, int64_t stride, int64_t count, int64_t H, float* columns) {
    for (int64_t i0 = 0; i0 < BLOCK; i0 += LANES)
        for (int64_t h0 = 0; h0 < H; h0 += LANES) {
            const int here = static_cast<int>(std::min<int64_t>(LANES, H - h0));
            vec r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = i0 + i < count ? load_first(rows + (i0 + i) * stride + h0, here) : vec{};
            transpose(r);
            for (int h = 0; h < here; h++) store(columns + (h0 + h) * BLOCK + i0, r[h]);
        }
}

// rows[i * stride + h] = columns[h * BLOCK + i] for i < count; `whole` also writes zeros up to a whole vector.
inline void to_rows(const float* columns, int64_t count, int64_t H, float* rows, int64_t stride, bool whole) {
    for (int64_t i0 = 0; i0 < count; i0 += LANES)
        for (int64_t h0 = 0; h0 < H; h0 += LANES) {
            const int here = static_cast<int>(std::min<int64_t>(LANES, H - h0));
            vec r[LANES];
            for (int h = 0; h < LANES; h++) r[h] = h < here ? load(columns + (h0 + h) * BLOCK + i0) : vec{};
            transpose(r);
            const int stored = whole ? LANES : here;
            for (int64_t i = 0; i < LANES && i0 + i < count; i++)
                store_first(rows + (i0 + i) * stride + h0, r[i], stored);
        }
}

// One thread's scratch, and its sums of the norms' gradients, a block for each of 2 H weights.
struct AttentionRoom {
    AttentionRoom(const Attention& a, bool backward)
        : keys(a.padded() * a.width()), values(a.padded() * a.width()), queries(a.H * BLOCK),
          raw(a.H * BLOCK), scores(a.padded() * BLOCK), mixed(a.H * BLOCK), cos(a.R * a.padded()),
          sin(a.R * a.padded()), query_rows(backward ? BLOCK * a.width() : 0),
          d_out(backward ? a.H * BLOCK : 0), d_out_rows(backward ? BLOCK * a.width() : 0),
          d_scores(backward ? a.padded() * BLOCK : 0), d_keys(backward ? a.padded() * a.width() : 0),
          d_values(backward ? a.padded() * a.width() : 0), d_norms(backward ? 2 * a.H * BLOCK : 0) {
        for (int64_t t = 0; t < a.T; t += BLOCK) {
            const int64_t count = std::min<int64_t>(BLOCK, a.T - t);
            to_columns(a.cos + t * a.table_row, a.table_row, count, a.R, cos.data + t * a.R);
            to_columns(a.sin + t * a.table_row, a.table_row, count, a.R, sin.data + t * a.R);
        }
        if (backward) {
            std::memset(d_norms.data, 0, 2 * a.H * BLOCK * sizeof(float));
            std::memset(query_rows.data, 0, BLOCK * a.width() * sizeof(float));
            std::memset(d_out_rows.data, 0, BLOCK * a.width() * sizeof(float));
        }
    }
    Buffer keys, values, queries, raw, scores, mixed, cos, sin;
    Buffer query_rows, d_out, d_out_rows, d_scores, d_keys, d_values, d_norms;
};

inline vec rms_inverse(const Attention& a, const float* columns) {
    vec sum{};
    for (int64_t h = 0; h < a.H; h++) sum += load(columns + h * BLOCK) * load(columns + h * BLOCK);
    sum = sum / static_cast<float>(a.H) + a.eps;
    return 1.0f / square_root(sum);
}

// Normalises, rotates and scales a block of queries or keys from position t.
inline void enter(const Attention& a, const AttentionRoom& room, const float* raw, int64_t t, bool key,
                  float scale, float* y) {
    const float* weight = key ? a.k_norm : a.q_norm;
    const float *cos = room.cos.data + t * a.R, *sin = room.sin.data + t * a.R;
    const int64_t half = a.R / 2;
    for (int j = 0; j < WIDE; j++, raw += LANES, y += LANES, cos += LANES, sin += LANES) {
        const vec factor = weight ? rms_inverse(a, raw) * scale : splat(scale);
        for (int64_t h = 0; h < a.H; h++) {
            const vec v = load(raw + h * BLOCK) * factor;
            store(y + h * BLOCK, weight ? v * weight[h] : v);
        }
        for (int64_t i = 0; i < half; i++) {
            const int64_t one = i * BLOCK, two = (i + half) * BLOCK;
            const vec first = load(y + one), second = load(y + two);
            store(y + one, first * load(cos + one) + second * load(sin + one));
            store(y + two, second * load(cos + two) + first * load(sin + two));
        }
    }
}

// The gradient of enter() with scale 1, in place: from that of its result to that of `raw`.
inline void enter_back(const Attention& a, AttentionRoom& room, const float* raw, int64_t t, bool key,
                       float* d) {
    const float *cos = room.cos.data + t * a.R, *sin = room.sin.data + t * a.R;
    const float* weight = key ? a.k_norm : a.q_norm;
    float* d_weight = room.d_norms.data + (key ? a.H * BLOCK : 0);
    const int64_t half = a.R / 2;
    for (int j = 0; j < WIDE; j++, raw += LANES, d += LANES, cos += LANES, sin += LANES, d_weight += LANES) {
        for (int64_t i = 0; i < half; i++) {
            const int64_t one = i * BLOCK, two = (i + half) * BLOCK;
            const vec first = load(d + one), second = load(d + two);
            store(d + one, first * load(cos + one) + second * load(sin + two));
            store(d + two, second * load(cos + two) + first * load(sin + one));
        }
        if (!weight) continue;
        // With m = x/rms and v = grad*weight: dx = (v - m*mean(v*m)) / rms; d_weight += grad*m.
        const vec inverse = rms_inverse(a, raw);
        vec along{};
        for (int64_t h = 0; h < a.H; h++) {
            const int64_t at = h * BLOCK;
            const vec grad = load(d + at), m = load(raw + at) * inverse;
            store(d_weight + at, load(d_weight + at) + grad * m);
            store(d + at, grad * weight[h]);
            along += grad * weight[h] * m;
        }
        along = along * inverse / static_cast<float>(a.H);
        for (int64_t h = 0; h < a.H; h++) {
            const int64_t at = h * BLOCK;
            store(d + at, (load(d + at) - load(raw + at) * along) * inverse);
        }
    }
}

// Keys and values of head g as rows.
inline void enter_keys(const Attention& a, const float* qkv, int64_t g, AttentionRoom& room) {
    const float *keys = qkv + (a.Q + g) * a.H, *values = keys + a.G * a.H;
    for (int64_t t = 0; t < a.T; t += BLOCK) {
        const int64_t count = std::min<int64_t>(BLOCK, a.T - t);
        to_columns(keys + t * a.row(), a.row(), count, a.H, room.raw.data);
        enter(a, room, room.raw.data, t, true, 1.0f, room.queries.data);
        to_rows(room.queries.data, count, a.H, room.keys.data + t * a.width(), a.width(), true);
    }
    for (int64_t t = 0; t < a.T; t++)
        std::memcpy(room.values.data + t * a.width(), values + t * a.row(), a.H * sizeof(float));
}

// rows[M][H] . columns
inline void against(const Attention& a, const float* rows, int64_t M, const float* columns, float* out) {
    small_product<WIDE, false>(M, rows, a.width(), 1, columns, BLOCK, a.H, out, BLOCK);
}

// columns of rows[M][H]^T . weights[M][BLOCK]
inline void summed(const Attention& a, const float* rows, int64_t M, const float* weights, float* columns) {
    small_product<WIDE, false>(a.H, rows, 1, a.width(), weights, BLOCK, M, columns, BLOCK);
}

// sums[M][H] += weights[M][BLOCK] . rows[BLOCK][H]
inline void spread(const Attention& a, const float* weights, int64_t M, const float* rows, float* sums) {
    const int64_t width = a.width();
    int64_t h = 0;
    for (; h + WIDE * LANES <= width; h += WIDE * LANES)
        small_product<WIDE, true>(M, weights, BLOCK, 1, rows + h, width, BLOCK, sums + h, width);
    if (h < width) small_product<1, true>(M, weights, BLOCK, 1, rows + h, width, BLOCK, sums + h, width);
}

// Reads the queries of head n from `first` and computes their scores with keys [0, end): scores[key][query].
inline void score(const Attention& a, const float* qkv, int64_t n, int64_t first, int64_t count, int64_t end,
                  AttentionRoom& room) {
    to_columns(qkv + first * a.row() + n * a.H, a.row(), count, a.H, room.raw.data);
    enter(a, room, room.raw.data, first, false, a.scale(), room.queries.data);
    against(a, room.keys.data, end, room.queries.data, room.scores.data);
}

// The lanes of a block's vector j whose query may attend to the block's key `key`.
inline ivec sees(int64_t key, int j) {
    ivec query;
    for (int i = 0; i < LANES; i++) query[i] = j * LANES + i;
    return query >= static_cast<int32_t>(key);
}

// mixed[T, Q*H] and log_sums[Q, T] (log-sum-exp of a query's scores) for the queries of key head g.
inline void attend(const Attention& a, const float* qkv, int64_t g, float* mixed, float* log_sums,
                   AttentionRoom& room) {
    const int64_t H = a.H, out = a.Q * H;
    enter_keys(a, qkv, g, room);
    for (int64_t n = g * a.heads_per_key(); n < (g + 1) * a.heads_per_key(); n++)
        for (int64_t first = 0; first < a.T; first += BLOCK) {
            const int64_t count = std::min<int64_t>(BLOCK, a.T - first), end = first + count;
            score(a, qkv, n, first, count, end, room);
            vec highest[WIDE], sum[WIDE];
            for (int j = 0; j < WIDE; j++) {
                float* scores = room.scores.data + j * LANES;
                highest[j] = splat(-INFINITY);
                for (int64_t key = 0; key < end; key++) {
                    vec s = load(scores + key * BLOCK);
                    if (key > first) {
                        s = sees(key - first, j) ? s : splat(-INFINITY);
                        store(scores + key * BLOCK, s);
                    }
                    highest[j] = s > highest[j] ? s : highest[j];
                }
                sum[j] = vec{};
                for (int64_t key = 0; key < end; key++) {
                    const vec weight = exp_of_difference(load(scores + key * BLOCK), highest[j]);
                    store(scores + key * BLOCK, weight);
                    sum[j] += weight;
                }
            }
            summed(a, room.values.data, end, room.scores.data, room.mixed.data);
            for (int64_t h = 0; h < H; h++)
                for (int j = 0; j < WIDE; j++) {
                    float* at = room.mixed.data + h * BLOCK + j * LANES;
                    store(at, load(at) / sum[j]);
                }
            to_rows(room.mixed.data, count, H, mixed + first * out + n * H, out, false);
            for (int64_t i = 0; i < count; i++)
                log_sums[n * a.T + first + i] =
                    highest[i / LANES][i % LANES] + std::log(sum[i / LANES][i % LANES]);
        }
}

// The parts of d_qkv that belong to key head g and its queries.
inline void attend_back(const Attention& a, const float* qkv, int64_t g, const float* log_sums,
                        const float* d_mixed, float* d_qkv, AttentionRoom& room) {
    const int64_t T = a.T, H = a.H, out = a.Q * H, width = a.width();
    enter_keys(a, qkv, g, room);
    std::memset(room.d_keys.data, 0, T * width * sizeof(float));
    std::memset(room.d_values.data, 0, T * width * sizeof(float));
    for (int64_t n = g * a.heads_per_key(); n < (g + 1) * a.heads_per_key(); n++)
        for (int64_t first = 0; first < T; first += BLOCK) {
            const int64_t count = std::min<int64_t>(BLOCK, T - first), end = first + count;
            score(a, qkv, n, first, count, end, room);
            to_columns(d_mixed + first * out + n * H, out, count, H, room.d_out.data);
            to_rows(room.queries.data, BLOCK, H, room.query_rows.data, width, true);
            to_rows(room.d_out.data, BLOCK, H, room.d_out_rows.data, width, true);
            against(a, room.values.data, end, room.d_out.data, room.d_scores.data);
            for (int j = 0; j < WIDE; j++) {
                float *weights = room.scores.data + j * LANES, *d_scores = room.d_scores.data + j * LANES;
                const int here = static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(LANES, count - j * LANES)));
                const vec log_sum = load_first(log_sums + n * T + first + j * LANES, here);
                vec along{};
                for (int64_t key = 0; key < end; key++) {
                    vec weight = exp_of_difference(load(weights + key * BLOCK), log_sum);
                    if (key > first) weight = sees(key - first, j) ? weight : vec{};
                    store(weights + key * BLOCK, weight);
                    along += weight * load(d_scores + key * BLOCK);
                }
                for (int64_t key = 0; key < end; key++) {
                    const vec d = load(d_scores + key * BLOCK) - along;
                    store(d_scores + key * BLOCK, load(weights + key * BLOCK) * d);
                }
            }
            // The scale is applied to the queries: their gradient still needs it, the keys' already has it.
            spread(a, room.scores.data, end, room.d_out_rows.data, room.d_values.data);
            spread(a, room.d_scores.data, end, room.query_rows.data, room.d_keys.data);
            float* d_query = room.mixed.data;
            summed(a, room.keys.data, end, room.d_scores.data, d_query);
            for (int64_t i = 0; i < H * BLOCK; i += LANES) store(d_query + i, load(d_query + i) * a.scale());
            enter_back(a, room, room.raw.data, first, false, d_query);
            to_rows(d_query, count, H, d_qkv + first * a.row() + n * H, a.row(), false);
        }
    for (int64_t t = 0; t < T; t += BLOCK) {
        const int64_t count = std::min<int64_t>(BLOCK, T - t), at = t * a.row() + (a.Q + g) * H;
        to_columns(qkv + at, a.row(), count, H, room.raw.data);
        to_columns(room.d_keys.data + t * width, width, count, H, room.queries.data);
        enter_back(a, room, room.raw.data, t, true, room.queries.data);
        to_rows(room.queries.data, count, H, d_qkv + at, a.row(), false);
        for (int64_t i = t; i < t + count; i++)
            std::memcpy(d_qkv + i * a.row() + (a.Q + a.G + g) * H, room.d_values.data + i * width,
                        H * sizeof(float));
    }
}

}  // namespace
