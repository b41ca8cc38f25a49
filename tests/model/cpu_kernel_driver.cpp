// Runs the kernel over awkward shapes on heap buffers of exactly the right size, for the sanitizers.
#include "cpu.cpp"

#include <cstdio>

#include "driver_threads.h"

int main() {
    use_threads();
    const int64_t shapes[][5] = {{64, 32, 8, 16, 2}, {1, 33, 5, 7, 2},  {100, 50, 4, 9, 3},
                                 {40, 5, 3, 3, 1},   {9, 64, 64, 16, 8}, {130, 300, 2, 130, 2}};
    int cases = 0;
    for (const auto& s : shapes)
        for (int threads = 1; threads <= 2; threads++)
            for (int variant = 0; variant < (wt_has_squares() ? 8 : 2); variant++) {
                const bool recompute = variant & 1, bf16 = variant & 2, tiles = variant & 4;
                const int64_t T = s[0], D = s[1], E = s[2], H = s[3] + (bf16 && !tiles) * (s[3] % 2), K = s[4];
                std::vector<float> x(T * D, 0.5f), gate(T * K, 0.25f), w_in(E * 2 * H * D, 0.1f);
                std::vector<float> w_out(E * H * D, 0.1f), y(T * D), dy(T * D, 1.0f), dx(T * D);
                std::vector<float> dgate(T * K), dw_in(E * 2 * H * D), dw_out(E * H * D);
                std::vector<int64_t> expert(T * K);
                for (int64_t t = 0; t < T; t++)
                    for (int64_t k = 0; k < K; k++) expert[t * K + k] = (t * 7 + k) % E;
                std::vector<float> kept(wt_saved_floats(T * K, E, H, bf16, tiles));
                float* saved = recompute ? nullptr : kept.data();
                if (wt_experts_forward(T, D, E, H, K, x.data(), expert.data(), gate.data(),
                                       w_in.data(), w_out.data(), y.data(), saved, bf16, tiles, threads))
                    return 1;
                if (wt_experts_backward(T, D, E, H, K, x.data(), expert.data(), gate.data(),
                                        w_in.data(), w_out.data(), saved, dy.data(), dx.data(),
                                        dgate.data(), dw_in.data(), dw_out.data(), bf16, tiles, threads))
                    return 1;
                cases++;
            }
    std::printf("%d cases\n", cases);
}
