// The output gate of attention: what the heads have mixed, times the sigmoid of a number for each head or element.
#pragma once

#include "rows.h"

namespace {

struct OutputGate {
    int64_t Q, H, outputs;  // heads, their width; Q numbers or Q * H, 0 without a gate

    int64_t width() const { return Q * H; }
    double ns() const { return 2 * width() * NS_A_NUMBER; }  // of a row

    // Calls work(at, sigmoids, read, write) for each vector of a row.
    template <class Work>
    void by_elements(const float* sigmoids, Work work) const {
        for (int64_t n = 0; n < Q; n++)
            by_vectors(H, [&](int64_t i, auto read, auto write) {
                const int64_t at = n * H + i;
                work(at, outputs == Q ? splat(sigmoids[n]) : read(sigmoids + at), read, write);
            });
    }

    void open(const float* gates, float* sigmoids) const {
        by_vectors(outputs, [&](int64_t i, auto read, auto write) { write(sigmoids + i, sigmoid(read(gates + i))); });
    }

    // y[N, Q*H] = mixed * sigmoid(gates)
    void forward(int64_t N, const float* mixed, const float* gates, float* y, int threads) const {
        share_rows(N, ns(), threads, [&](int64_t from, int64_t to) {
            Buffer sigmoids(outputs);
            for (int64_t r = from; r < to; r++) {
                const float* row = mixed + r * width();
                float* out = y + r * width();
                open(gates + r * outputs, sigmoids.data);
                by_elements(sigmoids.data, [&](int64_t at, vec share, auto read, auto write) {
                    write(out + at, read(row + at) * share);
                });
            }
        });
    }

    // d, the gradient of the result, becomes that of `mixed`; and d_gates.
    void backward(int64_t N, const float* mixed, const float* gates, float* d, float* d_gates, int threads) const {
        share_rows(N, 2 * ns(), threads, [&](int64_t from, int64_t to) {
            Buffer sigmoids(outputs);
            for (int64_t r = from; r < to; r++) {
                const float* row = mixed + r * width();
                float *d_row = d + r * width(), *d_gate = d_gates + r * outputs;
                open(gates + r * outputs, sigmoids.data);
                if (outputs == Q)
                    for (int64_t n = 0; n < Q; n++) {
                        const float share = sigmoids.data[n];
                        d_gate[n] = dot(d_row + n * H, row + n * H, H) * share * (1.0f - share);
                    }
                by_elements(sigmoids.data, [&](int64_t at, vec share, auto read, auto write) {
                    const vec grad = read(d_row + at);
                    if (outputs != Q) write(d_gate + at, grad * read(row + at) * share * (1.0f - share));
                    write(d_row + at, grad * share);
                });
            }
        });
    }
};

}  // namespace
