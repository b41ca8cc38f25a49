// The small operations between the matrix products of a step, each in one pass, fp32.
//
// At the widths of a ladder's small rungs a step is made of dispatch: what the framework does in five to
// twenty operations is one call here. Rows are cut into one contiguous range a thread and the threads'
// sums are added in their order, so a result depends on the number of threads alone.

#include <omp.h>

#include <memory>
#include <vector>

#include "vectors.h"

namespace {

inline float dot(const float* a, const float* b, int64_t n) {
    vec sum{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += load(a + i) * load(b + i);
    if (i < n) {
        const int tail = static_cast<int>(n - i);
        sum += load_first(a + i, tail) * load_first(b + i, tail);
    }
    return sum_lanes(sum);
}

inline float rms_inverse(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
}

// y = x / rms(x) * weight
inline void norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
    const float inverse = rms_inverse(x, n, eps);
    for (int64_t i = 0; i < n; i++) y[i] = x[i] * inverse * weight[i];
}

// With m = x/rms and v = grad*weight: dx = (v - m*mean(v*m)) / rms; d_weight += grad*m. `v` is scratch.
inline void norm_backward(const float* grad, const float* x, const float* weight, int64_t n, float eps,
                          float* dx, float* d_weight, float* v) {
    const float inverse = rms_inverse(x, n, eps);
    for (int64_t i = 0; i < n; i++) v[i] = grad[i] * weight[i];
    const float along = dot(v, x, n) * inverse * inverse / static_cast<float>(n);
    for (int64_t i = 0; i < n; i++) d_weight[i] += grad[i] * (x[i] * inverse);
    for (int64_t i = 0; i < n; i++) dx[i] = (v[i] - x[i] * along) * inverse;
}

// Calls work(from, to, sums) for each thread's range of rows, and leaves the threads' `count` sums in out.
template <class Work>
void by_rows(int64_t rows, int64_t count, float* out, int threads, Work work) {
    std::vector<std::unique_ptr<Buffer>> sums(threads);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        sums[me] = std::make_unique<Buffer>(count);
        std::memset(sums[me]->data, 0, count * sizeof(float));
        work(rows * me / threads, rows * (me + 1) / threads, sums[me]->data);
    }
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (const auto& part : sums) sum += part->data[i];
        out[i] = sum;
    }
}

// y = x*cos + swapped(x)*sin over the first R of H dimensions (their halves swapped), the rest as it is.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t R, int64_t H, float* y) {
    const int64_t half = R / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        y[i] = first * cos[i] + second * sin[i];
        y[i + half] = second * cos[i + half] + first * sin[i + half];
    }
    for (int64_t i = R; i < H; i++) y[i] = x[i];
}

// The transpose: dx = dy*cos + swapped(dy*sin).
inline void rotate_backward(const float* dy, const float* cos, const float* sin, int64_t R, int64_t H,
                            float* dx) {
    const int64_t half = R / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = dy[i], second = dy[i + half];
        dx[i] = first * cos[i] + second * sin[i + half];
        dx[i + half] = second * cos[i + half] + first * sin[i];
    }
    for (int64_t i = R; i < H; i++) dx[i] = dy[i];
}

// Heads of a position: Q queries, then G keys, then G values, each H wide.
struct Heads {
    int64_t T, Q, G, H, R;
    int64_t row() const { return (Q + 2 * G) * H; }
    // Where head n of position t of sequence b lies in [B, heads of its kind, T, H].
    int64_t at(int64_t b, int64_t t, int64_t n) const {
        const bool query = n < Q;
        const int64_t kind = query ? Q : G, index = query ? n : n < Q + G ? n - Q : n - Q - G;
        return ((b * kind + index) * T + t) * H;
    }
};

// The largest of the candidates that is not taken yet; the first of equals, and of NaNs.
inline int64_t best_left(const float* value, const uint8_t* taken, int64_t n) {
    int64_t best = -1;
    for (int64_t i = 0; i < n; i++)
        if (!taken[i] && (best < 0 || value[i] > value[best])) best = i;
    return best;
}

}  // namespace

