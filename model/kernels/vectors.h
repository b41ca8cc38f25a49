// What all compiled kernels share: vectors of floats, exp, a transpose, a buffer.
// Plain C++ and the compiler's vector types; intrinsics only for AVX-512 (masked loads, bfloat16, transposes).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
#if defined(__AVX512F__)
inline vec splat(float s) { return (vec)_mm512_set1_ps(s); }  // also of two bfloat16: the bits as they are
#else
inline vec splat(float s) { return s - vec{}; }
#endif
inline void prefetch(const float* p, int64_t count) {
    for (int64_t i = 0; i < count; i += 16) __builtin_prefetch(p + i);
}

// The first `count` lanes, the others zero.
inline vec load_first(const float* p, int count) {
#if defined(__AVX512F__)
    return (vec)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p);
#else
    vec v{};
    std::memcpy(&v, p, count * sizeof(float));
    return v;
#endif
}
inline void store_first(float* p, vec v, int count) {
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), (__m512)v);
#else
    std::memcpy(p, &v, count * sizeof(float));
#endif
}

inline vec larger_of(vec a, vec b) { return a > b ? a : b; }
inline vec smaller_of(vec a, vec b) { return a < b ? a : b; }

constexpr int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// exp(x) for x in [-87, 87], clamped outside; Cephes polynomial, relative error below 2e-7.
inline vec exponential(vec x) {
    x = x < -87.0f ? splat(-87.0f) : x;
    x = x > 87.0f ? splat(87.0f) : x;
    const vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest integer
    vec n = x * 1.44269504088896341f + magic;
    const ivec exponent = ((ivec)n) << 23;
    n = n - magic;
    const vec r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return (vec)((ivec)p + exponent);
}

