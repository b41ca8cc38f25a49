// Squares of sums on the tile unit (AMX). It has eight registers of a tile each: sums are in the first four, the left
// factor in the next two, the right factor in the last two.
#pragma once

#include <type_traits>
#include <utility>

#include "tile_format.h"

namespace {

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

template <int R>
inline void tile_load_rows(const float* p, int64_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}
template <int R>
inline void tile_store_rows(float* p, int64_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(p), "r"(stride * 4), "i"(R) : "memory");
}

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
