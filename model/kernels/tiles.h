// Matrix products on a CPU's tile unit (AMX): C += A . B in squares of 16 x 16 fp32 sums.
//
// A tile is 16 rows of 16 words; a word is two bfloat16 adjacent along the reduction dimension, and one
// instruction reduces over DEPTH = 32 values. Factors are packed tile by tile, so that every load reads 16
// consecutive cache lines.
//
// PARTS = 1 rounds a factor to bfloat16. PARTS = 3 splits it into three bfloat16, high + mid + low, which hold all
// 24 bits of a float, and adds six of the nine partial products, smallest first. What is dropped is below 2^-24 of
// the product, so the result is as exact as fp32 multiply-adds, at a sixth of the tile unit's bfloat16 rate.
// (Values below 1e-33 lose their low parts; infinities become NaN.)
//
// Without the unit, or with WT_PLAIN_TILES for the sanitizers, which cannot see into it, the same code runs on
// arrays.
#pragma once

#include <type_traits>
#include <utility>

#include "vectors.h"

#if defined(__AVX512BF16__)

// Clang up to 14 writes the name without its middle stroke.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__) && !defined(WT_PLAIN_TILES)
#define WT_TILE_UNIT
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr int64_t SIDE = LANES;  // rows and columns of a square of sums; words in a row of a tile
constexpr int64_t SQUARE = SIDE * SIDE;
constexpr int64_t DEPTH = 2 * SIDE;

constexpr int64_t squares_of(int64_t n) { return (n + SIDE - 1) / SIDE; }
constexpr int64_t depths_of(int64_t n) { return (n + DEPTH - 1) / DEPTH; }

// Whether tile products run on this machine: the CPU has the unit and the operating system grants its registers.
inline bool tiles_allowed() {
#if defined(WT_TILE_UNIT)
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return allowed;
#else
    return false;
#endif
}

#if defined(WT_TILE_UNIT)
// Configures all eight registers as 16 rows of 64 bytes for the lifetime of this object.
struct TileRegisters {
    TileRegisters() {
        struct __attribute__((packed)) {
            uint8_t palette = 1, start_row = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } config;
        for (int i = 0; i < 8; i++) config.row_bytes[i] = 64, config.rows[i] = SIDE;
        asm volatile("ldtilecfg %0" : : "m"(config));
    }
    ~TileRegisters() { asm volatile("tilerelease"); }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;
};
template <int R>
inline void tile_zero() {
    asm volatile("tilezero %%tmm%c0" : : "i"(R));
}
// With PASSES the data will not be read again soon and should not displace others from L1.
template <int R, bool PASSES = false>
inline void tile_load(const float* p) {
    if constexpr (PASSES)
        asm volatile("tileloaddt1 (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(int64_t{64}), "i"(R) : "memory");
    else
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(int64_t{64}), "i"(R) : "memory");
}
template <int SUM, int A, int B>
inline void tile_multiply() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(SUM), "i"(A), "i"(B));
}
#else
struct TileRegisters {
    TileRegisters() {}
    ~TileRegisters() {}
};
thread_local float tile_register[8][SQUARE];
template <int R>
inline void tile_zero() {
    std::fill_n(tile_register[R], SQUARE, 0.0f);
}
template <int R, bool PASSES = false>
inline void tile_load(const float* p) {
    std::copy_n(p, SQUARE, tile_register[R]);
}
template <int SUM, int A, int B>
inline void tile_multiply() {
    for (int64_t m = 0; m < SIDE; m++)
        for (int64_t w = 0; w < SIDE; w++) {
            const vec sum = load(tile_register[SUM] + m * SIDE), b = load(tile_register[B] + w * SIDE);
            const vec a = splat(tile_register[A][m * SIDE + w]);
            store(tile_register[SUM] + m * SIDE, (vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b));
        }
}
#endif

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