#if defined(__AVX512F__)
// 2^r for |r| <= 1/2, to 1e-8.
inline vec power_of_two(vec r) {
    vec p = splat(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    return p * r + 1.0f;
}
// exp(x - y) as 2^n 2^r.
inline vec exp_of_difference(vec x, vec y) {
    const vec log2_e = splat(1.44269504088896341f);
    const vec z = x * log2_e - y * log2_e;
    const vec n = (vec)_mm512_roundscale_ps((__m512)z, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vec r = z - n;
    return (vec)_mm512_scalef_ps((__m512)power_of_two(r), (__m512)n);
}
#else
inline vec exp_of_difference(vec x, vec y) { return exponential(x - y); }
#endif

#if defined(__AVX512F__)
// 1 / (1 + 2^z), z = -x / log 2: a 14-bit reciprocal and one Newton step, because a division takes 16 cycles.
inline vec sigmoid(vec x) {
    // With the limit as the first operand a NaN in x passes through.
    const __m512 above = _mm512_max_ps((__m512)splat(-87.0f), (__m512)x);
    const vec limited = (vec)_mm512_min_ps((__m512)splat(87.0f), above);
    const vec by = splat(-1.44269504088896341f);
    const vec n = (vec)_mm512_roundscale_ps((__m512)(limited * by), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const vec r = (vec)_mm512_fmsub_ps((__m512)limited, (__m512)by, (__m512)n);
    const vec denominator = 1.0f + (vec)_mm512_scalef_ps((__m512)power_of_two(r), (__m512)n);
    const vec rough = (vec)_mm512_rcp14_ps((__m512)denominator);
    return rough + rough * (1.0f - denominator * rough);
}
#else
inline vec sigmoid(vec x) { return 1.0f / (1.0f + exponential(-x)); }
#endif

inline vec square_root(vec x) {
#if defined(__AVX512F__)
    return (vec)_mm512_sqrt_ps((__m512)x);
#else
    for (int i = 0; i < LANES; i++) x[i] = std::sqrt(x[i]);
    return x;
#endif
}

// The sum of all lanes, added in pairs in a fixed order.
inline float sum_lanes(vec v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

#if defined(__AVX512F__)
// LANES x LANES transpose: pairs of rows, then of pairs, within each 128-bit part; then the parts.
inline void transpose(vec (&r)[LANES]) {
    __m512 t[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i += 2) {
        t[i] = _mm512_unpacklo_ps((__m512)r[i], (__m512)r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps((__m512)r[i], (__m512)r[i + 1]);
    }
    const auto joined = [](__m512 a, __m512 b, bool high) {
        const __m512d x = (__m512d)a, y = (__m512d)b;
        return (vec)(high ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
    };
#pragma GCC unroll 4
    for (int i = 0; i < LANES; i += 4)  // r[i + c]: column 4p + c of rows i to i + 3, for every part p
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) r[i + c] = joined(t[i + c / 2], t[i + 2 + c / 2], c % 2);
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        const __m512 a = (__m512)r[c], b = (__m512)r[4 + c], d = (__m512)r[8 + c], e = (__m512)r[12 + c];
        t[c] = _mm512_shuffle_f32x4(a, b, 0x88);       // parts 0 and 2
        t[4 + c] = _mm512_shuffle_f32x4(a, b, 0xDD);   // parts 1 and 3
        t[8 + c] = _mm512_shuffle_f32x4(d, e, 0x88);
        t[12 + c] = _mm512_shuffle_f32x4(d, e, 0xDD);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
        r[c] = (vec)_mm512_shuffle_f32x4(t[c], t[8 + c], 0x88);
        r[4 + c] = (vec)_mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0x88);
        r[8 + c] = (vec)_mm512_shuffle_f32x4(t[c], t[8 + c], 0xDD);
        r[12 + c] = (vec)_mm512_shuffle_f32x4(t[4 + c], t[12 + c], 0xDD);
    }
}
#else
// Exchanges parts of two vectors: a becomes a[i] where i & half is 0, else b[i - half]; b becomes a[i + half], else b[i].
template <int half, int... I>
inline void exchange(vec& a, vec& b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    const vec first = __builtin_shufflevector(a, b, ((I & half) ? I - half + LANES : I)...);
    b = __builtin_shufflevector(a, b, ((I & half) ? I + LANES : I + half)...);
#else  // GCC before 12 has this one alone
    const vec first = __builtin_shuffle(a, b, ivec{((I & half) ? I - half + LANES : I)...});
    b = __builtin_shuffle(a, b, ivec{((I & half) ? I + LANES : I + half)...});
#endif
    a = first;
}
// LANES x LANES transpose by a butterfly of two-source shuffles.
template <int half = 1>
inline void transpose(vec (&r)[LANES]) {
#pragma GCC unroll 8
    for (int i = 0; i < LANES; i++)
        if (!(i & half)) exchange<half>(r[i], r[i + half], std::make_integer_sequence<int, LANES>{});
    if constexpr (2 * half < LANES) transpose<2 * half>(r);
}
#endif

#if defined(__AVX512BF16__)
// Two bfloat16 in each 32-bit word: `first` in the low half, `second` in the high half.
inline vec pair_words(vec first, vec second) {
    const __m512i joined = (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                           23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return (vec)_mm512_permutexvar_epi16(order, joined);
}
// 32 neighbouring floats as 16 words.
inline vec neighbour_words(vec first_half, vec second_half) {
    return (vec)_mm512_cvtne2ps_pbh((__m512)second_half, (__m512)first_half);
}
// Words that pair two rows of 32 bfloat16 each: of columns 0 to 15, or 16 to 31 if HIGH.
template <bool HIGH>
inline vec interleave(vec a, vec b) {
    constexpr int f = HIGH ? 4 : 0;
    const __m512i x = (__m512i)a, y = (__m512i)b;
    const __m512i even = _mm512_unpacklo_epi16(x, y), odd = _mm512_unpackhi_epi16(x, y);
    return (vec)_mm512_permutex2var_epi64(
        even, _mm512_setr_epi64(f, f + 1, f + 8, f + 9, f + 2, f + 3, f + 10, f + 11), odd);
}
inline void store_bf16(uint16_t* p, vec v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
inline vec load_bf16(const uint16_t* p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
inline void store_first_bf16(uint16_t* p, vec v, int count) {
    const __mmask16 first = static_cast<__mmask16>((1u << count) - 1);
    _mm256_mask_storeu_epi16(p, first, (__m256i)_mm512_cvtneps_pbh((__m512)v));
}
inline vec load_first_bf16(const uint16_t* p, int count) {
    const __m256i half = _mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << count) - 1), p);
    return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
}
#endif

// Uninitialised floats, aligned to a cache line.
struct Buffer {
    explicit Buffer(int64_t count)
        : data(static_cast<float*>(std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * 4, 64)))) {}
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data;
};

}  // namespace
