// The small operations between a step's matrix products, each in one pass, fp32.
//
// At the widths of a ladder's small rungs a step is dominated by dispatch: what takes the framework five to twenty
// operations is one call here.

#include "choice.h"
#include "rows.h"

extern "C" {

void wt_norm_forward(int64_t rows, int64_t D, const float* x, const float* weight, float eps, float* y,
                     int32_t threads) {
    share_rows(rows, D * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) norm(x + r * D, weight, D, eps, y + r * D);
    });
}

void wt_norm_backward(int64_t rows, int64_t D, const float* grad, const float* x, const float* weight,
                      float eps, float* dx, float* d_weight, int32_t threads) {
    by_rows(rows, 2 * D * NS_A_NUMBER, D, d_weight, threads, [&](int64_t from, int64_t to, float* sums) {
        Buffer v(D);
        for (int64_t r = from; r < to; r++)
            norm_backward(grad + r * D, x + r * D, weight, D, eps, dx + r * D, sums, v.data);
    });
}

// y[r, i] = silu(gate) * up of gate_up [rows, 2W], gates in the first half of a row.
void wt_swiglu_forward(int64_t rows, int64_t W, const float* gate_up, float* y, int32_t threads) {
    share_rows(rows, 2 * W * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++) swiglu(gate_up + r * 2 * W, W, y + r * W);
    });
}

void wt_swiglu_backward(int64_t rows, int64_t W, const float* grad, const float* gate_up, float* d_gate_up,
                        int32_t threads) {
    share_rows(rows, 4 * W * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t r = from; r < to; r++)
            swiglu_backward(grad + r * W, gate_up + r * 2 * W, W, d_gate_up + r * 2 * W);
    });
}

// Sigmoid scores, the top K experts from the best `kept` of `groups` groups, and their gates; bias may be null.
void wt_route(int64_t T, int64_t E, int64_t K, int64_t groups, int64_t kept, int32_t normalize,
              float scale, const float* logits, const float* bias, float* scores, int64_t* expert,
              float* gate, int32_t threads) {
    const Choice choice{E, K, groups, kept, normalize != 0, scale, bias};
    share_rows(T, choice.ns(), threads, [&](int64_t from, int64_t to) {
        choose(choice, from, to, logits, scores, expert, gate);
    });
}

// d_logits from the gradients of the gates and, unless null, of the scores.
void wt_route_backward(int64_t T, int64_t E, int64_t K, int32_t normalize, float scale,
                       const float* scores, const int64_t* expert, const float* d_gate,
                       const float* d_scores, float* d_logits, int32_t threads) {
    const Choice choice{E, K, 1, 1, normalize != 0, scale, nullptr};
    share_rows(T, E * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        choose_backward(choice, from, to, scores, expert, d_gate, d_scores, d_logits);
    });
}

// Rows of table[V, D]. Returns 0, or 1 if a token is outside the vocabulary and nothing was read.
int32_t wt_embed(int64_t N, int64_t D, int64_t V, const int64_t* tokens, const float* table, float* y,
                 int32_t threads) {
    for (int64_t n = 0; n < N; n++)
        if (tokens[n] < 0 || tokens[n] >= V) return 1;
    share_rows(N, D * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t n = from; n < to; n++) std::memcpy(y + n * D, table + tokens[n] * D, D * sizeof(float));
    });
    return 0;
}

// d_table[v] = the sum of the gradients of its tokens, in their order; threads divide the columns.
void wt_embed_backward(int64_t N, int64_t D, int64_t V, const int64_t* tokens, const float* dy, float* d_table,
                       int32_t threads) {
    share_rows(D, (N + V) * NS_A_NUMBER, threads, [&](int64_t from, int64_t to) {
        for (int64_t v = 0; v < V; v++) std::memset(d_table + v * D + from, 0, (to - from) * sizeof(float));
        for (int64_t n = 0; n < N; n++) {
            const float* grad = dy + n * D;
            float* sum = d_table + tokens[n] * D;
            for (int64_t i = from; i < to; i++) sum[i] += grad[i];
        }
    });
}

}  // extern "C"
