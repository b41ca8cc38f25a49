// The small operations between the matrix products of a step, each in one pass, fp32.
//
// At the widths of a ladder's small rungs a step is made of dispatch: what the framework does in five to
// twenty operations is one call here.

#include "rows.h"

namespace {

// What is no number comes after every number, and before what was taken.
constexpr float TAKEN = -INFINITY, NO_NUMBER = -1e38f;

// The first of the largest of `padded` values, a whole number of vectors.
inline int64_t first_largest(const float* values, int64_t padded) {
    ivec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    vec best = load(values);
    ivec where = lane;
    for (int64_t i = LANES; i < padded; i += LANES) {
        const vec v = load(values + i);
        const ivec larger = v > best;
        best = larger ? v : best;
        where = larger ? lane + static_cast<int32_t>(i) : where;
    }
#if defined(__AVX512F__)
    const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps((__m512)best));
    const __mmask16 equal = _mm512_cmp_ps_mask((__m512)best, most, _CMP_EQ_OQ);
    return _mm512_mask_reduce_min_epi32(equal, (__m512i)where);
#else
    int found = 0;
    for (int i = 1; i < LANES; i++)
        if (best[i] > best[found] || (best[i] == best[found] && where[i] < where[found])) found = i;
    return where[found];
#endif
}

// The sum of the two largest.
inline float best_two(const float* values, int64_t n) {
    float first = -INFINITY, second = -INFINITY;
    for (int64_t i = 0; i < n; i++) {
        second = std::max(second, std::min(first, values[i]));
        first = std::max(first, values[i]);
    }
    return std::max(first + second, 2 * NO_NUMBER);
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
        swiglu(gate_up + r * 2 * W, W, y + r * W);
}

void wt_swiglu_backward(int64_t rows, int64_t W, const float* grad, const float* gate_up, float* d_gate_up,
                        int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t r = 0; r < rows; r++)
        swiglu_backward(grad + r * W, gate_up + r * 2 * W, W, d_gate_up + r * 2 * W);
}

// Sigmoid scores, a choice of K experts from the best `kept` of `groups` groups (a group counts by the sum
// of its best two biased scores), and gates. bias may be null.
void wt_route(int64_t T, int64_t E, int64_t K, int64_t groups, int64_t kept, int32_t normalize,
              float scale, const float* logits, const float* bias, float* scores, int64_t* expert,
              float* gate) {
    const int64_t size = E / groups, padded = round_up(E, LANES), padded_groups = round_up(groups, LANES);
    Buffer biased(padded), left(padded), group_score(padded_groups);
    for (int64_t i = 0; i < T * E; i += LANES) {
        const int count = static_cast<int>(std::min<int64_t>(LANES, T * E - i));
        store_first(scores + i, sigmoid(load_first(logits + i, count)), count);
    }
    for (int64_t t = 0; t < T; t++) {
        const float* s = scores + t * E;
        for (int64_t e = 0; e < E; e++) {
            const float value = bias ? s[e] + bias[e] : s[e];
            biased.data[e] = value == value ? value : NO_NUMBER;
        }
        std::fill(biased.data + E, biased.data + padded, TAKEN);
        float* from = biased.data;
        if (kept < groups) {
            from = left.data;
            std::fill(left.data, left.data + padded, TAKEN);
            for (int64_t g = 0; g < padded_groups; g++)
                group_score.data[g] = g < groups ? best_two(biased.data + g * size, size) : TAKEN;
            for (int64_t i = 0; i < kept; i++) {
                const int64_t g = first_largest(group_score.data, padded_groups);
                group_score.data[g] = TAKEN;
                std::copy_n(biased.data + g * size, size, left.data + g * size);
            }
        }
        float sum = 0;
        for (int64_t k = 0; k < K; k++) {
            const int64_t e = first_largest(from, padded);
            from[e] = TAKEN;
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
