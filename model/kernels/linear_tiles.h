// The products of a linear layer on the tile unit, accumulated in fp32. With factors split into three bfloat16
// parts (tiles.h) they are as exact as fp32 multiply-adds and faster than those can be; with one part the factors
// are rounded to bfloat16.
//
// Rows are processed in blocks whose packed parts stay in L2. Squares of sums are written straight to the rows of
// C; those that cross an edge go through a buffer.
#pragma once

#include "rows.h"
#include "tiles.h"

#if defined(__AVX512BF16__)

namespace {

constexpr int PARTS_OF_FP32 = 3;
template <int PARTS>
constexpr int64_t SUMMED_AT_ONCE = 12 / PARTS * DEPTH;  // a block's two factors fill L1
template <int PARTS>
constexpr double NS_A_TILE_MULTIPLY = PARTS == 1 ? NS_A_MULTIPLY / 3 : NS_A_MULTIPLY;
constexpr int64_t ROWS_AT_ONCE = 256, COLUMNS_AT_ONCE = 512;  // of a packed factor, which then stays in L2

// `rows` x `columns` sums, at most MR x NR squares; those that cross an edge go through a buffer.
template <int PARTS, int MR, int NR>
void sums_to_rows(const float* a, const float* b, int64_t depth, int64_t rows, int64_t columns, SquaresInRows c,
                  bool add) {
    const int64_t next = depth * PARTS * SQUARE;
    if (rows == MR * SIDE && columns == NR * SIDE) return sum_squares<PARTS, MR, NR>(a, b, depth, next, c, add, [] {});
    alignas(64) float edge[MR * NR * SQUARE];
    sum_squares<PARTS, MR, NR>(a, b, depth, next, SquaresInRows{edge, NR * SIDE}, false, [] {});
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j += SIDE) {
            const int lanes = static_cast<int>(std::min(SIDE, columns - j));
            float* at = c.data + i * c.stride + j;
            const vec sum = load(edge + i * NR * SIDE + j);
            store_first(at, add ? sum + load_first(at, lanes) : sum, lanes);
        }
}

// C[M, N] = or += A . B of packed factors with `depth` tiles along the dimension summed over.
template <int PARTS>
void multiply_packed(const float* a, int64_t M, const float* b, int64_t N, int64_t depth, SquaresInRows c, bool add) {
    constexpr int64_t PAIR = 2 * SIDE;
    for (int64_t j = 0; j < N; j += PAIR)
        for (int64_t i = 0; i < M; i += PAIR) {
            const int64_t rows = std::min(PAIR, M - i), columns = std::min(PAIR, N - j);
            const bool tall = rows > SIDE, wide = columns > SIDE;
            const auto sums = tall ? (wide ? sums_to_rows<PARTS, 2, 2> : sums_to_rows<PARTS, 2, 1>)
                                   : (wide ? sums_to_rows<PARTS, 1, 2> : sums_to_rows<PARTS, 1, 1>);
            sums(tile_at<PARTS>(a, i / SIDE, 0, depth), tile_at<PARTS>(b, j / SIDE, 0, depth), depth,
                 rows, columns, {c.data + i * c.stride + j, c.stride}, add);
        }
}

template <int PARTS, int MR, int NR>
void squares_apart(const float* a, const float* b, int64_t depth, int64_t next, SquaresApart c, bool add) {
    sum_squares<PARTS, MR, NR>(a, b, depth, next, c, add, [] {});
}

// C [m, n squares], each square stored contiguously, for any depth.
template <int PARTS>
void multiply_squares(const float* a, int64_t m, const float* b, int64_t n, int64_t depth, SquaresApart c, bool add) {
    constexpr int64_t AT_ONCE = SUMMED_AT_ONCE<PARTS> / DEPTH;
    const int64_t next = depth * PARTS * SQUARE;
    for (int64_t k = 0; k < depth; k += AT_ONCE)
        for (int64_t j = 0; j < n; j += 2)
            for (int64_t i = 0; i < m; i += 2) {
                const bool tall = i + 1 < m, wide = j + 1 < n;
                const auto sums = tall ? (wide ? squares_apart<PARTS, 2, 2> : squares_apart<PARTS, 2, 1>)
                                       : (wide ? squares_apart<PARTS, 1, 2> : squares_apart<PARTS, 1, 1>);
                sums(tile_at<PARTS>(a, i, k, depth), tile_at<PARTS>(b, j, k, depth), std::min(AT_ONCE, depth - k), next,
                     {c.at(i, j), c.columns}, add || k > 0);
            }
}

template <int PARTS>
inline int64_t packed_floats(int64_t rows, int64_t summed) {
    return squares_of(rows) * depths_of(summed) * PARTS * SQUARE;
}

