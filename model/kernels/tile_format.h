// How the factors of tile products lie in memory, and their sums.
//
// A tile is 16 rows of 16 words; a word is two bfloat16 adjacent along the reduction dimension, so that a tile
// reduces over DEPTH = 32 values. Factors are packed tile by tile: every load reads 16 consecutive cache lines.
//
// PARTS = 1 rounds a factor to bfloat16. PARTS = 3 splits it into three bfloat16, high + mid + low, which hold all
// 24 bits of a float. (Values below 1e-33 lose their low parts; infinities become NaN.)
#pragma once

#include "vectors.h"

#if defined(__AVX512BF16__)

namespace {

constexpr int64_t SIDE = LANES;  // rows and columns of a square of sums; words in a row of a tile
constexpr int64_t SQUARE = SIDE * SIDE;
constexpr int64_t DEPTH = 2 * SIDE;

constexpr int64_t squares_of(int64_t n) { return (n + SIDE - 1) / SIDE; }
constexpr int64_t depths_of(int64_t n) { return (n + DEPTH - 1) / DEPTH; }

// The two of DEPTH values that word `w` holds.
template <int PARTS>
constexpr int64_t first_of_word(int64_t w) {
    return PARTS == 1 ? 2 * w : w;
}
template <int PARTS>
constexpr int64_t second_of_word(int64_t w) {
    return PARTS == 1 ? 2 * w + 1 : w + SIDE;
}

inline vec high_halves(vec first, vec second) {
    const __m512i low = _mm512_srli_epi32((__m512i)first, 16);
    return (vec)_mm512_mask_blend_epi16(0xAAAAAAAA, low, (__m512i)second);
}
// To the nearest bfloat16, ties away from zero.
inline vec to_bfloat16(vec x) { return (vec)(((ivec)x + 0x8000) & static_cast<int32_t>(0xFFFF0000)); }

inline void words_of_parts(vec first, vec second, vec (&words)[3]) {
    for (int part = 0; part < 2; part++) {
        const vec a = to_bfloat16(first), b = to_bfloat16(second);
        words[part] = high_halves(a, b);
        first -= a;
        second -= b;
    }
    words[2] = high_halves(first, second);  // at most 8 bits remain
}
// Words of 32 consecutive values of one row: the first 16 and the second 16.
inline void words_along(vec first, vec second, vec (&words)[1]) { words[0] = neighbour_words(first, second); }
inline void words_along(vec first, vec second, vec (&words)[3]) { words_of_parts(first, second, words); }
// Words of 16 columns of two rows.
inline void words_across(vec first, vec second, vec (&words)[1]) { words[0] = pair_words(first, second); }
inline void words_across(vec first, vec second, vec (&words)[3]) { words_of_parts(first, second, words); }

// Stores each part's words at the same place in its tile.
template <int PARTS>
inline void store_words(const vec (&words)[PARTS], float* at) {
    for (int part = 0; part < PARTS; part++) store(at + part * SQUARE, words[part]);
}

// The vector at `at` of a row of `width` values, zero-padded.
inline vec row_part(const float* row, int64_t at, int64_t width) {
    if (at + SIDE <= width) return load(row + at);
    return at < width ? load_first(row + at, static_cast<int>(width - at)) : vec{};
}

template <int PARTS>
inline void transpose_tiles(float* tiles) {
    for (int part = 0; part < PARTS; part++) {
        vec r[LANES];
        for (int i = 0; i < LANES; i++) r[i] = load(tiles + part * SQUARE + i * SIDE);
        transpose(r);
        for (int i = 0; i < LANES; i++) store(tiles + part * SQUARE + i * SIDE, r[i]);
    }
}

// Tile (r, k) of a factor with `depth` tiles along the reduction dimension.
template <int PARTS, class Pointer>
inline Pointer tile_at(Pointer factor, int64_t r, int64_t k, int64_t depth) {
    return factor + (r * depth + k) * PARTS * SQUARE;
}

// Packs a left factor: n rows of `width` values, reduced over the width. TRANSPOSED gives the right factor that
// has these rows as columns. row(i) points to row i.
template <int PARTS, bool TRANSPOSED, class Row>
void pack_along(Row row, int64_t n, int64_t width, float* out) {
    const int64_t depth = depths_of(width);
    for (int64_t i0 = 0; i0 < n; i0 += SIDE) {
        for (int64_t i = 0; i < SIDE; i++) {
            const float* source = i0 + i < n ? row(i0 + i) : nullptr;
            for (int64_t k = 0; k < depth; k++) {
                vec words[PARTS] = {};
                const int64_t at = k * DEPTH;
                if (source)
                    words_along(row_part(source, at, width), row_part(source, at + SIDE, width), words);
                float* tile = tile_at<PARTS>(out, i0 / SIDE, k, depth) + i * SIDE;
                store_words<PARTS>(words, tile);
            }
        }
        if constexpr (TRANSPOSED)
            for (int64_t k = 0; k < depth; k++)
                transpose_tiles<PARTS>(tile_at<PARTS>(out, i0 / SIDE, k, depth));
    }
}

// Packs a right factor: n rows of `width` columns, reduced over the rows.
template <int PARTS, class Row>
void pack_across(Row row, int64_t n, int64_t width, float* out) {
    const int64_t depth = depths_of(n);
    for (int64_t k = 0; k < depth; k++)
        for (int64_t w = 0; w < SIDE; w++) {
            const int64_t i = k * DEPTH + first_of_word<PARTS>(w), j = k * DEPTH + second_of_word<PARTS>(w);
            const float *first = i < n ? row(i) : nullptr, *second = j < n ? row(j) : nullptr;
            for (int64_t c = 0; c < width; c += SIDE) {
                vec words[PARTS];
                words_across(first ? row_part(first, c, width) : vec{}, second ? row_part(second, c, width) : vec{},
                             words);
                float* tile = tile_at<PARTS>(out, c / SIDE, k, depth) + w * SIDE;
                store_words<PARTS>(words, tile);
            }
        }
}

// How squares of sums are stored: within rows of floats, or each contiguously.
struct SquaresInRows {
    float* data;
    int64_t stride;
    float* at(int64_t i, int64_t j) const { return data + i * SIDE * stride + j * SIDE; }
};
struct SquaresApart {
    float* data;
    int64_t columns;
    static constexpr int64_t stride = SIDE;
    float* at(int64_t i, int64_t j) const { return data + (i * columns + j) * SQUARE; }
};

}  // namespace

#endif
