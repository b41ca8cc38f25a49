// A router's choice: sigmoid scores, K experts of each token from the best few groups, and their gates.
#pragma once

#include "team.h"
#include "vectors.h"

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

struct Choice {
    int64_t E, K, groups, kept;  // a group counts by the sum of its best two biased scores
    bool normalize;
    float scale;
    const float* bias;  // of the choice alone, or null

    double ns() const { return E * (1 + K / 4.0) * NS_A_NUMBER; }  // of a token
};

// scores [T, E], expert and gate [T, K] of the tokens in [begin, end).
inline void choose(const Choice& c, int64_t begin, int64_t end, const float* logits, float* scores, int64_t* expert,
                   float* gate) {
    const int64_t E = c.E, K = c.K, size = E / c.groups;
    const int64_t padded = round_up(E, LANES), padded_groups = round_up(c.groups, LANES);
    Buffer biased(padded), left(padded), group_score(padded_groups);
    for (int64_t i = begin * E; i < end * E; i += LANES) {
        const int count = static_cast<int>(std::min<int64_t>(LANES, end * E - i));
        store_first(scores + i, sigmoid(load_first(logits + i, count)), count);
    }
    for (int64_t t = begin; t < end; t++) {
        const float* s = scores + t * E;
        for (int64_t e = 0; e < E; e++) {
            const float value = c.bias ? s[e] + c.bias[e] : s[e];
            biased.data[e] = value == value ? value : NO_NUMBER;
        }
        std::fill(biased.data + E, biased.data + padded, TAKEN);
        float* from = biased.data;
        if (c.kept < c.groups) {
            from = left.data;
            std::fill(left.data, left.data + padded, TAKEN);
            for (int64_t g = 0; g < padded_groups; g++)
                group_score.data[g] = g < c.groups ? best_two(biased.data + g * size, size) : TAKEN;
            for (int64_t i = 0; i < c.kept; i++) {
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
        const float factor = c.normalize ? c.scale / (sum + 1e-20f) : c.scale;
        for (int64_t k = 0; k < K; k++) gate[t * K + k] *= factor;
    }
}

// d_logits of the tokens in [begin, end) from the gradients of the gates and (or null) of the scores.
inline void choose_backward(const Choice& c, int64_t begin, int64_t end, const float* scores, const int64_t* expert,
                            const float* d_gate, const float* d_scores, float* d_logits) {
    const int64_t E = c.E, K = c.K;
    for (int64_t t = begin; t < end; t++) {
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
            out[chosen[k]] += c.normalize ? c.scale * (grad[k] - along / sum) / sum : c.scale * grad[k];
        if (d_scores) {
            for (int64_t e = 0; e < E; e++) out[e] *= s[e] * (1.0f - s[e]);
        } else {
            for (int64_t k = 0; k < K; k++) out[chosen[k]] *= s[chosen[k]] * (1.0f - s[chosen[k]]);
        }
    }
}

}  // namespace
