// What the ways to compute the output layer's loss share: its arguments and results.
#pragma once

#include <cstdint>

namespace {

// For N positions; null results are not computed. weights: per position, 1 if null.
struct Loss {
    int64_t N, D, V;
    const float *hidden, *output;
    const int64_t* target;
    const float* weights;
    float *nats, *d_hidden, *d_output;
};

}  // namespace
