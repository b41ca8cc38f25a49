// Runs the small operations over awkward shapes on heap buffers of exactly the right size, for the sanitizers.
#include "step.cpp"

#include <cstdio>

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

static void prologues(int64_t B, int64_t T, int64_t Q, int64_t G, int64_t H, int64_t R, bool norm, int threads) {
    Floats qkv(B * T * (Q + 2 * G) * H, 0.5f), weights(2 * H, 1.0f), cos(T * H, 0.6f), sin(T * H, 0.8f);
    Floats q(B * Q * T * H), k(B * G * T * H), v(k.size()), d_qkv(qkv.size()), d_weights(2 * H);
    const float* w = norm ? weights.data() : nullptr;
    wt_prologue_forward(B, T, Q, G, H, R, H, qkv.data(), w, 1e-6f, cos.data(), sin.data(), q.data(), k.data(),
                        v.data(), threads);
    wt_prologue_backward(B, T, Q, G, H, R, H, norm ? qkv.data() : nullptr, w, 1e-6f, cos.data(), sin.data(),
                         q.data(), k.data(), v.data(), d_qkv.data(), norm ? d_weights.data() : nullptr, threads);
}

static void routes(int64_t T, int64_t E, int64_t K, int64_t groups, int64_t kept, bool bias) {
    Floats logits(T * E, 0.5f), biases(E, 0.1f), scores(T * E), gate(T * K), d_logits(T * E);
    std::vector<int64_t> expert(T * K);
    wt_route(T, E, K, groups, kept, 1, 2.5f, logits.data(), bias ? biases.data() : nullptr, scores.data(),
             expert.data(), gate.data());
    wt_route_backward(T, E, K, 1, 2.5f, scores.data(), expert.data(), gate.data(),
                      bias ? scores.data() : nullptr, d_logits.data());
}

int main() {
    int cases = 0;
    for (int threads = 1; threads <= 3; threads += 2)
        for (int64_t width : {1, 7, 16, 33, 100}) {
            norms(2, width, threads);
            swiglus(3, width, threads);
            prologues(2, 5, 3, 1, 2 * width, 2 * (width / 2), width % 2, threads);
            cases++;
        }
    for (int bias = 0; bias < 2; bias++) {
        routes(3, 7, 2, 1, 1, bias);
        routes(5, 24, 4, 6, 2, bias);
        routes(1, 4, 4, 2, 2, bias);
        cases += 3;
    }
    std::printf("%d cases\n", cases);
}
