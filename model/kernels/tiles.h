// Matrix products in squares: C += A . B in squares of 16 x 16 fp32 sums, of factors packed in tiles (tile_format.h).
//
// On the tile unit of a CPU that has one (AMX; tile_unit.h), where one instruction multiplies two tiles; elsewhere in
// vector registers (tile_vectors.h). With factors split in three parts, six of the nine partial products are added,
// smallest first. What is dropped is below 2^-24 of the product, so on the unit the result is as exact as fp32
// multiply-adds, at a sixth of the bfloat16 rate. In vector registers every sum of two is rounded: twice the error, and
// slower than fp32; nothing but tests asks for it there.
//
// WT_PLAIN_TILES leaves the unit alone, for the sanitizers, which cannot see into it.
#pragma once

#include "tile_format.h"

#if defined(__AVX512BF16__)
// Clang up to 14 writes the name without its middle stroke.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && defined(__linux__) && !defined(WT_PLAIN_TILES)
#define WT_TILE_UNIT
#include <sys/syscall.h>
#include <unistd.h>

#include "tile_unit.h"
#else
#include "tile_vectors.h"
#endif
#endif

namespace {

// Whether there is a tile unit: the CPU has it and the operating system grants its registers.
inline bool tiles_allowed() {
#if defined(WT_TILE_UNIT)
    constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    static const bool allowed = syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
    return allowed;
#else
    return false;
#endif
}

// Whether products of squares run at all.
inline bool squares_allowed() {
#if defined(WT_TILE_UNIT)
    return tiles_allowed();
#elif defined(__AVX512BF16__)
    return true;
#else
    return false;
#endif
}

}  // namespace
