// The nearest matrix with orthonormal rows, roughly: five steps of the quintic Newton-Schulz iteration
//
//     X <- a X + (b A + c A A) X,  A = X Xᵀ
//
// with the coefficients of Muon (kellerjordan.github.io/posts/muon), which bring singular values to within 0.7 and
// 1.2 instead of to 1. X lies on its side, so that A is small; of A and its polynomial, which are symmetric, half is
// computed. Rows and columns are padded with zeros, which every step leaves zero.
#pragma once

#include "rows.h"

namespace {

constexpr int NS_STEPS = 5;
constexpr float NS_A = 3.4445f, NS_B = -4.7750f, NS_C = 2.0315f;

constexpr int ROW_TILE = LANES == 8 ? 4 : 8;  // sums that registers hold, with two vectors a row: AVX2 has 16
constexpr int LEAST_ROWS = 4;

// How a matrix is laid out while it is worked on: X [height, stride], A [side, side] with `height` rows in use.
struct Shape {
    Shape(int64_t rows, int64_t cols)
        : rows(rows),
          cols(cols),
          longer(std::max(rows, cols)),
          is_tall(rows > cols),
          height(round_up(std::min(rows, cols), LEAST_ROWS)),
          stride(round_up(longer, LANES)),
          side(round_up(height, LANES)) {}

    int64_t rows, cols, longer;
    bool is_tall;
    int64_t height, stride, side;

    int64_t scratch() const { return 2 * height * stride + stride * side + 2 * side * side; }
    double ns() const {
        const double multiplies = NS_STEPS * height * (1.5 * height * stride + 0.5 * side * side);
        return multiplies * NS_A_MULTIPLY + rows * cols * NS_A_NUMBER;
    }
};

// finish(row, column, sums of a vector) for a tile of p [rows, inner] times q [inner, columns].
template <int rows, int vectors, class Finish>
inline void tile(const float* p, int64_t p_stride, const float* q, int64_t q_stride, int64_t inner, Finish finish) {
    vec sums[rows][vectors] = {};
    for (int64_t k = 0; k < inner; k++) {
        vec right[vectors];
        for (int v = 0; v < vectors; v++) right[v] = load(q + k * q_stride + v * LANES);
        for (int m = 0; m < rows; m++) {
            const vec left = splat(p[m * p_stride + k]);
            for (int v = 0; v < vectors; v++) sums[m][v] += left * right[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++)
#pragma GCC unroll 2
        for (int v = 0; v < vectors; v++) finish(m, v * LANES, sums[m][v]);
}

template <int vectors, class Finish>
inline void column_of_tiles(int64_t from, int64_t height, const float* p, int64_t p_stride, const float* q,
                            int64_t q_stride, int64_t inner, Finish finish) {
    int64_t i = from;
    const auto shifted = [&](int m, int n, vec sum) { finish(i + m, n, sum); };
    for (; i + ROW_TILE <= height; i += ROW_TILE)
        tile<ROW_TILE, vectors>(p + i * p_stride, p_stride, q, q_stride, inner, shifted);
    for (; i < height; i += LEAST_ROWS)
        tile<LEAST_ROWS, vectors>(p + i * p_stride, p_stride, q, q_stride, inner, shifted);
}

// finish(row, column, sums) for all of p [height, inner] times q [inner, width], or of what lies on and below
// the diagonal, and some above.
template <bool is_half, class Finish>
inline void product(int64_t height, const float* p, int64_t p_stride, const float* q, int64_t width, int64_t inner,
                    Finish finish) {
    // Of two columns of vectors the second begins half way down.
    const int64_t step = is_half && width == 2 * LANES ? LANES : 2 * LANES;
    for (int64_t j = 0; j < width; j += step) {
        const auto shifted = [&](int64_t i, int n, vec sum) { finish(i, j + n, sum); };
        const int64_t from = is_half ? j : 0;
        if (step > LANES && j + LANES < width)
            column_of_tiles<2>(from, height, p, p_stride, q + j, width, inner, shifted);
        else
            column_of_tiles<1>(from, height, p, p_stride, q + j, width, inner, shifted);
    }
}

// xᵀ [stride, side] of x [height, stride].
inline void turn(const Shape& shape, const float* x, float* turned) {
    for (int64_t i = 0; i < shape.side; i += LANES)
        for (int64_t j = 0; j < shape.stride; j += LANES) {
            vec block[LANES];
            for (int r = 0; r < LANES; r++) block[r] = i + r < shape.height ? load(x + (i + r) * shape.stride + j) : vec{};
            transpose(block);
            for (int r = 0; r < LANES; r++) store(turned + (j + r) * shape.side + i, block[r]);
        }
}

// Fills what lies above the diagonal by what lies below it.
inline void mirror(int64_t side, float* a) {
    for (int64_t i = 0; i < side; i += LANES)
        for (int64_t j = 0; j < i; j += LANES) {
            vec block[LANES];
            for (int r = 0; r < LANES; r++) block[r] = load(a + (i + r) * side + j);
            transpose(block);
            for (int r = 0; r < LANES; r++) store(a + (j + r) * side + i, block[r]);
        }
}

// Of the matrix that lies padded in the first part of `scratch`; the answer lies in there, too.
inline const float* orthogonalise(const Shape& shape, float* scratch) {
    const int64_t size = shape.height * shape.stride, side = shape.side;
    float *x = scratch, *next = x + size, *turned = next + size;
    float *a = turned + shape.stride * side, *polynomial = a + side * side;
    std::memset(a, 0, 2 * side * side * sizeof(float));
    const float inverse = 1.0f / std::max(std::sqrt(dot(x, x, size)), 1e-7f);
    for (int64_t i = 0; i < size; i += LANES) store(x + i, load(x + i) * inverse);
    for (int step = 0; step < NS_STEPS; step++) {
        turn(shape, x, turned);
        product<true>(shape.height, x, shape.stride, turned, side, shape.stride,
                      [&](int64_t i, int64_t j, vec sum) { store(a + i * side + j, sum); });
        mirror(side, a);
        product<true>(shape.height, a, side, a, side, shape.height, [&](int64_t i, int64_t j, vec sum) {
            store(polynomial + i * side + j, NS_B * load(a + i * side + j) + NS_C * sum);
        });
        mirror(side, polynomial);
        product<false>(shape.height, polynomial, side, x, shape.stride, shape.height, [&](int64_t i, int64_t j, vec sum) {
            store(next + i * shape.stride + j, NS_A * load(x + i * shape.stride + j) + sum);
        });
        std::swap(x, next);
    }
    return x;
}

}  // namespace
