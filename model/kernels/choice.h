// The router: sigmoid scores, group-limited top-K experts for each token, and their gates.
//
// Tokens are in the vector lanes, so that no comparison crosses lanes.
#pragma once

#include "team.h"
#include "vectors.h"

namespace {

// A NaN ranks below every number and above what was taken already.
constexpr float TAKEN = -INFINITY, NO_NUMBER = -1e38f;

// Each lane's running maximum over a list of vectors, and the index of the first that has it.
struct Largest {
    vec value;
    ivec number;

    void see(vec v, ivec i) {
        const ivec larger = v > value;
        value = larger_of(v, value);
        number = larger ? i : number;
    }
};

// Each lane's first index of its maximum over `count` vectors; those entries are then marked TAKEN.
inline ivec take_largest(float* values, int64_t count) {
    const int64_t half = count / 2;  // two independent chains of comparisons
    Largest low{load(values), ivec{}}, high{load(values + half * LANES), ivec{} + static_cast<int32_t>(half)};
    const float* upper = values + half * LANES;
    ivec i = low.number, j = high.number;
    for (int64_t at = 1; at < half; at++) {
        i += 1, j += 1;
        low.see(load(values + at * LANES), i);
        high.see(load(upper + at * LANES), j);
    }
    if (count % 2) high.see(load(values + (count - 1) * LANES), ivec{} + static_cast<int32_t>(count - 1));
    low.see(high.value, high.number);
    alignas(64) int32_t numbers[LANES];
    std::memcpy(numbers, &low.number, sizeof numbers);
    for (int lane = 0; lane < LANES; lane++) values[numbers[lane] * LANES + lane] = TAKEN;
    return low.number;
}

// Each lane's sum of its two largest values over n vectors.
inline vec best_two(const float* values, int64_t n) {
    vec first = splat(-INFINITY), second = first;
    for (int64_t i = 0; i < n; i++) {
        const vec v = load(values + i * LANES);
        second = larger_of(second, smaller_of(first, v));
        first = larger_of(first, v);
    }
    return larger_of(first + second, splat(2 * NO_NUMBER));
}

struct Choice {
    int64_t E, K, groups, kept;  // a group is ranked by the sum of its best two biased scores
    bool normalize;
    float scale;
    const float* bias;  // added for the selection only; or null

    double ns() const { return E * (1 + K / 8.0) * NS_A_NUMBER; }  // of a token
};

// Scores of n <= LANES tokens, and biased[E][LANES] for the selection.
inline void score_tokens(const Choice& c, int64_t n, const float* logits, float* scores, float* biased) {
    for (int64_t e0 = 0; e0 < c.E; e0 += LANES) {
        const int count = static_cast<int>(std::min<int64_t>(LANES, c.E - e0));
        vec r[LANES] = {};
        for (int64_t i = 0; i < n; i++) {
            r[i] = sigmoid(load_first(logits + i * c.E + e0, count));
            store_first(scores + i * c.E + e0, r[i], count);
        }
        transpose(r);
        for (int e = 0; e < count; e++) {
            const vec value = c.bias ? r[e] + c.bias[e0 + e] : r[e];
            store(biased + (e0 + e) * LANES, value == value ? value : splat(NO_NUMBER));
        }
    }
}

// scores [T, E], expert and gate [T, K] of the tokens in [begin, end).
inline void choose(const Choice& c, int64_t begin, int64_t end, const float* logits, float* scores, int64_t* expert,
                   float* gate) {
    const int64_t E = c.E, K = c.K, size = E / c.groups;
    Buffer biased(E * LANES), group_score(c.groups * LANES);
    for (int64_t t = begin; t < end; t += LANES) {
        const int64_t n = std::min<int64_t>(LANES, end - t);
        score_tokens(c, n, logits + t * E, scores + t * E, biased.data);
        if (c.kept < c.groups) {
            for (int64_t g = 0; g < c.groups; g++)
                store(group_score.data + g * LANES, best_two(biased.data + g * size * LANES, size));
            for (int64_t i = 0; i < c.kept; i++) take_largest(group_score.data, c.groups);
            for (int64_t g = 0; g < c.groups; g++) {  // a group that was taken stays in
                const ivec in = load(group_score.data + g * LANES) == splat(TAKEN);
                for (float* at = biased.data + g * size * LANES; at < biased.data + (g + 1) * size * LANES; at += LANES)
                    store(at, in ? load(at) : splat(TAKEN));
            }
        }
        float sum[LANES] = {};
        for (int64_t k = 0; k < K; k++) {
            alignas(64) int32_t chosen[LANES];
            const ivec numbers = take_largest(biased.data, E);
            std::memcpy(chosen, &numbers, sizeof chosen);
            for (int64_t i = 0; i < n; i++) {
                const float score = scores[(t + i) * E + chosen[i]];
                expert[(t + i) * K + k] = chosen[i];
                gate[(t + i) * K + k] = score;
                sum[i] += score;
            }
        }
        for (int64_t i = 0; i < n; i++) {
            const float factor = c.normalize ? c.scale / (sum[i] + 1e-20f) : c.scale;
            for (int64_t k = 0; k < K; k++) gate[(t + i) * K + k] *= factor;
        }
    }
}
// d_logits of the tokens in [begin, end) from the gradients of the gates and, unless null, of the scores.
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
