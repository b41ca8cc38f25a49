// Causal attention of one sequence's group of heads that share a key head, from the joint projection
// and back, with the norms of queries and keys and their rotation.
//
// A block of queries against all keys before its end: the scores of a block stay in the cache, so nothing
// of size T*T exists, and no running maximum is needed. Queries and keys are normalised and rotated on
// their way in, and again in the backward pass, which computes the scores again too.
#pragma once

#include "products.h"
#include "rows.h"

namespace {

constexpr int64_t QUERIES = 32;  // of a block

struct Attention {
    int64_t T, Q, G, H, R, table_row;
    const float *norms, *cos, *sin;  // norms: the queries' H weights, then the keys', or null
    float eps;

    int64_t row() const { return (Q + 2 * G) * H; }
    int64_t heads_per_key() const { return Q / G; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(H)); }
    int64_t padded() const { return round_up(T, LANES); }

    // A query's or key's place in attention: normalised, rotated. `normed` is scratch of H.
    void enter(const float* x, int64_t t, bool key, float* normed, float* y) const {
        if (norms) {
            norm(x, norms + (key ? H : 0), H, eps, normed);
            x = normed;
        }
        rotate(x, cos + t * table_row, sin + t * table_row, R, H, y);
    }

    // Gradient of enter(); that of the norms' weights is added to d_norms. `scratch`: 2 H.
    void enter_back(const float* dy, const float* x, int64_t t, bool key, float* dx, float* d_norms,
                    float* scratch) const {
        float* turned = norms ? scratch : dx;
        rotate_backward(dy, cos + t * table_row, sin + t * table_row, R, H, turned);
        const int64_t kind = key ? H : 0;
        if (norms) norm_backward(turned, x, norms + kind, H, eps, dx, d_norms + kind, scratch + H);
    }
};

// columns[h * stride + t] = rows[t * row_stride + h]; zero from T to the next whole vector.
inline void to_columns(const float* rows, int64_t row_stride, int64_t T, int64_t H, float* columns,
                       int64_t stride) {
    for (int64_t t0 = 0; t0 < T; t0 += LANES)
        for (int64_t h0 = 0; h0 < H; h0 += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, H - h0));
            vec r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = t0 + i < T ? load_first(rows + (t0 + i) * row_stride + h0, count) : vec{};
            transpose(r);
            for (int h = 0; h < count; h++) store(columns + (h0 + h) * stride + t0, r[h]);
        }
}

inline float max_lanes(vec v) {
    float most = v[0];
    for (int i = 1; i < LANES; i++) most = std::max(most, v[i]);
    return most;
}

// The first `count` scores of a row become weights that add up to the returned sum, those from there to
// `end` zero; `highest` is subtracted from each before its exponential.
inline float to_weights(float* row, int64_t count, int64_t end, float highest) {
    const vec most = splat(highest);
    vec sum{};
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const vec weight = exponential(load(row + i) - most);
        store(row + i, weight);
        sum += weight;
    }
    for (; i < end; i += LANES) {
        const int here = static_cast<int>(std::min<int64_t>(LANES, end - i));
        const int kept = static_cast<int>(std::max<int64_t>(0, std::min<int64_t>(LANES, count - i)));
        float lanes[LANES] = {};
        store(lanes, exponential(load_first(row + i, here) - most));
        const vec weight = load_first(lanes, kept);
        store_first(row + i, weight, here);
        sum += weight;
    }
    return sum_lanes(sum);
}

inline float highest_of(const float* row, int64_t count) {
    vec most = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= count; i += LANES) {
        const vec v = load(row + i);
        most = v > most ? v : most;
    }
    float found = max_lanes(most);
    for (; i < count; i++) found = std::max(found, row[i]);
    return found;
}

// Scratch of one thread.
struct AttentionRoom {
    explicit AttentionRoom(const Attention& a, bool backward)
        : keys(a.T * a.H), key_columns(a.padded() * a.H), values(a.T * a.H), queries(QUERIES * a.H),
          scores(QUERIES * a.padded()), value_columns(backward ? a.padded() * a.H : 0),
          d_scores(backward ? QUERIES * a.padded() : 0), d_keys(backward ? a.T * a.H : 0),
          d_values(backward ? a.T * a.H : 0), d_queries(backward ? QUERIES * a.H : 0), row(3 * a.H) {}
    Buffer keys, key_columns, values, queries, scores;
    Buffer value_columns, d_scores, d_keys, d_values, d_queries, row;
};

inline void enter_keys(const Attention& a, const float* qkv, int64_t g, AttentionRoom& room) {
    for (int64_t t = 0; t < a.T; t++)
        a.enter(qkv + t * a.row() + (a.Q + g) * a.H, t, true, room.row.data, room.keys.data + t * a.H);
    to_columns(room.keys.data, a.H, a.T, a.H, room.key_columns.data, a.padded());
}

