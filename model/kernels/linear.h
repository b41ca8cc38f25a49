// The three products of a linear layer y[M, N] = x[M, K] . w[N, K]^T, all matrices row-major.
//
// They run on the tile unit where there is one and the sizes make it fastest (linear_tiles.h); else through the
// framework's own BLAS, called directly, if its address was given; else in vector registers (products.h). Sizes and
// machine alone decide, so that a run's bits do not depend on how busy the machine was.
#pragma once

#include "linear_tiles.h"
#include "products.h"
#include "rows.h"

namespace {

using Sgemm = void (*)(const char* transpose_a, const char* transpose_b, const int* m, const int* n,
                       const int* k, const float* alpha, const float* a, const int* lda, const float* b,
                       const int* ldb, const float* beta, float* c, const int* ldc);
Sgemm sgemm = nullptr;
using SetThreads = int (*)(int);
SetThreads set_sgemm_threads = nullptr;  // for the calling thread only; returns the previous value, 0 if none was set

// C[M, N] = (C +) A . B, row-major, through a column-major routine: C^T = B^T . A^T.
inline void blas(bool a_transposed, bool b_transposed, int64_t M, int64_t N, int64_t K, const float* a,
                 const float* b, float* c, bool add, int threads) {
    const int m = static_cast<int>(N), n = static_cast<int>(M), k = static_cast<int>(K);
    const int lda = b_transposed ? k : m, ldb = a_transposed ? n : k;
    const float one = 1.0f, beta = add ? 1.0f : 0.0f;
    const int own = team(static_cast<double>(M) * N * K * NS_A_MULTIPLY, threads);
    const bool fewer = own < threads && set_sgemm_threads;
    const int before = fewer ? set_sgemm_threads(own) : 0;
    sgemm(b_transposed ? "T" : "N", a_transposed ? "T" : "N", &m, &n, &k, &one, b, &lda, a, &ldb, &beta, c,
          &m);
    if (fewer) set_sgemm_threads(before);
}

// How a layer's products are to be computed.
struct How {
    int threads;
    bool bf16;  // factors rounded to bfloat16; needs wt_can_round()
};

enum TileUse : int32_t { NEVER, WHERE_FASTER, ALWAYS };
TileUse tile_use = WHERE_FASTER;  // for fp32 products

// Whether the tile unit is the fastest for M rows, measured against MKL and products.h (LOG.md, 2026-11-26). By
// itself it is from 256 rows; within a training step it gains nothing at 512 rows and 7 % at 2,048.
inline bool tiles_multiply(int64_t M, int64_t columns, int64_t summed) {
    if (tile_use != WHERE_FASTER) return tile_use == ALWAYS;
    return tiles_allowed() && M >= 1024 && columns >= 64 && summed >= 32;
}
inline bool tiles_make_gradient(int64_t M, int64_t N, int64_t K) {
    if (tile_use != WHERE_FASTER) return tile_use == ALWAYS;
    return tiles_allowed() && M >= 1024 && std::min(N, K) >= 96 && N * K >= 128 * 128;
}

// w[N, K] transposed, in panels of PANEL rows of w: packed[n/PANEL][k][n%PANEL].
constexpr int64_t PANEL = 4 * LANES;
inline void pack_transposed(const float* w, int64_t N, int64_t K, float* packed) {
    for (int64_t n0 = 0; n0 < N; n0 += LANES)
        for (int64_t k0 = 0; k0 < K; k0 += LANES) {
            const int count = static_cast<int>(std::min<int64_t>(LANES, K - k0));
            vec r[LANES];
            for (int i = 0; i < LANES; i++)
                r[i] = n0 + i < N ? load_first(w + (n0 + i) * K + k0, count) : vec{};
            transpose(r);
            float* out = packed + n0 / PANEL * PANEL * K + n0 % PANEL + k0 * PANEL;
            for (int k = 0; k < count; k++) store(out + k * PANEL, r[k]);
        }
}

// y[M, N] = (y +) x[M, K] . w[N, K]^T
inline void linear(int64_t M, int64_t N, int64_t K, const float* x, const float* w, float* y, bool add, How how) {
#if defined(__AVX512BF16__)
    if (how.bf16) return multiply_weights(M, x, PackedWeights<1>(w, N, K, false), y, add, how.threads);
    if (tiles_multiply(M, N, K)) return multiply_weights(M, x, PackedWeights<3>(w, N, K, false), y, add, how.threads);
#endif
    if (sgemm) return blas(false, true, M, N, K, x, w, y, add, how.threads);
    Buffer packed(round_up(N, PANEL) * K);
    pack_transposed(w, N, K, packed.data);
    share_rows(M, N * K * NS_A_MULTIPLY, how.threads, [&](int64_t from, int64_t to) {
        for (int64_t n = 0; n < N; n += PANEL)
            multiply<false>({x + from * K, K, 1, {packed.data + n * K, PANEL, nullptr}, to - from,
                             std::min(PANEL, N - n), K}, y + from * N + n, N, add);
    });
}

// dx[M, K] = (dx +) dy[M, N] . w[N, K] in vector registers. Rows of w that are 2^n bytes apart share few sets of the
// cache, so columns of large weights are copied next to each other: a third faster at a width of 512, twice at 1,024,
// and the same bits.
inline void multiply_across(int64_t M, int64_t N, int64_t K, const float* dy, const float* w, float* dx, bool add) {
    constexpr int64_t LEAST_COPIED = 1 << 18, LEAST_ROWS = 128;
    if (N * K < LEAST_COPIED || M < LEAST_ROWS)
        return multiply<false>({dy, N, 1, {w, K, nullptr}, M, K, N}, dx, K, add);
    Buffer columns(N * PANEL);
    for (int64_t k = 0; k < K; k += PANEL) {
        const int64_t count = std::min(PANEL, K - k);
        for (int64_t n = 0; n < N; n++) std::memcpy(columns.data + n * PANEL, w + n * K + k, count * sizeof(float));
        multiply<false>({dy, N, 1, {columns.data, PANEL, nullptr}, M, count, N}, dx + k, K, add);
    }
}

// dx[M, K] = (dx +) dy[M, N] . w[N, K]
inline void linear_back(int64_t M, int64_t N, int64_t K, const float* dy, const float* w, float* dx,
                        bool add, How how) {
#if defined(__AVX512BF16__)
    if (how.bf16) return multiply_weights(M, dy, PackedWeights<1>(w, N, K, true), dx, add, how.threads);
    if (tiles_multiply(M, K, N)) return multiply_weights(M, dy, PackedWeights<3>(w, N, K, true), dx, add, how.threads);
#endif
    if (sgemm) return blas(false, false, M, K, N, dy, w, dx, add, how.threads);
    share_rows(M, N * K * NS_A_MULTIPLY, how.threads, [&](int64_t from, int64_t to) {
        multiply_across(to - from, N, K, dy + from * N, w, dx + from * K, add);
    });
}

// dw[N, K] = (dw +) dy[M, N]^T . x[M, K]
inline void linear_weight(int64_t M, int64_t N, int64_t K, const float* dy, const float* x, float* dw,
                          bool add, How how) {
#if defined(__AVX512BF16__)
    if (how.bf16) return weight_gradient<1>(M, N, K, dy, x, dw, add, how.threads);
    if (tiles_make_gradient(M, N, K)) return weight_gradient<3>(M, N, K, dy, x, dw, add, how.threads);
#endif
    if (sgemm) return blas(true, false, N, K, M, dy, x, dw, add, how.threads);
    constexpr int64_t AT_ONCE = 128;  // rows of x that stay in L1
    share_rows(N, M * K * NS_A_MULTIPLY, how.threads, [&](int64_t from, int64_t to) {
        for (int64_t m = 0; m < M; m += AT_ONCE)
            multiply<false>({dy + m * N + from, 1, N, {x + m * K, K, nullptr}, to - from, K, std::min(AT_ONCE, M - m)},
                            dw + from * K, K, add || m > 0);
    });
}

}  // namespace

extern "C" {

// Sets the addresses of the framework's sgemm_ and of its thread limiter; without them our own products serve.
void wt_use_sgemm(void* address, void* set_threads) {
    sgemm = reinterpret_cast<Sgemm>(address);
    set_sgemm_threads = reinterpret_cast<SetThreads>(set_threads);
}

// For tests: multiply fp32 in squares NEVER, WHERE_FASTER or ALWAYS. Returns whether this machine can.
int32_t wt_use_tiles(int32_t use) {
    if (squares_allowed()) tile_use = static_cast<TileUse>(use);
    return squares_allowed();
}

// Whether products of any size run on a tile unit, and whether their factors can be rounded to bfloat16.
int32_t wt_has_tiles() { return tiles_allowed(); }
int32_t wt_can_round() { return squares_allowed(); }

}  // extern "C"
