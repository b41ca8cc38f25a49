// The output layer and its cross-entropy, a block of positions at a time, fp32. With bf16 the factors of its
// products are rounded to bfloat16.
//
// A block's logits are computed, turned into probabilities in place and, if gradients are wanted, multiplied right
// away: logits are computed once, and no more than a block of them is ever held. Gradients are those of the sum of
// all losses; a mean, or any uniform weight, is a factor on them.

#include "linear.h"
#include "loss_panels.h"
#include "loss_tiles.h"
#include "rows.h"

namespace {

// Logits held at once, two megabytes: the best of 2^18, 2^19 and 2^20 for vocabularies of 4,096 and 16,384.
constexpr int64_t BLOCK_SCORES = 1 << 19, LEAST_POSITIONS = 16;
constexpr int64_t MOST_PACKED = 1 << 24;  // weights of the layer: packed both ways they take three times the memory

// Whether fp32 logits are made and used a panel of the vocabulary at a time. With our own products that pays as soon as
// a block has fewer than 128 positions (LOG.md, 2026-11-27).
bool takes_panels(int64_t V) { return !sgemm && BLOCK_SCORES / V < 128; }

// Turns logits into probabilities; returns their log-sum-exp.
inline float to_probabilities(float* row, int64_t V) {
    vec most = splat(-INFINITY);
    int64_t i = 0;
    for (; i + LANES <= V; i += LANES) {
        const vec v = load(row + i);
        most = v > most ? v : most;
    }
    float highest = -INFINITY;
    for (int lane = 0; lane < LANES; lane++) highest = std::max(highest, most[lane]);
    for (; i < V; i++) highest = std::max(highest, row[i]);
    vec sum{};
    for (i = 0; i + LANES <= V; i += LANES) {
        const vec e = exp_of_difference(load(row + i), splat(highest));
        store(row + i, e);
        sum += e;
    }
    float all = sum_lanes(sum);
    if (i < V) {
        const int tail = static_cast<int>(V - i);
        store_first(row + i, exp_of_difference(load_first(row + i, tail), splat(highest)), tail);
        for (; i < V; i++) all += row[i];
    }
    const float inverse = 1.0f / all;
    for (i = 0; i < V; i++) row[i] *= inverse;
    return highest + std::log(all);
}

// The products of the output layer for a block of positions.
struct OutputLayer {
    int64_t D, V;
    const float* weights;
    float* d_weights;  // or null
    How how;

    void scores(int64_t count, const float* hidden, float* scores) const {
        linear(count, V, D, hidden, weights, scores, false, how);
    }
    void gradients(int64_t count, const float* d_scores, const float* hidden, float* d_hidden, bool first) const {
        linear_back(count, V, D, d_scores, weights, d_hidden, false, how);
        linear_weight(count, V, D, d_scores, hidden, d_weights, !first, how);
    }
};

// The loss of each position in nats and the gradients of sum_n weight_n * nats_n (each may be null; weight 1 if null).
void nats_and_gradients(int64_t N, int64_t D, int64_t V, const float* hidden, const float* output,
                        const int64_t* target, const float* weights, float* nats, float* d_hidden,
                        float* d_output, How how) {
    const Loss loss{N, D, V, hidden, output, target, weights, nats, d_hidden, d_output};
#if defined(__AVX512BF16__)
    if (V * D <= MOST_PACKED) {
        if (how.bf16) return LossOnTiles<1>(loss).run(how.threads);
        if (tiles_multiply(N, V, D)) return LossOnTiles<3>(loss).run(how.threads);
    }
#endif
    if (!how.bf16 && takes_panels(V)) return LossInPanels(loss).run(how.threads);
    const OutputLayer layer{D, V, output, d_output, how};
    const int64_t at_once = std::max(LEAST_POSITIONS, BLOCK_SCORES / V);
    Buffer scores(std::min(N, at_once) * V);
    for (int64_t first = 0; first < N; first += at_once) {
        const int64_t count = std::min(at_once, N - first);
        const float* rows = hidden + first * D;
        layer.scores(count, rows, scores.data);
        share_rows(count, 2 * V * NS_A_NUMBER, how.threads, [&](int64_t from, int64_t to) {
            for (int64_t r = from; r < to; r++) {
                float* row = scores.data + r * V;
                const int64_t right = target[first + r];
                const float score = row[right];
                const float log_sum = to_probabilities(row, V);
                if (nats) nats[first + r] = log_sum - score;
                row[right] -= 1.0f;
                if (weights)
                    for (int64_t i = 0; i < V; i++) row[i] *= weights[first + r];
            }
        });
        if (d_hidden) layer.gradients(count, scores.data, rows, d_hidden + first * D, first == 0);
    }
}

void scaled(const float* from, float factor, int64_t count, float* to, int threads) {
    share_rows(count, NS_A_NUMBER, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) to[i] = from[i] * factor;
    });
}

}  // namespace

extern "C" {

int32_t wt_takes_panels(int64_t V) { return takes_panels(V); }

// Returns 0, or 1 if a target is outside the vocabulary and nothing was computed. Without d_hidden no gradients.
int32_t wt_nats_forward(int64_t N, int64_t D, int64_t V, const float* hidden, const float* output,
                        const int64_t* target, float* nats, float* d_hidden, float* d_output,
                        int32_t bf16, int32_t threads) {
    for (int64_t n = 0; n < N; n++)
        if (target[n] < 0 || target[n] >= V) return 1;
    nats_and_gradients(N, D, V, hidden, output, target, nullptr, nats, d_hidden, d_output, {threads, bf16 != 0});
    return 0;
}

// sum_d_hidden, sum_d_output: the forward pass's gradients, which serve if every position has the same weight.
int32_t wt_nats_backward(int64_t N, int64_t D, int64_t V, const float* hidden, const float* output,
                         const int64_t* target, const float* sum_d_hidden, const float* sum_d_output,
                         const float* weights, float* d_hidden, float* d_output, int32_t bf16, int32_t threads) {
    if (std::all_of(weights, weights + N, [&](float w) { return w == weights[0]; })) {
        scaled(sum_d_hidden, weights[0], N * D, d_hidden, threads);
        scaled(sum_d_output, weights[0], V * D, d_output, threads);
    } else {
        nats_and_gradients(N, D, V, hidden, output, target, weights, nullptr, d_hidden, d_output,
                           {threads, bf16 != 0});
    }
    return 0;
}

}  // extern "C"
