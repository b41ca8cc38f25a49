// Muon over all hidden matrices: momentum, five Newton-Schulz iterations and the update of a matrix in one visit.
//
// A matrix stays in one thread's cache from its gradient to its new weights; matrices are handed to whichever
// thread is free. None depends on another, so no result depends on the number of threads.

#include <atomic>
#include <vector>

#include "newton_schulz.h"
#include "team.h"

namespace {

struct Rule {
    float momentum, decay, rate;
};

// The momentum takes in the gradient; what is to be orthogonalised goes to x.
void take_in(const Shape& shape, float* momentum, const float* grad, const Rule& rule, float* x) {
    const float keep = 1.0f - rule.momentum;
    for (int64_t r = 0; r < shape.rows; r++) {
        float* m = momentum + r * shape.cols;
        const float* g = grad + r * shape.cols;
        by_vectors(shape.cols, [&](int64_t i, auto read, auto write) {
            const vec now = read(g + i);
            const vec mean = read(m + i) + keep * (now - read(m + i));
            write(m + i, mean);
            const vec ahead = now + rule.momentum * (mean - now);  // Nesterov's: one step further
            if (!shape.is_tall) return write(x + r * shape.stride + i, ahead);
            float lanes[LANES];
            store(lanes, ahead);
            for (int64_t j = 0; j < std::min<int64_t>(LANES, shape.cols - i); j++)
                x[(i + j) * shape.stride + r] = lanes[j];
        });
    }
}

// W <- (1 - decay) W - 0.2 sqrt(longer side) rate X: an update of AdamW's usual size, a root mean square of 0.2
// (arXiv:2502.16982, section 2.2).
void move(const Shape& shape, float* weights, const Rule& rule, const float* x) {
    const float keep = 1.0f - rule.decay;
    const float step = rule.rate * 0.2f * std::sqrt(static_cast<float>(shape.longer));
    for (int64_t r = 0; r < shape.rows; r++) {
        float* w = weights + r * shape.cols;
        by_vectors(shape.cols, [&](int64_t i, auto read, auto write) {
            vec along{};
            if (!shape.is_tall) {
                along = load(x + r * shape.stride + i);  // rows are padded
            } else {
                float lanes[LANES] = {};
                for (int64_t j = 0; j < std::min<int64_t>(LANES, shape.cols - i); j++)
                    lanes[j] = x[(i + j) * shape.stride + r];
                along = load(lanes);
            }
            write(w + i, read(w + i) * keep - step * along);
        });
    }
}

}  // namespace

extern "C" {

// A stack is `counts` matrices [rows, cols] one behind the other, from where its weights, gradients and momenta
// begin. `decay` is the rate times the weight decay.
void wt_muon(int64_t stacks, const int64_t* counts, const int64_t* rows, const int64_t* cols,
             float* const* weights, const float* const* grads, float* const* momenta, double momentum, double decay,
             double rate, int32_t threads) {
    const Rule rule{static_cast<float>(momentum), static_cast<float>(decay), static_cast<float>(rate)};
    std::vector<int64_t> first(stacks + 1);
    double ns = 0;
    int64_t most = 0;
    for (int64_t s = 0; s < stacks; s++) {
        const Shape shape(rows[s], cols[s]);
        first[s + 1] = first[s] + counts[s];
        ns += counts[s] * shape.ns();
        most = std::max(most, shape.scratch());
    }
    const int parts = team(ns, threads);
    std::atomic<int64_t> next{0};
    Meeting meeting(parts);
    together(parts, [&](int) {
        Buffer scratch(most);
        int64_t s = 0;
        for (int64_t i; (i = next.fetch_add(1)) < first[stacks];) {
            while (i >= first[s + 1]) s++;
            const Shape shape(rows[s], cols[s]);
            const int64_t at = (i - first[s]) * rows[s] * cols[s];
            std::memset(scratch.data, 0, shape.height * shape.stride * sizeof(float));
            take_in(shape, momenta[s] + at, grads[s] + at, rule, scratch.data);
            move(shape, weights[s] + at, rule, orthogonalise(shape, scratch.data));
        }
        meeting.look_out();
    });
}

}  // extern "C"
