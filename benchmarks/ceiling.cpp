// What this machine's arithmetic and memory can do at most: multiply-adds in registers, a copy in memory.
#include <ctime>

#include "products.h"
#include "tiles.h"

namespace {
// Processor time of this thread: other work on the machine must not lower the ceiling.
double now() {
    timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

template <bool BF16>
double gflops() {
    constexpr int CHAINS = 12, ROUNDS = 2000000;
    vec sums[CHAINS] = {};
    const vec a = splat(0.731f), b = splat(0.912f);
    const double began = now();
    for (int r = 0; r < ROUNDS; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < CHAINS; i++) {
            sums[i] = multiply_add<BF16>(sums[i], a, b);
            asm volatile("" : "+v"(sums[i]));
        }
    }
    return 2.0 * (BF16 ? 2 : 1) * LANES * CHAINS * ROUNDS / (now() - began) / 1e9;
}
}  // namespace

extern "C" {
double wt_fp32_gflops() { return gflops<false>(); }
double wt_bf16_gflops() {
#if defined(__AVX512BF16__)
    return gflops<true>();
#else
    return 0;
#endif
}
double wt_tiles_gflops() {
#if defined(WT_TILE_UNIT)
    if (!tiles_allowed()) return 0;
    constexpr int ROUNDS = 200000;
    const TileRegisters registers;
    each_square<2, 2>([](auto r, int64_t, int64_t) { tile_zero<decltype(r)::value>(); },
                      std::make_index_sequence<4>{});
    const double began = now();
    for (int r = 0; r < ROUNDS; r++) {
        tile_multiply<0, 4, 6>();
        tile_multiply<1, 4, 7>();
        tile_multiply<2, 5, 6>();
        tile_multiply<3, 5, 7>();
    }
    return 4 * 2.0 * SQUARE * DEPTH * ROUNDS / (now() - began) / 1e9;
#else
    return 0;
#endif
}
// Read and write together, over 64 MiB.
double wt_copy_gb_s() {
    const int64_t count = 8 << 20;
    Buffer from(count), to(count);
    std::memset(from.data, 1, count * 4);
    std::memset(to.data, 1, count * 4);
    const double began = now();
    for (int r = 0; r < 4; r++) {
        std::memcpy(to.data, from.data + r, (count - 4) * 4);
        asm volatile("" : : "r"(to.data) : "memory");
    }
    return 4 * 2.0 * count * 4 / (now() - began) / 1e9;
}
}