extern "C" {

void wt_norm_forward(int64_t rows, int64_t D, const float* x, const float* weight, float eps, float* y,
                     int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++) norm(x + r * D, weight, D, eps, y + r * D);
}

void wt_norm_backward(int64_t rows, int64_t D, const float* grad, const float* x, const float* weight,
                      float eps, float* dx, float* d_weight, int32_t threads) {
    by_rows(rows, D, d_weight, threads, [&](int64_t from, int64_t to, float* sums) {
        Buffer v(D);
        for (int64_t r = from; r < to; r++)
            norm_backward(grad + r * D, x + r * D, weight, D, eps, dx + r * D, sums, v.data);
    });
}

// y[r, i] = silu(gate) * up of gate_up [rows, 2W], gates in the first half of a row.
void wt_swiglu_forward(int64_t rows, int64_t W, const float* gate_up, float* y, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < W; i += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, W - i));
            const float* at = gate_up + r * 2 * W + i;
            const vec g = load_first(at, count);
            store_first(y + r * W + i, g * sigmoid(g) * load_first(at + W, count), count);
        }
}

void wt_swiglu_backward(int64_t rows, int64_t W, const float* grad, const float* gate_up, float* d_gate_up,
                        int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < W; i += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, W - i));
            const int64_t at = r * 2 * W + i;
            const vec g = load_first(gate_up + at, count), dy = load_first(grad + r * W + i, count);
            const vec sig = sigmoid(g), silu = g * sig;
            const vec d_gate = dy * load_first(gate_up + at + W, count) * (sig + silu * (1.0f - sig));
            store_first(d_gate_up + at, d_gate, count);
            store_first(d_gate_up + at + W, dy * silu, count);
        }
}

// From the joint projection [B, T, Q+2G, H] to normalised and rotated q [B, Q, T, H], k [B, G, T, H] and
// v [B, G, T, H]. cos and sin of position t start at t*table_row. weights: q's H, then k's H, or null.
void wt_prologue_forward(int64_t B, int64_t T, int64_t Q, int64_t G, int64_t H, int64_t R,
                         int64_t table_row, const float* qkv, const float* weights, float eps,
                         const float* cos, const float* sin, float* q, float* k, float* v,
                         int32_t threads) {
    const Heads heads{T, Q, G, H, R};
#pragma omp parallel num_threads(threads)
    {
        Buffer normed(H);
#pragma omp for schedule(static)
        for (int64_t r = 0; r < B * T; r++) {
            const int64_t b = r / T, t = r % T;
            for (int64_t n = 0; n < Q + 2 * G; n++) {
                const float* x = qkv + r * heads.row() + n * H;
                const int64_t at = heads.at(b, t, n);
                if (n >= Q + G) {
                    std::memcpy(v + at, x, H * sizeof(float));
                    continue;
                }
                if (weights) {
                    norm(x, weights + (n < Q ? 0 : H), H, eps, normed.data);
                    x = normed.data;
                }
                rotate(x, cos + t * table_row, sin + t * table_row, R, H, (n < Q ? q : k) + at);
            }
        }
    }
}

void wt_prologue_backward(int64_t B, int64_t T, int64_t Q, int64_t G, int64_t H, int64_t R,
                          int64_t table_row, const float* qkv, const float* weights, float eps,
                          const float* cos, const float* sin, const float* dq, const float* dk,
                          const float* dv, float* d_qkv, float* d_weights, int32_t threads) {
    const Heads heads{T, Q, G, H, R};
    by_rows(B * T, weights ? 2 * H : 0, d_weights, threads, [&](int64_t from, int64_t to, float* sums) {
        Buffer turned(H), scratch(H);
        for (int64_t r = from; r < to; r++) {
            const int64_t b = r / T, t = r % T;
            for (int64_t n = 0; n < Q + 2 * G; n++) {
                const int64_t in = r * heads.row() + n * H, at = heads.at(b, t, n);
                if (n >= Q + G) {
                    std::memcpy(d_qkv + in, dv + at, H * sizeof(float));
                    continue;
                }
                float* back = weights ? turned.data : d_qkv + in;
                rotate_backward((n < Q ? dq : dk) + at, cos + t * table_row, sin + t * table_row, R, H,
                                back);
                if (weights) {
                    const int64_t kind = n < Q ? 0 : H;
                    norm_backward(back, qkv + in, weights + kind, H, eps, d_qkv + in, sums + kind,
                                  scratch.data);
                }
            }
        }
    });
}

