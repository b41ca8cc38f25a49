// Runs the halves of a block over awkward shapes on heap buffers of exactly the right size, for the sanitizers.
#include "block.cpp"

#include <cstdio>

#include "driver_threads.h"

using Floats = std::vector<float>;

static void attentions(int64_t B, int64_t T, int64_t Q, int64_t G, int64_t H, bool norm, int64_t outputs, bool bf16,
                       int threads) {
    const int64_t D = 5, R = 2 * (H / 2), F = (Q + 2 * G) * H, N = B * T;
    Floats x(N * D, 0.5f), norm_w(D, 1.0f), qkv_w(F * D, 0.1f), heads(2 * H, 1.0f), out_w(D * Q * H, 0.1f);
    Floats cos(T * H, 0.6f), sin(T * H, 0.8f), qkv(N * F), mixed(N * Q * H), log_sums(B * Q * T), y(N * D);
    Floats dx(N * D), d_norm(D), d_qkv(F * D), d_heads(2 * H), d_out(D * Q * H);
    Floats gate_w(outputs * D, 0.1f), gates(N * outputs), d_gate(outputs * D);
    const float *gate = outputs ? gate_w.data() : nullptr;
    float *logits = outputs ? gates.data() : nullptr, *d_gate_w = outputs ? d_gate.data() : nullptr;
    const float *q = norm ? heads.data() : nullptr, *k = norm ? heads.data() + H : nullptr;
    wt_attention_forward(B, T, D, Q, G, H, R, H, outputs, 1e-6f, x.data(), norm_w.data(), qkv_w.data(), q, k,
                         out_w.data(), gate, cos.data(), sin.data(), qkv.data(), mixed.data(), log_sums.data(),
                         logits, y.data(), bf16, threads);
    wt_attention_backward(B, T, D, Q, G, H, R, H, outputs, 1e-6f, x.data(), norm_w.data(), qkv_w.data(), q, k,
                          out_w.data(), gate, cos.data(), sin.data(), qkv.data(), mixed.data(), log_sums.data(),
                          logits, y.data(), dx.data(), d_norm.data(), d_qkv.data(), norm ? d_heads.data() : nullptr,
                          d_out.data(), d_gate_w, bf16, threads);
}

static void feed_forwards(int64_t N, int64_t D, int64_t W, bool bf16, int threads) {
    Floats x(N * D, 0.5f), norm(D, 1.0f), in(2 * W * D, 0.1f), out(D * W, 0.1f), gate_up(N * 2 * W), y(N * D);
    Floats dx(N * D), d_norm(D), d_in(2 * W * D), d_out(D * W);
    wt_feed_forward_forward(N, D, W, 1e-6f, x.data(), norm.data(), in.data(), out.data(), gate_up.data(), y.data(),
                            bf16, threads);
    wt_feed_forward_backward(N, D, W, 1e-6f, x.data(), norm.data(), in.data(), out.data(), gate_up.data(), y.data(),
                             dx.data(), d_norm.data(), d_in.data(), d_out.data(), bf16, threads);
    wt_shared_forward(N, D, W, x.data(), x.data(), in.data(), out.data(), gate_up.data(), y.data(), bf16, threads);
    wt_shared_forward(N, D, 0, x.data(), x.data(), nullptr, nullptr, nullptr, y.data(), bf16, threads);
    wt_shared_backward(N, D, W, x.data(), in.data(), out.data(), gate_up.data(), y.data(), dx.data(), d_in.data(),
                       d_out.data(), bf16, threads);
}

static void routers(int64_t N, int64_t D, int64_t E, int threads) {
    const int64_t K = 2;
    Floats x(N * D, 0.5f), norm(D, 1.0f), router(E * D, 0.1f), bias(E, 0.1f), normed(N * D), logits(N * E),
        scores(N * E), gate(N * K), dx(N * D), d_norm(D), d_router(E * D);
    std::vector<int64_t> expert(N * K), load(E);
    wt_router_forward(N, D, E, K, 3, 2, 1, 2.5f, 1e-6f, x.data(), norm.data(), router.data(), bias.data(),
                      normed.data(), logits.data(), scores.data(), expert.data(), gate.data(), load.data(), threads);
    for (const float* more : {static_cast<const float*>(nullptr), static_cast<const float*>(logits.data())})
        wt_router_backward(N, D, E, K, 1, 2.5f, 1e-6f, x.data(), norm.data(), router.data(), normed.data(),
                           scores.data(), expert.data(), x.data(), gate.data(), more, more, normed.data(), dx.data(),
                           d_norm.data(), d_router.data(), threads);
}

int main() {
    use_threads();
    int cases = 0;
    for (int run = 0; run < 6; run++) {
        const int threads = run % 2 ? 3 : 1;
        const bool bf16 = run / 2 == 2;
        wt_use_tiles(run / 2 == 1 ? ALWAYS : NEVER);
        attentions(1, 1, 1, 1, 2, true, 0, bf16, threads);
        attentions(2, 37, 4, 2, 6, true, 4, bf16, threads);
        attentions(1, 16, 3, 1, 16, false, 0, bf16, threads);
        attentions(2, 35, 3, 1, 10, false, 3 * 10, bf16, threads);
        attentions(1, 33, 1, 1, 50, true, 0, bf16, threads);
        for (int64_t n : {1, 7, 33, 130}) {
            feed_forwards(n, 5, 3, bf16, threads);
            routers(n, 20, 9, threads);
            cases++;
        }
        feed_forwards(130, 131, 1024, bf16, threads);
        cases += 6;
    }
    std::printf("%d cases\n", cases);
}
