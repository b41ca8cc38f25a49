// The norm of all gradients, and AdamW over all parameters, each in a single pass over memory.
//
// Tensors are cut into chunks of a fixed length, so that no result depends on the number of threads.

#include <vector>

#include "rows.h"

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

// Calls work(chunk, index) for every chunk.
template <class Work>
void for_each(const std::vector<Chunk>& chunks, int threads, Work work) {
    const int64_t count = static_cast<int64_t>(chunks.size());
    double numbers = 0;
    for (const Chunk& chunk : chunks) numbers += chunk.count;
    const double chunk_ns = numbers * NS_A_NUMBER / static_cast<double>(std::max<int64_t>(count, 1));
    share_rows(count, chunk_ns, threads, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; i++) work(chunks[i], i);
    });
}

// A product the compiler must not fuse into an FMA: the same bits as one rounded to memory.
inline vec product(vec a, float b) {
    vec c = a * b;
#if defined(__AVX512F__)
    asm("" : "+v"(c));
#elif defined(__SSE__)
    asm("" : "+x"(c));
#endif
    return c;
}

}  // namespace

extern "C" {

// The squared norm of all gradients together.
double wt_squared_norm(int64_t tensors, const int64_t* sizes, const float* const* values, int32_t threads) {
    const std::vector<Chunk> chunks = cut(tensors, sizes);
    std::vector<double> sums(chunks.size());
    for_each(chunks, threads, [&](const Chunk& chunk, int64_t index) {
        const float* v = values[chunk.tensor] + chunk.from;
        vec sum[4] = {};
        int64_t i = 0;
        for (; i + 4 * LANES <= chunk.count; i += 4 * LANES)
            for (int j = 0; j < 4; j++) sum[j] += load(v + i + j * LANES) * load(v + i + j * LANES);
        for (int j = 0; i < chunk.count; i += LANES, j++) {
            const vec last = load_first(v + i, static_cast<int>(std::min<int64_t>(LANES, chunk.count - i)));
            sum[j] += last * last;
        }
        for (vec part : sum) sums[index] += sum_lanes(part);
    });
    double sum = 0;
    for (double part : sums) sum += part;
    return sum;
}

void wt_scale(int64_t tensors, const int64_t* sizes, float* const* values, float factor, int32_t threads) {
    for_each(cut(tensors, sizes), threads, [&](const Chunk& chunk, int64_t) {
        float* v = values[chunk.tensor] + chunk.from;
        by_vectors(chunk.count, [&](int64_t i, auto read, auto write) { write(v + i, read(v + i) * factor); });
    });
}

// steps[i] counts tensor i's updates; decays[i] is its weight decay; every gradient is multiplied by `clip`.
void wt_adamw(int64_t tensors, const int64_t* sizes, float* const* weights, const float* const* grads,
              float* const* means, float* const* squares, float* const* steps, const float* decays, double lr,
              double beta1, double beta2, double eps, double clip, int32_t threads) {
    for (int64_t i = 0; i < tensors; i++) *steps[i] += 1.0f;
    const float keep_mean = static_cast<float>(1 - beta1), keep_square = static_cast<float>(beta2),
                add_square = static_cast<float>(1 - beta2), small = static_cast<float>(eps),
                factor = static_cast<float>(clip);
    for_each(cut(tensors, sizes), threads, [&](const Chunk& chunk, int64_t) {
        const int64_t t = chunk.tensor;
        const double step = *steps[t];
        const float rate = static_cast<float>(lr / (1 - std::pow(beta1, step)));
        const float root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, step)));
        const float decay = static_cast<float>(1 - lr * decays[t]);
        by_vectors(chunk.count, [&](int64_t i, auto read, auto write) {
            const int64_t at = chunk.from + i;
            const vec grad = product(read(grads[t] + at), factor);
            vec mean = read(means[t] + at), square = read(squares[t] + at);
            mean = mean + keep_mean * (grad - mean);
            square = square * keep_square + add_square * grad * grad;
            const vec weight = read(weights[t] + at) * decay;
            write(means[t] + at, mean);
            write(squares[t] + at, square);
            write(weights[t] + at, weight - rate * mean / (square_root(square) * root + small));
        });
    });
}

}  // extern "C"