// One step of DEPTH for MR x NR squares (registers 0 to 3), with part A of the left factor and part B of the right.
// FRESH_A and FRESH_B: that part is not in its registers yet. B_PASSES: the right factor will not be read again soon.
template <int PARTS, int MR, int NR, int A, int B, bool FRESH_A, bool FRESH_B, bool B_PASSES = false>
inline void step(const float* a, const float* b, int64_t next) {
    const float *pa = a + A * SQUARE, *pb = b + B * SQUARE;
    if constexpr (MR <= 2 && NR <= 2) {
        if constexpr (FRESH_A) {
            tile_load<4>(pa);
            if constexpr (MR == 2) tile_load<5>(pa + next);
        }
        if constexpr (FRESH_B) {
            tile_load<6, B_PASSES>(pb);
            if constexpr (NR == 2) tile_load<7, B_PASSES>(pb + next);
        }
        tile_multiply<0, 4, 6>();
        if constexpr (NR == 2) tile_multiply<1, 4, 7>();
        if constexpr (MR == 2) tile_multiply<2, 5, 6>();
        if constexpr (MR == 2 && NR == 2) tile_multiply<3, 5, 7>();
    } else if constexpr (NR == 1) {  // a single column of up to four squares
        if constexpr (FRESH_B) tile_load<6, B_PASSES>(pb);
        tile_load<4>(pa);
        tile_multiply<0, 4, 6>();
        tile_load<5>(pa + next);
        tile_multiply<1, 5, 6>();
        tile_load<4>(pa + 2 * next);
        tile_multiply<2, 4, 6>();
        if constexpr (MR == 4) {
            tile_load<5>(pa + 3 * next);
            tile_multiply<3, 5, 6>();
        }
    } else {
        if constexpr (FRESH_A) tile_load<4>(pa);
        tile_load<6, B_PASSES>(pb);
        tile_multiply<0, 4, 6>();
        tile_load<7, B_PASSES>(pb + next);
        tile_multiply<1, 4, 7>();
        tile_load<6, B_PASSES>(pb + 2 * next);
        tile_multiply<2, 4, 6>();
        if constexpr (NR == 4) {
            tile_load<7, B_PASSES>(pb + 3 * next);
            tile_multiply<3, 4, 7>();
        }
    }
}

// The register of square (i, j) of MR x NR.
template <int MR, int NR>
constexpr int sum_register(int i, int j) {
    return MR <= 2 && NR <= 2 ? 2 * i + j : i + j;
}
template <int MR, int NR, class Do, size_t... S>
inline void each_square(Do of, std::index_sequence<S...>) {
    (of(std::integral_constant<int, sum_register<MR, NR>(S / NR, S % NR)>{}, S / NR, S % NR), ...);
}

#if defined(WT_TILE_UNIT)
template <int R>
inline void tile_load_rows(const float* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}
template <int R>
inline void tile_store_rows(float* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}
#else
template <int R>
inline void tile_load_rows(const float* p, int64_t stride) {
    for (int64_t i = 0; i < SIDE; i++) store(tile_register[R] + i * SIDE, load(p + i * stride));
}
template <int R>
inline void tile_store_rows(float* p, int64_t stride) {
    for (int64_t i = 0; i < SIDE; i++) store(p + i * stride, load(tile_register[R] + i * SIDE));
}
#endif

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

// MR x NR squares of sums = or += A . B over `depth` tiles; a factor's next row of tiles is `next` floats further.
// turn() is called after every step.
template <int PARTS, int MR, int NR, bool B_PASSES = false, class Sums, class Turn>
inline void sum_squares(const float* a, const float* b, int64_t depth, int64_t next, Sums c, bool add, Turn turn) {
    constexpr auto all = std::make_index_sequence<MR * NR>{};
    each_square<MR, NR>(
        [&](auto r, int64_t i, int64_t j) {
            if (add)
                tile_load_rows<decltype(r)::value>(c.at(i, j), c.stride);
            else
                tile_zero<decltype(r)::value>();
        },
        all);
    for (int64_t k = 0; k < depth; k++, a += PARTS * SQUARE, b += PARTS * SQUARE) {
        if constexpr (PARTS == 1) {
            step<1, MR, NR, 0, 0, true, true, B_PASSES>(a, b, next);
            turn();
        } else {  // small products first, to lose the fewest digits
            step<3, MR, NR, 0, 2, true, true, B_PASSES>(a, b, next);
            turn();
            step<3, MR, NR, 0, 1, false, true, B_PASSES>(a, b, next);
            turn();
            step<3, MR, NR, 1, 1, true, false, B_PASSES>(a, b, next);
            turn();
            step<3, MR, NR, 1, 0, false, true, B_PASSES>(a, b, next);
            turn();
            step<3, MR, NR, 2, 0, true, false, B_PASSES>(a, b, next);
            turn();
            step<3, MR, NR, 0, 0, true, false, B_PASSES>(a, b, next);
            turn();
        }
    }
    each_square<MR, NR>(
        [&](auto r, int64_t i, int64_t j) { tile_store_rows<decltype(r)::value>(c.at(i, j), c.stride); }, all);
}

}  // namespace

#endif
