// What this machine's arithmetic and memory can do at most: multiply-adds in registers, a copy in memory.
#include <ctime>

#include "products.h"

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
