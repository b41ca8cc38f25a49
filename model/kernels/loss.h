// What the ways to compute the output layer's loss share: its arguments and results.
#pragma once

#include "vectors.h"

namespace {

// For N positions; null results are not computed. weights: per position, 1 if null.
struct Loss {
    int64_t N, D, V;
    const float *hidden, *output;
    const int64_t* target;
    const float* weights;
    float *nats, *d_hidden, *d_output;
};

// What a panel of the vocabulary left of each position of a block: arrays [panels][held], and the right word's logit.
struct PanelSums {
    int64_t panels, held;
    const float *largest, *sum;  // of its logits, and of their exponentials relative to the largest
    const float* right_score;    // [held]
};

// The losses of n positions from `first` on, and factor [panels][held] that turns a panel's exponentials into weighted
// probabilities; 0 in lanes beyond n whose sums are there too.
inline void normalise(const Loss& l, int64_t first, int64_t n, const PanelSums& s, float* factor) {
    for (int64_t i = 0; i < n; i += LANES) {
        vec most = load(s.largest + i), all_sum{};
        for (int64_t p = 1; p < s.panels; p++) most = larger_of(load(s.largest + p * s.held + i), most);
        for (int64_t p = 0; p < s.panels; p++) {
            const int64_t at = p * s.held + i;
            const vec by = exp_of_difference(load(s.largest + at), most);
            store(factor + at, by);
            all_sum += load(s.sum + at) * by;
        }
        const int count = static_cast<int>(std::min<int64_t>(LANES, n - i));
        float weight[LANES] = {};
        for (int r = 0; r < count; r++) weight[r] = l.weights ? l.weights[first + i + r] : 1.0f;
        for (int64_t p = 0; p < s.panels; p++) {
            float* at = factor + p * s.held + i;
            store(at, load(at) / all_sum * load(weight));
        }
        if (l.nats)
            for (int r = 0; r < count; r++)
                l.nats[first + i + r] = most[r] + std::log(all_sum[r]) - s.right_score[i + r];
    }
}

}  // namespace
