// Matrix products small enough for the cache, in fp32 or with bfloat16 factors and fp32 sums.
//
// A factor is an array of 32-bit words. A word is one float or, with BF16, two bfloat16 adjacent along the
// reduction dimension; one multiply-add of words is then one fp32 FMA or one vdpbf16ps, and everything else
// is shared code.
#pragma once

#include "vectors.h"

namespace {

#if defined(WT_FEW_TILES)  // the sanitizer build, which would take minutes with every tile size
constexpr int MAX_NR = 4, ACCUMULATORS = 8;
#elif defined(__AVX512F__)
constexpr int MAX_NR = 4, ACCUMULATORS = 26;
#elif defined(__aarch64__)
// Of 32 registers. With 24, GCC 12 keeps two sums of 8 x 3 on the stack, where each multiply-add waits for the store
// of the one before; 7 x 3 stays in registers under GCC and Clang (LOG.md, 2026-11-27).
constexpr int MAX_NR = 3, ACCUMULATORS = 21;
#else  // 16 registers
constexpr int MAX_NR = 3, ACCUMULATORS = 12;
#endif

template <bool BF16>
inline vec multiply_add(vec sum, vec a, vec b) {
#if defined(__AVX512BF16__)
    if constexpr (BF16) return (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#endif
    return sum + a * b;
}

// Destinations of a product. Each is a type of its own: a run-time branch per row cost 2 to 8 % of a layer
// (LOG.md, 2026-11-26).
struct StoredRows {  // C = A . B
    float* data;
    int64_t stride;
    static constexpr bool ADDS = false;
    float* row(int64_t i) const { return data + i * stride; }
    vec scale(int64_t) const { return vec{}; }
    vec sum(vec product, vec, vec) const { return product; }
};
struct AddedRows {  // C += A . B
    float* data;
    int64_t stride;
    static constexpr bool ADDS = true;
    float* row(int64_t i) const { return data + i * stride; }
    vec scale(int64_t) const { return vec{}; }
    vec sum(vec product, vec before, vec) const { return product + before; }
};
struct ScaledRows {  // rows[i] += scales[i] * (A . B)[i]
    float* const* rows;
    const float* scales;
    static constexpr bool ADDS = true;
    float* row(int64_t i) const { return rows[i]; }
    vec scale(int64_t i) const { return splat(scales[i]); }
    vec sum(vec product, vec before, vec scale) const { return product * scale + before; }
};

// The right factor: K rows of N words at `data + k * stride`, or at `rows[k]`.
struct Right {
    const float* data;
    int64_t stride;
    const float* const* rows;
};

// A[M, K] . B[K, N], K in words. A is read one word at a time, at a + i*a_row + k*a_k.
struct Product {
    const float* a;
    int64_t a_row, a_k;
    Right b;
    int64_t M, N, K;
};

// MR x NR accumulators; with TAIL the last of the NR vectors holds only `tail` columns.
template <bool BF16, int MR, int NR, bool TAIL, class To>
void tile(const Product& p, const To& c, int64_t i0, int64_t j0, int tail) {
    vec acc[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) acc[i][j] = vec{};
    if (To::ADDS)
        for (int i = 0; i < MR; i++) prefetch(c.row(i0 + i) + j0, NR * LANES);
    const float* a = p.a + i0 * p.a_row;
    for (int64_t k = 0; k < p.K; k++) {
        const float* b = (p.b.rows ? p.b.rows[k] : p.b.data + k * p.b.stride) + j0;
        vec bv[NR];
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++)
            bv[j] = TAIL && j == NR - 1 ? load_first(b + j * LANES, tail) : load(b + j * LANES);
#pragma GCC unroll 32
        for (int i = 0; i < MR; i++) {
            const vec av = splat(a[i * p.a_row]);
#pragma GCC unroll 8
            for (int j = 0; j < NR; j++) acc[i][j] = multiply_add<BF16>(acc[i][j], av, bv[j]);
        }
        a += p.a_k;
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; i++) {
        float* to = c.row(i0 + i) + j0;
        const vec scale = c.scale(i0 + i);
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++) {
            float* at = to + j * LANES;
            if (TAIL && j == NR - 1)
                store_first(at, c.sum(acc[i][j], To::ADDS ? load_first(at, tail) : vec{}, scale), tail);
            else
                store(at, c.sum(acc[i][j], To::ADDS ? load(at) : vec{}, scale));
        }
    }
}

// Dispatches to the tile of exactly `rows` rows, counting down from the most that fit in registers.
template <bool BF16, int MR, int NR, bool TAIL, class To>
void tile_of(int rows, const Product& p, const To& c, int64_t i0, int64_t j0, int tail) {
    if constexpr (MR > 0) {
        if (rows == MR) return tile<BF16, MR, NR, TAIL>(p, c, i0, j0, tail);
        tile_of<BF16, MR - 1, NR, TAIL>(rows, p, c, i0, j0, tail);
    }
}

constexpr int max_rows(int nr) { return std::min(12, ACCUMULATORS / nr); }

template <bool BF16, int NR, bool TAIL, class To>
void strip(const Product& p, const To& c, int64_t j0, int tail) {
    // As few row groups as registers allow, as equal in height as possible: 20 rows are 7+7+6.
    const int64_t groups = (p.M + max_rows(NR) - 1) / max_rows(NR);
    for (int64_t g = 0, i = 0; g < groups; g++) {
        const int rows = static_cast<int>((p.M - i + groups - g - 1) / (groups - g));
        tile_of<BF16, max_rows(NR), NR, TAIL>(rows, p, c, i, j0, tail);
        i += rows;
    }
}

template <bool BF16, int NR, class To>
void strip_of(int nr, const Product& p, const To& c, int64_t j0, int tail) {
    if constexpr (NR > 0) {
        if (nr != NR) return strip_of<BF16, NR - 1>(nr, p, c, j0, tail);
        if (tail) return strip<BF16, NR, true>(p, c, j0, tail);
        return strip<BF16, NR, false>(p, c, j0, tail);
    }
}

template <bool BF16, class To>
void multiply(const Product& p, const To& c) {
    const int tail_columns = static_cast<int>(p.N % LANES);
    const int64_t vectors = (p.N + LANES - 1) / LANES;
    const int64_t strips = (vectors + MAX_NR - 1) / MAX_NR;
    for (int64_t s = 0, v = 0; s < strips; s++) {
        const int nr = static_cast<int>((vectors - v + strips - s - 1) / (strips - s));
        const bool last = v + nr == vectors;
        strip_of<BF16, MAX_NR>(nr, p, c, v * LANES, last ? tail_columns : 0);
        v += nr;
    }
}

template <bool BF16>
void multiply(const Product& p, float* c, int64_t stride, bool add) {
    if (add)
        multiply<BF16>(p, AddedRows{c, stride});
    else
        multiply<BF16>(p, StoredRows{c, stride});
}

}  // namespace
