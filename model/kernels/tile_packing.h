// Packing the factors of tile products in small pieces, to be overlapped with products (beside.h).
#pragma once

#include "tiles.h"

#if defined(__AVX512BF16__)

namespace {

// Packs a row of `width` values, reduced over the width, into a left factor; `out` is its place in the first tile.
template <int PARTS>
inline void pack_row(const float* row, int64_t width, float* out) {
    for (; width >= DEPTH; width -= DEPTH, row += DEPTH, out += PARTS * SQUARE) {
        vec words[PARTS];
        words_along(load(row), load(row + SIDE), words);
        store_words<PARTS>(words, out);
    }
    if (width > 0) {
        vec words[PARTS];
        words_along(row_part(row, 0, width), row_part(row, SIDE, width), words);
        store_words<PARTS>(words, out);
    }
}
// The same of a row of zeros.
template <int PARTS>
inline void pack_zeros(int64_t width, float* out) {
    const vec zeros[PARTS] = {};
    for (; width > 0; width -= DEPTH, out += PARTS * SQUARE) store_words<PARTS>(zeros, out);
}

// Packs tile k of a right factor that has 16 rows, of which `count` exist, as columns. COLUMN_PIECES pieces a tile:
// the rows are packed four at a time, then each part is transposed.
template <int PARTS>
constexpr int64_t COLUMN_PIECES = 4 + PARTS;
template <int PARTS>
inline void pack_columns(const float* rows, int64_t count, int64_t width, int64_t k, int64_t piece, float* tile) {
    if (piece >= 4) return transpose_tiles<1>(tile + (piece - 4) * SQUARE);
    for (int64_t i = 4 * piece; i < 4 * piece + 4; i++) {
        const int64_t at = k * DEPTH, left = std::min(DEPTH, width - at);
        if (i < count)
            pack_row<PARTS>(rows + i * width + at, left, tile + i * SIDE);
        else
            pack_zeros<PARTS>(DEPTH, tile + i * SIDE);
    }
}

// Packs two rows of `width` columns (null for zeros), reduced over the rows, into a right factor with `depth` tiles
// in a column; `out` is their place in the first tile.
template <int PARTS>
inline void pack_pair(const float* first, const float* second, int64_t width, int64_t depth, float* out) {
    const int64_t next = depth * PARTS * SQUARE;
    int64_t c = 0;
    if (first && second)
        for (; c + SIDE <= width; c += SIDE, out += next) {
            vec words[PARTS];
            words_across(load(first + c), load(second + c), words);
            store_words<PARTS>(words, out);
        }
    for (; c < width; c += SIDE, out += next) {
        vec words[PARTS];
        words_across(first ? row_part(first, c, width) : vec{}, second ? row_part(second, c, width) : vec{}, words);
        store_words<PARTS>(words, out);
    }
}
// The place of a pair of rows in the first column of a right factor's tiles.
template <int PARTS>
inline float* pair_at(float* out, int64_t pair) {
    return out + pair / SIDE * PARTS * SQUARE + pair % SIDE * SIDE;
}

// Words that pair two rows, from one part of their tiles (DEPTH values each): of columns 0-15, or 16-31 if HIGH.
template <int PARTS, bool HIGH>
inline vec interleave(vec a, vec b) {
    const __m512i x = (__m512i)a, y = (__m512i)b;
    if constexpr (PARTS == 1) {
        return interleave<HIGH>(a, b);
    } else if constexpr (HIGH) {
        return (vec)_mm512_mask_blend_epi16(0xAAAAAAAA, _mm512_srli_epi32(x, 16), y);
    } else {
        return (vec)_mm512_mask_blend_epi16(0xAAAAAAAA, x, _mm512_slli_epi32(y, 16));
    }
}

// DEPTH rows already packed in two rows of a left factor's tiles; `lower` is null for zeros.
struct PackedRows {
    const float *upper, *lower;

    // The two rows of pair w: in the same square where adjacent rows are paired, in one each otherwise.
    template <int PARTS>
    void pair(int64_t w, int64_t at, vec& a, vec& b) const {
        if constexpr (PARTS == 1) {
            const float* square = w < SIDE / 2 ? upper : lower;
            const int64_t row = w % (SIDE / 2) * 2 * SIDE;
            a = square ? load(square + at + row) : vec{};
            b = square ? load(square + at + row + SIDE) : vec{};
        } else {
            a = load(upper + at + w * SIDE);
            b = lower ? load(lower + at + w * SIDE) : vec{};
        }
    }
};

// Pair `pair` of a left factor's `squares` of rows, starting at tile k along the width.
template <int PARTS>
inline PackedRows packed_rows(const float* left, int64_t squares, int64_t pair, int64_t k, int64_t depth) {
    const int64_t lower = 2 * pair + 1;
    const float* upper = tile_at<PARTS>(left, lower - 1, k, depth);
    return {upper, lower < squares ? tile_at<PARTS>(left, lower, k, depth) : nullptr};
}

// pack_pair from rows that are packed already: pair w, into `columns` columns of tiles.
template <int PARTS>
inline void pack_packed_pair(PackedRows rows, int64_t w, int64_t columns, int64_t depth, float* out) {
    const int64_t next = depth * PARTS * SQUARE;
    for (int64_t c = 0; c < columns; c += 2, out += 2 * next, rows.upper += PARTS * SQUARE) {
        for (int part = 0; part < PARTS; part++) {
            vec a, b;
            rows.pair<PARTS>(w, part * SQUARE, a, b);
            store(out + part * SQUARE, interleave<PARTS, false>(a, b));
            if (c + 1 < columns) store(out + next + part * SQUARE, interleave<PARTS, true>(a, b));
        }
        if (rows.lower) rows.lower += PARTS * SQUARE;
    }
}

// One part of a tile of the left factor whose rows are 16 columns of packed rows: the first 16 of a tile, or HIGH.
template <int PARTS, bool HIGH>
inline void pack_packed_columns(const PackedRows& rows, int part, float* tile) {
    vec r[LANES];
#pragma GCC unroll 16
    for (int w = 0; w < LANES; w++) {
        vec a, b;
        rows.pair<PARTS>(w, part * SQUARE, a, b);
        r[w] = interleave<PARTS, HIGH>(a, b);
    }
    transpose(r);
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) store(tile + part * SQUARE + i * SIDE, r[i]);
}

}  // namespace

#endif
