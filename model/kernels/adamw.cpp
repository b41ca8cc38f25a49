// The norm of all gradients, and AdamW over all parameters, each in one pass over what they touch.
//
// Tensors are cut into chunks of one length, so that no result depends on the number of threads.

#include <vector>

#include "team.h"
#include "vectors.h"

namespace {

constexpr int64_t CHUNK = 16384;

struct Chunk {
    int64_t tensor, from, count;
};

std::vector<Chunk> cut(int64_t tensors, const int64_t* sizes) {
    std::vector<Chunk> chunks;
    for (int64_t i = 0; i < tensors; i++)
        for (int64_t from = 0; from < sizes[i]; from += CHUNK)
            chunks.push_back({i, from, std::min(CHUNK, sizes[i] - from)});
    return chunks;
}

// Calls work(chunk, index) for all of them.
template <class Work>
void for_each(const std::vector<Chunk>& chunks, int threads, Work work) {
    const int64_t count = static_cast<int64_t>(chunks.size());
    double numbers = 0;
    for (const Chunk& chunk : chunks) numbers += chunk.count;
#pragma omp parallel for num_threads(team(numbers * NS_A_NUMBER, threads)) schedule(static)
    for (int64_t i = 0; i < count; i++) work(chunks[i], i);
}

// Calls work(from, lanes) for the vectors of a chunk.
template <class Work>
inline void for_each_vector(int64_t from, int64_t count, Work work) {
    for (int64_t i = 0; i < count; i += LANES)
        work(from + i, static_cast<int>(std::min<int64_t>(LANES, count - i)));
}

}  // namespace

extern "C" {

// The square of the joint norm.
double wt_squared_norm(int64_t tensors, const int64_t* sizes, const float* const* values, int32_t threads) {
    const std::vector<Chunk> chunks = cut(tensors, sizes);
    std::vector<double> sums(chunks.size());
    for_each(chunks, threads, [&](const Chunk& chunk, int64_t index) {
        vec sum[4] = {};
        for_each_vector(chunk.from, chunk.count, [&](int64_t at, int lanes) {
            const vec v = load_first(values[chunk.tensor] + at, lanes);
            sum[at / LANES % 4] += v * v;
        });
        for (vec part : sum) sums[index] += sum_lanes(part);
    });
    double sum = 0;
    for (double part : sums) sum += part;
    return sum;
}

void wt_scale(int64_t tensors, const int64_t* sizes, float* const* values, float factor, int32_t threads) {
    for_each(cut(tensors, sizes), threads, [&](const Chunk& chunk, int64_t) {
        float* v = values[chunk.tensor];
        for_each_vector(chunk.from, chunk.count, [&](int64_t at, int lanes) {
            store_first(v + at, load_first(v + at, lanes) * factor, lanes);
        });
    });
}

// steps[i] counts tensor i's updates; decays[i] is its weight decay.
void wt_adamw(int64_t tensors, const int64_t* sizes, float* const* weights, const float* const* grads,
              float* const* means, float* const* squares, float* const* steps, const float* decays, double lr,
              double beta1, double beta2, double eps, int32_t threads) {
    for (int64_t i = 0; i < tensors; i++) *steps[i] += 1.0f;
    const float keep_mean = static_cast<float>(1 - beta1), keep_square = static_cast<float>(beta2),
                add_square = static_cast<float>(1 - beta2), small = static_cast<float>(eps);
    for_each(cut(tensors, sizes), threads, [&](const Chunk& chunk, int64_t) {
        const int64_t t = chunk.tensor;
        const double step = *steps[t];
        const float rate = static_cast<float>(lr / (1 - std::pow(beta1, step)));
        const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
        const float decay = static_cast<float>(1 - lr * decays[t]);
        for_each_vector(chunk.from, chunk.count, [&](int64_t at, int lanes) {
            const vec grad = load_first(grads[t] + at, lanes);
            vec mean = load_first(means[t] + at, lanes), square = load_first(squares[t] + at, lanes);
            mean = mean + keep_mean * (grad - mean);
            square = square * keep_square + add_square * grad * grad;
            const vec weight = load_first(weights[t] + at, lanes) * decay;
            const vec size = square_root(square) * root + small;
            store_first(means[t] + at, mean, lanes);
            store_first(squares[t] + at, square, lanes);
            store_first(weights[t] + at, weight - rate * mean / size, lanes);
        });
    });
}

}  // extern "C"