// Sigmoid scores, a choice of K experts from the best `kept` of `groups` groups (a group counts by the sum
// of its best two biased scores), and gates. bias may be null.
void wt_route(int64_t T, int64_t E, int64_t K, int64_t groups, int64_t kept, int32_t normalize,
              float scale, const float* logits, const float* bias, float* scores, int64_t* expert,
              float* gate) {
    const int64_t size = E / groups;
    std::vector<float> biased(E), group_score(groups);
    std::vector<uint8_t> taken(E), group_kept(groups);
    for (int64_t i = 0; i < T * E; i += LANES) {
        const int left = static_cast<int>(std::min<int64_t>(LANES, T * E - i));
        store_first(scores + i, sigmoid(load_first(logits + i, left)), left);
    }
    for (int64_t t = 0; t < T; t++) {
        const float* s = scores + t * E;
        for (int64_t e = 0; e < E; e++) biased[e] = bias ? s[e] + bias[e] : s[e];
        std::fill(taken.begin(), taken.end(), kept < groups);
        if (kept < groups) {
            for (int64_t g = 0; g < groups; g++) {
                float first = -INFINITY, second = -INFINITY;
                for (int64_t e = g * size; e < (g + 1) * size; e++) {
                    second = std::max(second, std::min(first, biased[e]));
                    first = std::max(first, biased[e]);
                }
                group_score[g] = first + second;
            }
            std::fill(group_kept.begin(), group_kept.end(), 0);
            for (int64_t i = 0; i < kept; i++) {
                const int64_t g = best_left(group_score.data(), group_kept.data(), groups);
                group_kept[g] = 1;
                std::fill_n(taken.begin() + g * size, size, 0);
            }
        }
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
            const int64_t e = best_left(biased.data(), taken.data(), E);
            taken[e] = 1;
            expert[t * K + k] = e;
            gate[t * K + k] = s[e];
            sum += s[e];
        }
        const float factor = normalize ? scale / (sum + 1e-20f) : scale;
        for (int64_t k = 0; k < K; k++) gate[t * K + k] *= factor;
    }
}

// d_logits from the gates' gradients and (or null) the scores'.
void wt_route_backward(int64_t T, int64_t E, int64_t K, int32_t normalize, float scale,
                       const float* scores, const int64_t* expert, const float* d_gate,
                       const float* d_scores, float* d_logits) {
    for (int64_t t = 0; t < T; t++) {
        const float *s = scores + t * E, *grad = d_gate + t * K;
        const int64_t* chosen = expert + t * K;
        float* out = d_logits + t * E;
        if (d_scores)
            std::memcpy(out, d_scores + t * E, E * sizeof(float));
        else
            std::memset(out, 0, E * sizeof(float));
        float sum = 0, along = 0;
        for (int64_t k = 0; k < K; k++) {
            sum += s[chosen[k]];
            along += s[chosen[k]] * grad[k];
        }
        sum += 1e-20f;
        for (int64_t k = 0; k < K; k++)
            out[chosen[k]] += normalize ? scale * (grad[k] - along / sum) / sum : scale * grad[k];
        if (d_scores) {
            for (int64_t e = 0; e < E; e++) out[e] *= s[e] * (1.0f - s[e]);
        } else {
            for (int64_t k = 0; k < K; k++) out[chosen[k]] *= s[chosen[k]] * (1.0f - s[chosen[k]]);
        }
    }
}

}  // extern "C"
