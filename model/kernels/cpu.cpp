// The routed experts of a mixture-of-experts layer on a CPU, forward and backward: the entry points of both
// implementations.
//
// `experts_vectors.h` multiplies rows as they lie, on every CPU; `experts_tiles.h` packed squares, on the tile unit
// where there is one. Both fuse everything per tile of one expert's tokens: nothing of size T*K*D is ever stored. For
// the backward pass only the pre-activations H are saved, or, without a buffer for them, recomputed.
//
// All tensors are fp32. With bf16 the factors of every product are rounded to bfloat16; accumulation is fp32.

#include "experts_tiles_backward.h"
#include "experts_tiles_forward.h"
#include "experts_vectors.h"
#include "team.h"

namespace {

// Threads worth using for `passes` times the work of a forward pass.
inline int32_t experts_team(const Layer& l, int passes, int32_t threads) {
    return team(passes * 3.0 * l.T * l.K * l.D * l.H * NS_A_MULTIPLY, threads);
}

}  // namespace

extern "C" {

int32_t wt_lanes() { return LANES; }

// What compiled this; compilers fuse and order operations differently, so it decides the last bits.
const char* wt_compiler() {
#if defined(__clang__)
    return __VERSION__;
#else
    return "GCC " __VERSION__;
#endif
}

// Whether this machine multiplies packed squares, as it must for bfloat16, and whether on a tile unit.
int32_t wt_has_squares() { return squares_allowed(); }
int32_t wt_has_tiles() { return tiles_allowed(); }

// Size in floats of the buffer that saves H between forward and backward, for any routing of T*K pairs.
int64_t wt_saved_floats(int64_t pairs, int64_t E, int64_t H, int32_t bf16, int32_t tiles) {
    // In vectors an expert may end in one partial vector.
    const int64_t columns = tiles ? pairs : pairs + std::min(pairs, E) * (LANES - 1);
    return 2 * H * columns / (bf16 ? 2 : 1);
}

// Returns 0, or 1 if an expert index is out of range and nothing was computed; so does backward.
int32_t wt_experts_forward(int64_t T, int64_t D, int64_t E, int64_t H, int64_t K, const float* x,
                           const int64_t* expert, const float* gate, const float* w_gate_up,
                           const float* w_down, float* y, float* saved, int32_t bf16, int32_t tiles,
                           int32_t threads) {
    Layer layer{T, D, E, H, K, x, expert, gate, w_gate_up, w_down, threads};
    layer.threads = experts_team(layer, 1, threads);
#if defined(__AVX512BF16__)
    if (tiles) return bf16 ? tiles_forward<1>(layer, y, saved) : tiles_forward<3>(layer, y, saved);
    if (bf16) return vectors_forward<true>(layer, y, saved);
#endif
    return vectors_forward<false>(layer, y, saved);
}

int32_t wt_experts_backward(int64_t T, int64_t D, int64_t E, int64_t H, int64_t K, const float* x,
                            const int64_t* expert, const float* gate, const float* w_gate_up,
                            const float* w_down, const float* saved, const float* dy, float* dx,
                            float* dgate, float* dw_gate_up, float* dw_down, int32_t bf16, int32_t tiles,
                            int32_t threads) {
    Layer layer{T, D, E, H, K, x, expert, gate, w_gate_up, w_down, threads};
    layer.threads = experts_team(layer, 2, threads);
    const Gradients out{dy, dx, dgate, dw_gate_up, dw_down};
#if defined(__AVX512BF16__)
    if (tiles) return bf16 ? tiles_backward<1>(layer, saved, out) : tiles_backward<3>(layer, saved, out);
    if (bf16) return vectors_backward<true>(layer, saved, out);
#endif
    return vectors_backward<false>(layer, saved, out);
}

}  // extern "C"
