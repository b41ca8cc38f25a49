// How tokens are handed to experts and threads: sorted by expert, cut into tiles, tiles cut into ranges.
//
// The ranges are even to a tile whatever the routing, so a skewed load costs what an even one does, and
// the result depends on the number of threads alone, never on their timing.
#pragma once

#include <memory>
#include <vector>

#include "vectors.h"

namespace {

// Most tokens of one expert handled together; a multiple of every LANES. Of 32, 48 and 64 on Zen 4, 48 was
// best or within the noise of the best for widths 64 to 512.
constexpr int64_t TILE = 48;

struct Tile {
    int64_t expert;
    int64_t first;  // position in the expert-sorted order of (token, choice) pairs
    int64_t n;      // tokens
    int64_t np;     // tokens rounded up to whole vectors
    int64_t saved;  // columns of all tiles before this one: where its H lies
    bool first_of_expert;
};

struct Routing {
    std::vector<int64_t> slot;   // [T*K] indices into [T, K], sorted by expert, stable
    std::vector<int64_t> token;  // slot / K
    std::vector<Tile> tiles;
    std::vector<int64_t> range;  // tiles of thread i: range[i] to range[i+1]
    std::vector<bool> visited;   // experts with at least one token
    bool valid = true;           // every expert index lies in [0, E)
};

inline Routing route(const int64_t* expert, int64_t pairs, int64_t K, int64_t E, int threads) {
    Routing r;
    std::vector<int64_t> start(E + 1, 0);
    for (int64_t s = 0; s < pairs; s++) {
        if (expert[s] < 0 || expert[s] >= E) {
            r.valid = false;
            return r;
        }
        start[expert[s] + 1]++;
    }
    r.visited.resize(E);
    for (int64_t e = 0; e < E; e++) {
        r.visited[e] = start[e + 1] > 0;
        start[e + 1] += start[e];
    }
    r.slot.resize(pairs);
    r.token.resize(pairs);
    std::vector<int64_t> next(start.begin(), start.end() - 1);
    for (int64_t s = 0; s < pairs; s++) {
        const int64_t at = next[expert[s]]++;
        r.slot[at] = s;
        r.token[at] = s / K;
    }
    int64_t columns = 0;
    for (int64_t e = 0; e < E; e++) {
        // As few tiles as hold the expert's tokens, of as equal a number of whole vectors as possible.
        const int64_t count = start[e + 1] - start[e];
        const int64_t parts = (count + TILE - 1) / TILE;
        for (int64_t part = 0, first = start[e]; part < parts; part++) {
            const int64_t left = start[e + 1] - first;
            const int64_t n = std::min(left, round_up((left + parts - part - 1) / (parts - part), LANES));
            const int64_t np = round_up(n, LANES);
            r.tiles.push_back({e, first, n, np, columns, part == 0});
            columns += np;
            first += n;
        }
    }
    // A tile costs its columns plus, for touching its weights, about as much as half a vector more.
    const int64_t total = columns + static_cast<int64_t>(r.tiles.size()) * (LANES / 2);
    r.range.assign(threads + 1, static_cast<int64_t>(r.tiles.size()));
    r.range[0] = 0;
    int64_t cost = 0;
    int thread = 1;
    for (size_t t = 0; t < r.tiles.size() && thread < threads; t++) {
        cost += r.tiles[t].np + LANES / 2;
        while (thread < threads && cost * threads >= total * thread)
            r.range[thread++] = static_cast<int64_t>(t) + 1;
    }
    return r;
}

// Each thread adds into rows of its own copy of the output; the copies are summed in thread order.
struct RowSums {
    RowSums(float* out, int64_t T, int64_t D, int threads) : out(out), size(T * D), threads(threads) {
        for (int i = 1; i < threads; i++) extra.push_back(std::make_unique<Buffer>(size));
    }
    float* of(int thread) {
        float* p = thread == 0 ? out : extra[thread - 1]->data;
        std::memset(p, 0, size * sizeof(float));
        return p;
    }
    void reduce(int thread) {  // after a barrier
        const int64_t from = size * thread / threads, to = size * (thread + 1) / threads;
        for (auto& buffer : extra)
            for (int64_t i = from; i < to; i++) out[i] += buffer->data[i];
    }
    float* out;
    int64_t size;
    int threads;
    std::vector<std::unique_ptr<Buffer>> extra;
};

}  // namespace
