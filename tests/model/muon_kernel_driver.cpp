// Runs Muon's step over awkward shapes on heap buffers of exactly the right size, for the sanitizers.
#include "muon.cpp"

#include <cstdio>

#include "driver_threads.h"

using Floats = std::vector<float>;

int main() {
    use_threads();
    int cases = 0;
    for (int threads = 1; threads <= 3; threads += 2)
        for (int64_t rows : {1, 4, 7, 16, 17, 33})
            for (int64_t cols : {1, 3, 16, 40}) {
                Floats weights(3 * rows * cols, 1.0f), grads(3 * rows * cols, 0.5f), momenta(3 * rows * cols);
                for (size_t i = 0; i < grads.size(); i++) grads[i] += static_cast<float>(i % 7);
                const int64_t counts[] = {2, 1}, heights[] = {rows, rows}, widths[] = {cols, cols};
                const int64_t second = 2 * rows * cols;
                float* w[] = {weights.data(), weights.data() + second};
                const float* g[] = {grads.data(), grads.data() + second};
                float* m[] = {momenta.data(), momenta.data() + second};
                wt_muon(2, counts, heights, widths, w, g, m, 0.95, 0.01, 0.1, threads);
                cases++;
            }
    std::printf("%d cases\n", cases);
}
