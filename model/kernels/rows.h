// Operations on single rows of floats, and how rows are divided among threads.
//
// Each thread gets one contiguous range of rows, and per-thread sums are added in thread order, so a result
// depends on the number of threads alone. Little work stays on one thread (team.h).
#pragma once

#include <memory>
#include <vector>

#include "team.h"
#include "vectors.h"

namespace {

// Calls work(i, read, write) for each vector of n numbers; the last may be partial.
template <class Work>
inline void by_vectors(int64_t n, Work work) {
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) work(i, load, store);
    const int left = static_cast<int>(n - i);
    if (left)
        work(
            i, [left](const float* p) { return load_first(p, left); },
            [left](float* p, vec v) { store_first(p, v, left); });
}

inline float dot(const float* a, const float* b, int64_t n) {
    vec sum{};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) sum += load(a + i) * load(b + i);
    if (i < n) {
        const int tail = static_cast<int>(n - i);
        sum += load_first(a + i, tail) * load_first(b + i, tail);
    }
    return sum_lanes(sum);
}

inline float rms_inverse(const float* x, int64_t n, float eps) {
    return 1.0f / std::sqrt(dot(x, x, n) / static_cast<float>(n) + eps);
}

// y = x / rms(x) * weight
inline void norm(const float* x, const float* weight, int64_t n, float eps, float* y) {
    const float inverse = rms_inverse(x, n, eps);
    by_vectors(n, [&](int64_t i, auto read, auto write) { write(y + i, read(x + i) * inverse * read(weight + i)); });
}

// With m = x/rms and v = grad*weight: dx = (v - m*mean(v*m)) / rms; d_weight += grad*m. `v` is scratch.
inline void norm_backward(const float* grad, const float* x, const float* weight, int64_t n, float eps,
                          float* dx, float* d_weight, float* v) {
    const float inverse = rms_inverse(x, n, eps);
    by_vectors(n, [&](int64_t i, auto read, auto write) { write(v + i, read(grad + i) * read(weight + i)); });
    const float along = dot(v, x, n) * inverse * inverse / static_cast<float>(n);
    by_vectors(n, [&](int64_t i, auto read, auto write) {
        write(d_weight + i, read(d_weight + i) + read(grad + i) * (read(x + i) * inverse));
        write(dx + i, (read(v + i) - read(x + i) * along) * inverse);
    });
}

// y[W] = silu(gate) * up of gate_up[2W], gates first.
inline void swiglu(const float* gate_up, int64_t W, float* y) {
    for (int64_t i = 0; i < W; i += LANES) {
        const int count = static_cast<int>(std::min<int64_t>(LANES, W - i));
        const vec g = load_first(gate_up + i, count);
        store_first(y + i, g * sigmoid(g) * load_first(gate_up + W + i, count), count);
    }
}

inline void swiglu_backward(const float* grad, const float* gate_up, int64_t W, float* d_gate_up) {
    for (int64_t i = 0; i < W; i += LANES) {
        const int count = static_cast<int>(std::min<int64_t>(LANES, W - i));
        const vec g = load_first(gate_up + i, count), dy = load_first(grad + i, count);
        const vec sig = sigmoid(g), silu = g * sig;
        const vec d_gate = dy * load_first(gate_up + W + i, count) * (sig + silu * (1.0f - sig));
        store_first(d_gate_up + i, d_gate, count);
        store_first(d_gate_up + W + i, dy * silu, count);
    }
}

// Calls work(from, to) for each thread's share of `count` rows, at about `row_ns` a row.
template <class Work>
void share_rows(int64_t count, double row_ns, int threads, Work work) {
    const int parts = team(count * row_ns, threads);
    if (parts == 1) return work(0, count);
    Meeting meeting(parts);
    together(parts, [&](int me) {
        work(count * me / parts, count * (me + 1) / parts);
        meeting.look_out();
    });
}

// Calls work(from, to, sums) for each thread's range of rows and reduces the threads' `count` sums into out.
template <class Work>
void by_rows(int64_t rows, double row_ns, int64_t count, float* out, int threads, Work work) {
    const int parts = team(rows * row_ns, threads);
    std::vector<std::unique_ptr<Buffer>> sums(parts);
    Meeting meeting(parts);
    together(parts, [&](int me) {
        sums[me] = std::make_unique<Buffer>(count);
        std::memset(sums[me]->data, 0, count * sizeof(float));
        work(rows * me / parts, rows * (me + 1) / parts, sums[me]->data);
        meeting.look_out();
    });
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (const auto& part : sums) sum += part->data[i];
        out[i] = sum;
    }
}

// y = x*cos + swapped(x)*sin over the first R of H dimensions (their halves swapped), the rest as it is.
inline void rotate(const float* x, const float* cos, const float* sin, int64_t R, int64_t H, float* y) {
    const int64_t half = R / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = x[i], second = x[i + half];
        y[i] = first * cos[i] + second * sin[i];
        y[i + half] = second * cos[i + half] + first * sin[i + half];
    }
    for (int64_t i = R; i < H; i++) y[i] = x[i];
}

// The transpose: dx = dy*cos + swapped(dy*sin).
inline void rotate_backward(const float* dy, const float* cos, const float* sin, int64_t R, int64_t H,
                            float* dx) {
    const int64_t half = R / 2;
    for (int64_t i = 0; i < half; i++) {
        const float first = dy[i], second = dy[i + half];
        dx[i] = first * cos[i] + second * sin[i + half];
        dx[i + half] = second * cos[i + half] + first * sin[i];
    }
    for (int64_t i = R; i < H; i++) dx[i] = dy[i];
}

}  // namespace
