// Runs the small operations over awkward shapes on heap buffers of exactly the right size, for the sanitizers.
#include "step.cpp"

#include <cstdio>

#include "driver_threads.h"

using Floats = std::vector<float>;

static void norms(int64_t rows, int64_t D, int threads) {
    Floats x(rows * D, 0.5f), weight(D, 2.0f), y(rows * D), dx(rows * D), d_weight(D);
    wt_norm_forward(rows, D, x.data(), weight.data(), 1e-6f, y.data(), threads);
    wt_norm_backward(rows, D, y.data(), x.data(), weight.data(), 1e-6f, dx.data(), d_weight.data(), threads);
}

static void swiglus(int64_t rows, int64_t W, int threads) {
    Floats gate_up(rows * 2 * W, 0.5f), y(rows * W), d_gate_up(rows * 2 * W);
    wt_swiglu_forward(rows, W, gate_up.data(), y.data(), threads);
    wt_swiglu_backward(rows, W, y.data(), gate_up.data(), d_gate_up.data(), threads);
}

static void routes(int64_t T, int64_t E, int64_t K, int64_t groups, int64_t kept, bool bias, int threads) {
    Floats logits(T * E, 0.5f), biases(E, 0.1f), scores(T * E), gate(T * K), d_logits(T * E);
    std::vector<int64_t> expert(T * K);
    wt_route(T, E, K, groups, kept, 1, 2.5f, logits.data(), bias ? biases.data() : nullptr, scores.data(),
             expert.data(), gate.data(), threads);
    wt_route_backward(T, E, K, 1, 2.5f, scores.data(), expert.data(), gate.data(),
                      bias ? scores.data() : nullptr, d_logits.data(), threads);
}

static void embeddings(int64_t N, int64_t D, int64_t V, int threads) {
    Floats table(V * D, 0.5f), y(N * D), d_table(V * D);
    std::vector<int64_t> tokens(N, V - 1);
    wt_embed(N, D, V, tokens.data(), table.data(), y.data(), threads);
    wt_embed_backward(N, D, V, tokens.data(), y.data(), d_table.data(), threads);
}

int main() {
    use_threads();
    int cases = 0;
    for (int threads = 1; threads <= 3; threads += 2)
        for (int64_t width : {1, 7, 16, 33, 100}) {
            norms(2, width, threads);
            swiglus(3, width, threads);
            embeddings(4, width, 3, threads);
            cases++;
        }
    for (int bias = 0; bias < 2; bias++) {
        routes(3, 7, 2, 1, 1, bias, 1);
        routes(5, 24, 4, 6, 2, bias, 3);
        routes(1, 4, 4, 2, 2, bias, 3);
        cases += 3;
    }
    std::printf("%d cases\n", cases);
}