// Queries from `first`, `count` of them, with the scale on them; then their scores against keys to `end`.
inline void score(const Attention& a, const float* qkv, int64_t n, int64_t first, int64_t count,
                  AttentionRoom& room) {
    const float scale = a.scale();
    for (int64_t i = 0; i < count; i++) {
        float* query = room.queries.data + i * a.H;
        a.enter(qkv + (first + i) * a.row() + n * a.H, first + i, false, room.row.data, query);
        for (int64_t h = 0; h < a.H; h++) query[h] *= scale;
    }
    const int64_t P = a.padded();
    multiply<false>({room.queries.data, a.H, 1, {room.key_columns.data, P, nullptr}, count, first + count,
                     a.H, {room.scores.data, P, nullptr, nullptr, false}});
}

// mixed[T, Q*H] and log_sums[Q, T] (of the exponentials of a query's scores) of key head g's queries.
inline void attend(const Attention& a, const float* qkv, int64_t g, float* mixed, float* log_sums,
                   AttentionRoom& room) {
    const int64_t H = a.H, P = a.padded(), out = a.Q * H;
    enter_keys(a, qkv, g, room);
    const float* values = qkv + (a.Q + a.G + g) * H;
    for (int64_t t = 0; t < a.T; t++)
        std::memcpy(room.values.data + t * H, values + t * a.row(), H * sizeof(float));
    for (int64_t n = g * a.heads_per_key(); n < (g + 1) * a.heads_per_key(); n++)
        for (int64_t first = 0; first < a.T; first += QUERIES) {
            const int64_t count = std::min(QUERIES, a.T - first), end = first + count;
            score(a, qkv, n, first, count, room);
            float inverse[QUERIES];
            for (int64_t i = 0; i < count; i++) {
                float* row = room.scores.data + i * P;
                const float highest = highest_of(row, first + i + 1);
                const float sum = to_weights(row, first + i + 1, end, highest);
                inverse[i] = 1.0f / sum;
                log_sums[n * a.T + first + i] = highest + std::log(sum);
            }
            multiply<false>({room.scores.data, P, 1, {room.values.data, H, nullptr}, count, H, end,
                             {mixed + first * out + n * H, out, nullptr, inverse, false}});
        }
}

// d_qkv's parts of key head g and its queries; the norms' gradients are added to d_norms.
inline void attend_back(const Attention& a, const float* qkv, int64_t g, const float* mixed,
                        const float* log_sums, const float* d_mixed, float* d_qkv, float* d_norms,
                        AttentionRoom& room) {
    const int64_t T = a.T, H = a.H, P = a.padded(), out = a.Q * H;
    enter_keys(a, qkv, g, room);
    to_columns(qkv + (a.Q + a.G + g) * H, a.row(), T, H, room.value_columns.data, P);
    std::memset(room.d_keys.data, 0, T * H * sizeof(float));
    std::memset(room.d_values.data, 0, T * H * sizeof(float));
    for (int64_t n = g * a.heads_per_key(); n < (g + 1) * a.heads_per_key(); n++)
        for (int64_t first = 0; first < T; first += QUERIES) {
            const int64_t count = std::min(QUERIES, T - first), end = first + count;
            const float* d_out = d_mixed + first * out + n * H;
            score(a, qkv, n, first, count, room);
            multiply<false>({d_out, out, 1, {room.value_columns.data, P, nullptr}, count, end, H,
                             {room.d_scores.data, P, nullptr, nullptr, false}});
            for (int64_t i = 0; i < count; i++) {
                float *weights = room.scores.data + i * P, *d_row = room.d_scores.data + i * P;
                to_weights(weights, first + i + 1, end, log_sums[n * T + first + i]);
                const float along = dot(d_out + i * out, mixed + (first + i) * out + n * H, H);
                for (int64_t s = 0; s < end; s++) d_row[s] = weights[s] * (d_row[s] - along);
            }
            // dV += W^T dO, dK += dS^T q (which has the scale), dq = scale dS K
            multiply<false>({room.scores.data, 1, P, {d_out, out, nullptr}, end, H, count,
                             {room.d_values.data, H, nullptr, nullptr, true}});
            multiply<false>({room.d_scores.data, 1, P, {room.queries.data, H, nullptr}, end, H, count,
                             {room.d_keys.data, H, nullptr, nullptr, true}});
            multiply<false>({room.d_scores.data, P, 1, {room.keys.data, H, nullptr}, count, H, end,
                             {room.d_queries.data, H, nullptr, nullptr, false}});
            const float scale = a.scale();
            for (int64_t i = 0; i < count; i++) {
                float* dq = room.d_queries.data + i * H;
                for (int64_t h = 0; h < H; h++) dq[h] *= scale;
                const int64_t at = (first + i) * a.row() + n * H;
                a.enter_back(dq, qkv + at, first + i, false, d_qkv + at, d_norms, room.row.data);
            }
        }
    for (int64_t t = 0; t < T; t++) {
        const int64_t at = t * a.row() + (a.Q + g) * H;
        a.enter_back(room.d_keys.data + t * H, qkv + at, t, true, d_qkv + at, d_norms, room.row.data);
        std::memcpy(d_qkv + at + a.G * H, room.d_values.data + t * H, H * sizeof(float));
    }
}

}  // namespace
