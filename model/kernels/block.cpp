// The halves of a transformer block, each one call forward and one backward, fp32.
//
//   attention      y = x + out(attend(qkv(norm(x))) * sigmoid(gate(norm(x)))),  the gate where there is one
//   feed-forward   y = x + down(silu(gate) * up),  gate and up of gate_up(norm(x))
//   mixture        normed = norm(x) and the router's selection from it; later y = experts + x + shared(normed)
//
// Saved from forward to backward: the inputs, the projections and what the heads mixed. Norms, activations and
// attention scores are recomputed: each is one pass over what is in cache. Rows are tokens, N = B*T of them.
// Gradients are overwritten, never accumulated. With bf16 the factors of all products with weights except the
// router's are rounded to bfloat16; accumulation, attention's own products and everything else are fp32.

#include "attention.h"
#include "choice.h"
#include "linear.h"
#include "output_gate.h"
#include "rows.h"

namespace {

void norm_rows(int64_t N, int64_t D, const float* x, const float* weight, float eps, float* y, int threads) {
    share_rows(N, D * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) norm(x + r * D, weight, D, eps, y + r * D);
    });
}

// dx = (more +) the gradient of norm(x) with respect to x; and d_weight.
void norm_rows_back(int64_t N, int64_t D, const float* grad, const float* x, const float* weight, float eps,
                    const float* more, float* dx, float* d_weight, int threads) {
    by_rows(N, 2 * D * NS_A_NUMBER, D, d_weight, threads, [&](int64_t from, int64_t to, float* sums) {
        Buffer scratch(D);
        for (int64_t r = from; r < to; r++) {
            float* row = dx + r * D;
            norm_backward(grad + r * D, x + r * D, weight, D, eps, row, sums, scratch.data);
            if (more)
                for (int64_t i = 0; i < D; i++) row[i] += more[r * D + i];
        }
    });
}

// y[N, W] = silu(gate) * up of gate_up[N, 2W].
void swiglu_rows(int64_t N, int64_t W, const float* gate_up, float* y, int threads) {
    share_rows(N, 2 * W * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) swiglu(gate_up + r * 2 * W, W, y + r * W);
    });
}

struct FeedForward {
    int64_t N, D, W;
    const float *gate_up_weight, *down_weight;  // [2W, D] and [D, W]

    // y[N, D] += down(swiglu(gate_up)); gate_up[N, 2W] is left for the backward pass.
    void forward(const float* x, float* gate_up, float* y, How how) const {
        Buffer inner(N * W);
        linear(N, 2 * W, D, x, gate_up_weight, gate_up, false, how);
        swiglu_rows(N, W, gate_up, inner.data, how.threads);
        linear(N, D, W, inner.data, down_weight, y, true, how);
    }

    // dx = (dx +) ...
    void backward(const float* dy, const float* x, const float* gate_up, float* dx, bool add,
                  float* d_gate_up_weight, float* d_down_weight, How how) const {
        Buffer inner(N * W), d_inner(N * W), d_gate_up(N * 2 * W);
        swiglu_rows(N, W, gate_up, inner.data, how.threads);
        linear_weight(N, D, W, dy, inner.data, d_down_weight, false, how);
        linear_back(N, D, W, dy, down_weight, d_inner.data, false, how);
        share_rows(N, 4 * W * NS_A_NUMBER, how.threads, [&](int64_t from, int64_t to) {
            for (int64_t r = from; r < to; r++)
                swiglu_backward(d_inner.data + r * W, gate_up + r * 2 * W, W, d_gate_up.data + r * 2 * W);
        });
        linear_weight(N, 2 * W, D, d_gate_up.data, x, d_gate_up_weight, false, how);
        linear_back(N, 2 * W, D, d_gate_up.data, gate_up_weight, dx, add, how);
    }
};

}  // namespace

