// Products of packed factors on the tile unit, overlapped with vector work (beside.h).
#pragma once

#include "beside.h"
#include "tile_packing.h"

#if defined(__AVX512BF16__)

namespace {

// MR x NR squares of C; square (i, j) is at c + (i * c_columns + j) * SQUARE. Queued work gets a turn after every
// step.
template <int PARTS, int MR, int NR, bool B_PASSES>
void square_block(const float* a, const float* b, int64_t depth, float* c, int64_t c_columns, bool add,
                  Asides& beside) {
    sum_squares<PARTS, MR, NR, B_PASSES>(a, b, depth, depth * PARTS * SQUARE, SquaresApart{c, c_columns}, add,
                                         [&] { beside.some(); });
}

template <int PARTS, int MR, int NR>
void last_squares(int64_t left, const float* a, const float* b, int64_t depth, float* c, int64_t c_columns,
                  bool add, Asides& beside) {
    if (left >= std::max(MR, NR)) return square_block<PARTS, MR, NR, false>(a, b, depth, c, c_columns, add, beside);
    if constexpr (MR > 1) return last_squares<PARTS, MR - 1, NR>(left, a, b, depth, c, c_columns, add, beside);
    if constexpr (NR > 1) return last_squares<PARTS, MR, NR - 1>(left, a, b, depth, c, c_columns, add, beside);
}

// Steps of an m x n product: the turns that queued work gets.
template <int PARTS>
constexpr int64_t steps_of(int64_t m, int64_t n, int64_t depth) {
    const int64_t blocks = (m / 2) * (n / 2) + m % 2 * ((n + 3) / 4) + n % 2 * ((m / 2 * 2 + 3) / 4);
    return blocks * depth * (PARTS == 1 ? 1 : 6);
}

// C [m, n squares] = or += A . B, each of `depth` tiles. Every sum is taken in the same order however the squares
// are grouped: the bits of a token's answer do not depend on which tokens share its block.
template <int PARTS>
void multiply_tiles(const float* a, int64_t m, const float* b, int64_t n, int64_t depth, float* c,
                    int64_t c_columns, bool add, Asides& beside) {
    const auto a_at = [&](int64_t i) { return tile_at<PARTS>(a, i, 0, depth); };
    const auto b_at = [&](int64_t j) { return tile_at<PARTS>(b, j, 0, depth); };
    const auto c_at = [&](int64_t i, int64_t j) { return c + (i * c_columns + j) * SQUARE; };
    const int64_t even_m = m / 2 * 2, even_n = n / 2 * 2;
    for (int64_t j = 0; j < even_n; j += 2)
        for (int64_t i = 0; i < even_m; i += 2)
            if (m <= 2)  // B is read once and A stays in L1 (3 % of the layer at experts of 64)
                square_block<PARTS, 2, 2, true>(a_at(i), b_at(j), depth, c_at(i, j), c_columns, add, beside);
            else
                square_block<PARTS, 2, 2, false>(a_at(i), b_at(j), depth, c_at(i, j), c_columns, add, beside);
    if (m > even_m)
        for (int64_t j = 0; j < n; j += 4)
            last_squares<PARTS, 1, 4>(n - j, a_at(even_m), b_at(j), depth, c_at(even_m, j), c_columns, add, beside);
    if (n > even_n)
        for (int64_t i = 0; i < even_m; i += 4)
            last_squares<PARTS, 4, 1>(even_m - i, a_at(i), b_at(even_n), depth, c_at(i, even_n), c_columns, add,
                                      beside);
}

}  // namespace

#endif
