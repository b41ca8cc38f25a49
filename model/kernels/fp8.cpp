// Rounding to E4M3 with a scale for each tile, and back: what model/fp8.py does in ten operations.
//
// A matrix is read in memory order, in bands of rows; a transposed one is the same matrix with its tiles and its
// result transposed. Results equal the plain implementation's to the last bit.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "team.h"

namespace {

constexpr float E4M3_MAX = 448.0f;
constexpr uint32_t NAN_BITS = 0x7f800001u;  // and above, sign removed

inline uint32_t bits_of(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

inline float wide(float x) { return x; }
inline float wide(uint16_t bfloat16) { return float_of(static_cast<uint32_t>(bfloat16) << 16); }

// Exponents 2^-6 to 2^8 with three mantissa bits, multiples of 2^-9 below that; ties to even.
inline uint8_t to_e4m3(float x) {
    const uint32_t bits = bits_of(x), sign = bits >> 24 & 0x80u, size = bits & 0x7fffffffu;
    const uint32_t clamped = std::min(size, bits_of(E4M3_MAX));
    const uint32_t normal = ((clamped + 0x7ffffu + (clamped >> 20 & 1u)) >> 20) - (120u << 3);
    const float magic = 16384.0f;  // its last bit is 2^-9, so adding it rounds to that
    const uint32_t small = bits_of(float_of(clamped) + magic) - bits_of(magic);
    const uint32_t code = clamped < bits_of(0x1p-6f) ? small : normal;
    return static_cast<uint8_t>(sign | (size >= NAN_BITS ? 0x7fu : code));
}

inline float from_e4m3(uint8_t code) {
    const uint32_t size = code & 0x7fu;
    const float small = static_cast<float>(static_cast<int32_t>(size)) * 0x1p-9f;
    const float normal = float_of((size << 20) + (120u << 23));
    const float x = size == 0x7f ? float_of(0x7fc00000u) : size < 8 ? small : normal;
    return float_of(bits_of(x) | static_cast<uint32_t>(code & 0x80u) << 24);
}

// One band: rows [from, to) share their scales, one for every `across` columns.
template <class Number>
void round_band(const Number* x, int64_t stride, int64_t from, int64_t to, int64_t columns, int64_t across,
                float smallest, uint32_t* largest, float* scale) {
    std::fill(largest, largest + columns, 0u);
    for (int64_t row = from; row < to; row++)  // compared as bits, so that a NaN is the largest
        for (int64_t i = 0; i < columns; i++)
            largest[i] = std::max(largest[i], bits_of(wide(x[row * stride + i])) & 0x7fffffffu);
    for (int64_t first = 0; first < columns; first += across) {
        const int64_t end = std::min(columns, first + across);
        uint32_t top = 0;
        for (int64_t i = first; i < end; i++) top = std::max(top, largest[i]);
        const float found = float_of(top);
        std::fill(scale + first, scale + end, (found < smallest ? smallest : found) / E4M3_MAX);
    }
}

template <class Number>
void round_all(int64_t rows, int64_t columns, int64_t stride, const Number* x, int64_t down, int64_t across,
               float smallest, bool transposed, uint8_t* values, float* scales, int threads) {
    const int64_t bands = (rows + down - 1) / down, groups = (columns + across - 1) / across;
    const int parts = team(2 * rows * columns * NS_A_NUMBER, threads);
    together(parts, [&](int me) {
        std::vector<uint32_t> largest(columns);
        std::vector<float> scale(columns);
        std::vector<uint8_t> codes(columns);
        for (int64_t band = bands * me / parts; band < bands * (me + 1) / parts; band++) {
            const int64_t from = band * down, to = std::min(rows, from + down);
            round_band(x, stride, from, to, columns, across, smallest, largest.data(), scale.data());
            for (int64_t group = 0; group < groups; group++)
                scales[transposed ? group * bands + band : band * groups + group] = scale[group * across];
            for (int64_t row = from; row < to; row++) {
                uint8_t* line = transposed ? codes.data() : values + row * columns;
                for (int64_t i = 0; i < columns; i++) line[i] = to_e4m3(wide(x[row * stride + i]) / scale[i]);
                if (transposed)
                    for (int64_t i = 0; i < columns; i++) values[i * rows + row] = line[i];
            }
        }
    });
}

}  // namespace

extern "C" {

// x [rows, columns] as it lies in memory, a row every `stride` numbers, with a scale for `down` rows of
// `across` columns each. Values and scales are written row by row of x, or of its transpose.
void wt_to_e4m3(int64_t rows, int64_t columns, int64_t stride, const void* x, int32_t is_bfloat16, int64_t down,
                int64_t across, float smallest, int32_t transposed, uint8_t* values, float* scales, int32_t threads) {
    if (is_bfloat16)
        round_all(rows, columns, stride, static_cast<const uint16_t*>(x), down, across, smallest, transposed,
                  values, scales, threads);
    else
        round_all(rows, columns, stride, static_cast<const float*>(x), down, across, smallest, transposed, values,
                  scales, threads);
}

// y [rows, columns] = values times the scale of their `down` rows and `across` columns.
void wt_from_e4m3(int64_t rows, int64_t columns, const uint8_t* values, const float* scales, int64_t down,
                  int64_t across, float* y, int32_t threads) {
    const int64_t groups = (columns + across - 1) / across;
    const int parts = team(rows * columns * NS_A_NUMBER, threads);
    together(parts, [&](int me) {
        for (int64_t row = rows * me / parts; row < rows * (me + 1) / parts; row++)
            for (int64_t group = 0; group < groups; group++) {
                const float scale = scales[row / down * groups + group];
                const int64_t end = std::min(columns, (group + 1) * across);
                for (int64_t i = group * across; i < end; i++)
                    y[row * columns + i] = from_e4m3(values[row * columns + i]) * scale;
            }
    });
}

}  // extern "C"