extern "C" {

// log_sums [B, Q, T]; q_norm, k_norm: H weights each, or both null; d_head_norms: of q_norm, then of k_norm.
// gate_outputs: Q, Q * H or 0; then gate_weight and gates are null.
void wt_attention_forward(int64_t B, int64_t T, int64_t D, int64_t Q, int64_t G, int64_t H, int64_t R,
                          int64_t table_row, int64_t gate_outputs, float eps, const float* x,
                          const float* norm_weight, const float* qkv_weight, const float* q_norm, const float* k_norm,
                          const float* out_weight, const float* gate_weight, const float* cos, const float* sin,
                          float* qkv, float* mixed, float* log_sums, float* gates, float* y, int32_t bf16,
                          int32_t threads) {
    const How how{threads, bf16 != 0};
    const OutputGate gate{Q, H, gate_outputs};
    const Attention a{T, Q, G, H, R, table_row, q_norm, k_norm, cos, sin, eps};
    const int64_t N = B * T;
    {
        Buffer normed(N * D);
        norm_rows(N, D, x, norm_weight, eps, normed.data, threads);
        linear(N, a.row(), D, normed.data, qkv_weight, qkv, false, how);
        if (gates) linear(N, gate.outputs, D, normed.data, gate_weight, gates, false, how);
    }
    share_rows(B * G, a.ns(), threads, [&](int64_t from, int64_t to) {
        AttentionRoom room(a, false);
        for (int64_t i = from; i < to; i++) {
            const int64_t b = i / G;
            attend(a, qkv + b * T * a.row(), i % G, mixed + b * T * Q * H, log_sums + b * Q * T, room);
        }
    });
    std::memcpy(y, x, N * D * sizeof(float));
    Buffer gated(gates ? N * gate.width() : 0);
    if (gates) gate.forward(N, mixed, gates, gated.data, threads);
    linear(N, D, Q * H, gates ? gated.data : mixed, out_weight, y, true, how);
}

void wt_attention_backward(int64_t B, int64_t T, int64_t D, int64_t Q, int64_t G, int64_t H, int64_t R,
                           int64_t table_row, int64_t gate_outputs, float eps, const float* x,
                           const float* norm_weight, const float* qkv_weight, const float* q_norm, const float* k_norm,
                           const float* out_weight, const float* gate_weight, const float* cos, const float* sin,
                           const float* qkv, const float* mixed, const float* log_sums, const float* gates,
                           const float* dy, float* dx, float* d_norm_weight, float* d_qkv_weight, float* d_head_norms,
                           float* d_out_weight, float* d_gate_weight, int32_t bf16, int32_t threads) {
    const How how{threads, bf16 != 0};
    const OutputGate gate{Q, H, gate_outputs};
    const Attention a{T, Q, G, H, R, table_row, q_norm, k_norm, cos, sin, eps};
    const int64_t N = B * T;
    {
        Buffer gated(gates ? N * gate.width() : 0);
        if (gates) gate.forward(N, mixed, gates, gated.data, threads);
        linear_weight(N, D, Q * H, dy, gates ? gated.data : mixed, d_out_weight, false, how);
    }
    Buffer d_qkv(N * a.row()), between(N * std::max(D, Q * H)), d_gates(N * gate.outputs);
    linear_back(N, D, Q * H, dy, out_weight, between.data, false, how);
    if (gates) gate.backward(N, mixed, gates, between.data, d_gates.data, threads);
    by_rows(B * G, 2 * a.ns(), q_norm ? 2 * H : 0, d_head_norms, threads, [&](int64_t from, int64_t to, float* sums) {
        AttentionRoom room(a, true);
        for (int64_t i = from; i < to; i++) {
            const int64_t b = i / G, at = b * T * a.row(), out = b * T * Q * H;
            attend_back(a, qkv + at, i % G, log_sums + b * Q * T, between.data + out, d_qkv.data + at, room);
        }
        if (q_norm)
            for (int64_t i = 0; i < 2 * H * BLOCK; i += LANES)
                sums[i / BLOCK] += sum_lanes(load(room.d_norms.data + i));
    });
    norm_rows(N, D, x, norm_weight, eps, between.data, threads);
    linear_weight(N, a.row(), D, d_qkv.data, between.data, d_qkv_weight, false, how);
    if (gates) linear_weight(N, gate.outputs, D, d_gates.data, between.data, d_gate_weight, false, how);
    linear_back(N, a.row(), D, d_qkv.data, qkv_weight, between.data, false, how);
    if (gates) linear_back(N, gate.outputs, D, d_gates.data, gate_weight, between.data, true, how);
    norm_rows_back(N, D, between.data, x, norm_weight, eps, dy, dx, d_norm_weight, threads);
}

void wt_feed_forward_forward(int64_t N, int64_t D, int64_t W, float eps, const float* x,
                             const float* norm_weight, const float* gate_up_weight,
                             const float* down_weight, float* gate_up, float* y, int32_t bf16, int32_t threads) {
    const How how{threads, bf16 != 0};
    Buffer normed(N * D);
    norm_rows(N, D, x, norm_weight, eps, normed.data, threads);
    std::memcpy(y, x, N * D * sizeof(float));
    FeedForward{N, D, W, gate_up_weight, down_weight}.forward(normed.data, gate_up, y, how);
}

void wt_feed_forward_backward(int64_t N, int64_t D, int64_t W, float eps, const float* x,
                              const float* norm_weight, const float* gate_up_weight,
                              const float* down_weight, const float* gate_up, const float* dy, float* dx,
                              float* d_norm_weight, float* d_gate_up_weight, float* d_down_weight,
                              int32_t bf16, int32_t threads) {
    const How how{threads, bf16 != 0};
    Buffer normed(N * D), d_normed(N * D);
    norm_rows(N, D, x, norm_weight, eps, normed.data, threads);
    FeedForward{N, D, W, gate_up_weight, down_weight}.backward(
        dy, normed.data, gate_up, d_normed.data, false, d_gate_up_weight, d_down_weight, how);
    norm_rows_back(N, D, d_normed.data, x, norm_weight, eps, dy, dx, d_norm_weight, threads);
}

// The router: normed[N, D], logits and scores [N, E], experts and gates [N, K], and load[E], the tokens of each.
void wt_router_forward(int64_t N, int64_t D, int64_t E, int64_t K, int64_t groups, int64_t kept, int32_t normalize,
                       float scale, float eps, const float* x, const float* norm_weight,
                       const float* router_weight, const float* bias, float* normed, float* logits, float* scores,
                       int64_t* expert, float* gate, int64_t* load, int32_t threads) {
    norm_rows(N, D, x, norm_weight, eps, normed, threads);
    linear(N, E, D, normed, router_weight, logits, false, {threads, false});
    const Choice choice{E, K, groups, kept, normalize != 0, scale, bias};
    share_rows(N, choice.ns(), threads, [&](int64_t from, int64_t to) {
        choose(choice, from, to, logits, scores, expert, gate);
    });
    std::fill_n(load, E, 0);
    for (int64_t i = 0; i < N * K; i++) load[expert[i]]++;
}

// Takes the gradients of the gates, of the scores and logits (or null), and of normed from its other uses, to which
// the router's own is added. dx = dy + the gradient of all of these with respect to x.
void wt_router_backward(int64_t N, int64_t D, int64_t E, int64_t K, int32_t normalize, float scale, float eps,
                        const float* x, const float* norm_weight, const float* router_weight, const float* normed,
                        const float* scores, const int64_t* expert, const float* dy, const float* d_gate,
                        const float* d_scores, const float* d_logits, float* d_normed, float* dx,
                        float* d_norm_weight, float* d_router_weight, int32_t threads) {
    const Choice choice{E, K, 1, 1, normalize != 0, scale, nullptr};
    Buffer grad(N * E);
    share_rows(N, E * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        choose_backward(choice, from, to, scores, expert, d_gate, d_scores, grad.data);
        if (d_logits)
            for (int64_t i = from * E; i < to * E; i++) grad.data[i] += d_logits[i];
    });
    linear_weight(N, E, D, grad.data, normed, d_router_weight, false, {threads, false});
    linear_back(N, E, D, grad.data, router_weight, d_normed, true, {threads, false});
    norm_rows_back(N, D, d_normed, x, norm_weight, eps, dy, dx, d_norm_weight, threads);
}

// y += x + down(swiglu(gate_up(normed))), the latter of a shared expert of width W (0: there is none).
void wt_shared_forward(int64_t N, int64_t D, int64_t W, const float* x, const float* normed,
                       const float* gate_up_weight, const float* down_weight, float* gate_up, float* y,
                       int32_t bf16, int32_t threads) {
    const How how{threads, bf16 != 0};
    share_rows(N, D * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t i = from * D; i < to * D; i++) y[i] += x[i];
    });
    if (W) FeedForward{N, D, W, gate_up_weight, down_weight}.forward(normed, gate_up, y, how);
}

// d_normed += the gradient through the shared expert.
void wt_shared_backward(int64_t N, int64_t D, int64_t W, const float* normed, const float* gate_up_weight,
                        const float* down_weight, const float* gate_up, const float* dy, float* d_normed,
                        float* d_gate_up_weight, float* d_down_weight, int32_t bf16, int32_t threads) {
    const How how{threads, bf16 != 0};
    FeedForward{N, D, W, gate_up_weight, down_weight}.backward(dy, normed, gate_up, d_normed, true, d_gate_up_weight,
                                                               d_down_weight, how);
}

}  // extern "C"
