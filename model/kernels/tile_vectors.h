// Squares of sums in vector registers, for CPUs that multiply bfloat16 but have no tile unit (Zen 4 and later, Cooper
// Lake), and for the sanitizers, which cannot see into the unit.
//
// A row of sums of one square is one vector; a word of the left factor is multiplied with a row of the right one.
#pragma once

#include "tile_format.h"

namespace {

struct TileRegisters {  // there are none to prepare
    TileRegisters() {}
    ~TileRegisters() {}
};

// Which parts of the factors are multiplied, small products first, to lose the fewest digits.
template <int PARTS>
struct Partial {
    static constexpr int LEFT[] = {0, 0, 1, 1, 2, 0}, RIGHT[] = {2, 1, 1, 0, 0, 0}, COUNT = 6;
};
template <>
struct Partial<1> {
    static constexpr int LEFT[] = {0}, RIGHT[] = {0}, COUNT = 1;
};

// ROWS rows of NR squares of sums beside each other; `next` floats from one square's right factor to the next.
template <int PARTS, int ROWS, int NR>
inline void sum_rows(const float* a, const float* b, int64_t depth, int64_t next, float* c, int64_t stride,
                     int64_t next_square, bool add) {
    vec sums[ROWS][NR];
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < NR; j++) sums[i][j] = add ? load(c + i * stride + j * next_square) : vec{};
    for (int64_t k = 0; k < depth; k++, a += PARTS * SQUARE, b += PARTS * SQUARE)
        for (int part = 0; part < Partial<PARTS>::COUNT; part++) {
            const float* left = a + Partial<PARTS>::LEFT[part] * SQUARE;
            const float* right = b + Partial<PARTS>::RIGHT[part] * SQUARE;
            for (int64_t w = 0; w < SIDE; w++) {
                vec words[NR];
#pragma GCC unroll 4
                for (int j = 0; j < NR; j++) words[j] = load(right + j * next + w * SIDE);
#pragma GCC unroll 16
                for (int i = 0; i < ROWS; i++) {
                    const vec word = splat(left[i * SIDE + w]);
#pragma GCC unroll 4
                    for (int j = 0; j < NR; j++)
                        sums[i][j] = (vec)_mm512_dpbf16_ps((__m512)sums[i][j], (__m512bh)word, (__m512bh)words[j]);
                }
            }
        }
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < NR; j++) store(c + i * stride + j * next_square, sums[i][j]);
}

// MR x NR squares of sums = or += A . B over `depth` tiles; a factor's next row of tiles is `next` floats further.
// turn() is called as often as on the tile unit, but between sums: a call would push them out of their registers.
template <int PARTS, int MR, int NR, bool B_PASSES = false, class Sums, class Turn>
inline void sum_squares(const float* a, const float* b, int64_t depth, int64_t next, Sums c, bool add, Turn turn) {
    // Sums of 8 x 2 or 4 x 4 vectors hide the latency, and a word of the right factor serves 4 to 16 of the left: 218
    // and 222 GFLOP/s of 225 on Zen 4, 16 x 1 161 (LOG.md, 2026-11-27).
    constexpr int ROWS = NR == 1 ? SIDE : NR == 4 ? 4 : 8;
    for (int64_t i = 0; i < MR; i++) {
        const int64_t next_square = NR > 1 ? c.at(i, 1) - c.at(i, 0) : 0;
        for (int64_t row = 0; row < SIDE; row += ROWS)
            sum_rows<PARTS, ROWS, NR>(a + i * next + row * SIDE, b, depth, next, c.at(i, 0) + row * c.stride, c.stride,
                                      next_square, add);
    }
    for (int64_t step = 0; step < depth * Partial<PARTS>::COUNT; step++) turn();
}

}  // namespace