// w[N, K] packed once as a right factor for any number of left factors, in panels of SUMMED_AT_ONCE<PARTS>: its
// rows become the factor's columns or, with `across`, stay its rows.
template <int PARTS>
struct PackedWeights {
    PackedWeights(const float* w, int64_t N, int64_t K, bool across)
        : columns(across ? K : N), summed(across ? N : K), packed(packed_floats<PARTS>(columns, summed)) {
        for (int64_t s = 0; s < summed; s += SUMMED_AT_ONCE<PARTS>) {
            const int64_t count = std::min(SUMMED_AT_ONCE<PARTS>, summed - s);
            if (across)
                pack_across<PARTS>([&](int64_t i) { return w + (s + i) * K; }, count, K, panel(s));
            else
                pack_along<PARTS, true>([&](int64_t i) { return w + i * K + s; }, N, count, panel(s));
        }
    }
    float* panel(int64_t s) const { return packed.data + packed_floats<PARTS>(columns, s); }
    int64_t columns, summed;
    Buffer packed;
};

// y[M, columns] = (y +) x[M, summed] . weights
template <int PARTS>
void multiply_weights(int64_t M, const float* x, const PackedWeights<PARTS>& w, float* y, bool add, int threads) {
    share_rows(M, w.columns * w.summed * NS_A_TILE_MULTIPLY<PARTS>, threads, [&](int64_t from, int64_t to) {
        const TileRegisters registers;
        Buffer left(packed_floats<PARTS>(std::min(ROWS_AT_ONCE, to - from), std::min(SUMMED_AT_ONCE<PARTS>, w.summed)));
        for (int64_t m = from; m < to; m += ROWS_AT_ONCE)
            for (int64_t s = 0; s < w.summed; s += SUMMED_AT_ONCE<PARTS>) {
                const int64_t rows = std::min(ROWS_AT_ONCE, to - m),
                              summed = std::min(SUMMED_AT_ONCE<PARTS>, w.summed - s);
                const auto row = [&](int64_t i) { return x + (m + i) * w.summed + s; };
                pack_along<PARTS, false>(row, rows, summed, left.data);
                multiply_packed<PARTS>(left.data, rows, w.panel(s), w.columns, depths_of(summed),
                                {y + m * w.columns, w.columns}, add || s > 0);
            }
    });
}

// C[N, K] = (C +) a[M, N]^T . b[M, K]; threads share the rows of C.
template <int PARTS>
void multiply_transposed(int64_t M, int64_t N, int64_t K, const float* a, const float* b, float* c, bool add,
                                int threads) {
    share_rows(N, M * K * NS_A_TILE_MULTIPLY<PARTS>, threads, [&](int64_t from, int64_t to) {
        const TileRegisters registers;
        const int64_t own = to - from, most = std::min(SUMMED_AT_ONCE<PARTS>, M);
        Buffer left(packed_floats<PARTS>(own, most)), right(packed_floats<PARTS>(std::min(COLUMNS_AT_ONCE, K), most));
        for (int64_t m = 0; m < M; m += SUMMED_AT_ONCE<PARTS>) {
            const int64_t rows = std::min(SUMMED_AT_ONCE<PARTS>, M - m), depth = depths_of(rows);
            pack_across<PARTS>([&](int64_t i) { return a + (m + i) * N + from; }, rows, own, left.data);
            for (int64_t tile = 0; tile < squares_of(own) * depth; tile++)
                transpose_tiles<PARTS>(left.data + tile * PARTS * SQUARE);
            for (int64_t k = 0; k < K; k += COLUMNS_AT_ONCE) {
                const int64_t columns = std::min(COLUMNS_AT_ONCE, K - k);
                pack_across<PARTS>([&](int64_t i) { return b + (m + i) * K + k; }, rows, columns, right.data);
                multiply_packed<PARTS>(left.data, own, right.data, columns, depth, {c + from * K + k, K}, add || m > 0);
            }
        }
    });
}

// to[N, K] = (to +) from[K, N]^T
inline void transpose_rows(int64_t N, int64_t K, const float* from, float* to, bool add) {
    for (int64_t n = 0; n < N; n += LANES)
        for (int64_t k = 0; k < K; k += LANES) {
            const int rows = static_cast<int>(std::min<int64_t>(LANES, N - n)),
                      columns = static_cast<int>(std::min<int64_t>(LANES, K - k));
            vec r[LANES];
            for (int i = 0; i < LANES; i++) r[i] = i < columns ? load_first(from + (k + i) * N + n, rows) : vec{};
            transpose(r);
            for (int i = 0; i < rows; i++) {
                float* at = to + (n + i) * K + k;
                store_first(at, add ? r[i] + load_first(at, columns) : r[i], columns);
            }
        }
}

// dw[N, K] = (dw +) dy[M, N]^T . x[M, K]. The left factor's parts must be transposed, so it is the narrower one.
template <int PARTS>
void weight_gradient(int64_t M, int64_t N, int64_t K, const float* dy, const float* x, float* dw, bool add,
                            int threads) {
    if (N <= K) return multiply_transposed<PARTS>(M, N, K, dy, x, dw, add, threads);
    Buffer turned(K * N);
    multiply_transposed<PARTS>(M, K, N, x, dy, turned.data, false, threads);
    transpose_rows(N, K, turned.data, dw, add);
}

}  // namespace

#endif
