// Rounds awkward shapes to E4M3 and back on heap buffers of exactly the right size, for the sanitizers.
#include "fp8.cpp"

#include <cstdio>

#include "driver_threads.h"

template <class Number>
static void round_trip(int64_t rows, int64_t columns, Number one, int transposed, int64_t down, int64_t across) {
    const int32_t threads = transposed ? 3 : 1;
    std::vector<Number> x(rows * columns, one);
    std::vector<uint8_t> values(rows * columns);
    const int64_t bands = (rows + down - 1) / down, groups = (columns + across - 1) / across;
    std::vector<float> scales(bands * groups), y(rows * columns);
    const int32_t is_bfloat16 = sizeof(Number) == 2;
    wt_to_e4m3(rows, columns, columns, x.data(), is_bfloat16, down, across, 1e-30f, transposed, values.data(),
               scales.data(), threads);
    if (transposed) std::swap(rows, columns), std::swap(down, across);
    wt_from_e4m3(rows, columns, values.data(), scales.data(), down, across, y.data(), threads);
}

int main() {
    use_threads();
    int cases = 0;
    for (int64_t rows : {1, 7, 130})
        for (int64_t columns : {1, 33, 200})
            for (int transposed = 0; transposed < 2; transposed++) {
                round_trip(rows, columns, 0.5f, transposed, 1, 128);
                round_trip(rows, columns, 0.5f, transposed, 128, 1);
                round_trip(rows, columns, uint16_t{0x3f80}, transposed, 128, 128);
                cases++;
            }
    std::printf("%d cases\n", cases);
}
