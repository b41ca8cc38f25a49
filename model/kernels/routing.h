// How tokens are assigned to experts and threads: sorted by expert, cut into tiles, tiles split into ranges.
//
// Ranges are equal to within a tile whatever the routing, so a skewed load costs no more than an even one, and
// the result depends on the number of threads alone, never on their timing.
#pragma once

#include <memory>
#include <vector>

#include "vectors.h"

namespace {

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

// Tiles of at most `most` tokens, a multiple of LANES. Starting an expert costs as much as `visit_cost` tokens.
inline Routing route(const int64_t* expert, int64_t pairs, int64_t K, int64_t E, int threads,
                     int64_t most, int64_t visit_cost) {
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
    for (int64_t token = 0, s = 0; s < pairs; token++)
        for (int64_t k = 0; k < K; k++, s++) {
            const int64_t at = next[expert[s]]++;
            r.slot[at] = s;
            r.token[at] = token;
        }
    int64_t columns = 0;
    for (int64_t e = 0; e < E; e++) {
        // As few tiles as hold the expert's tokens, as equal in whole vectors as possible.
        const int64_t count = start[e + 1] - start[e];
        const int64_t parts = (count + most - 1) / most;
        for (int64_t part = 0, first = start[e]; part < parts; part++) {
            const int64_t left = start[e + 1] - first;
            const int64_t n = std::min(left, round_up((left + parts - part - 1) / (parts - part), LANES));
            const int64_t np = round_up(n, LANES);
            r.tiles.push_back({e, first, n, np, columns, part == 0});
            columns += np;
            first += n;
        }
    }
    // A tile costs its columns plus about half a vector for touching its weights.
    const auto cost_of = [&](const Tile& tile) {
        return tile.np + LANES / 2 + (tile.first_of_expert ? visit_cost : 0);
    };
    int64_t total = 0;
    for (const Tile& tile : r.tiles) total += cost_of(tile);
    r.range.assign(threads + 1, static_cast<int64_t>(r.tiles.size()));
    r.range[0] = 0;
    int64_t cost = 0;
    int thread = 1;
    for (size_t t = 0; t < r.tiles.size() && thread < threads; t++) {
        cost += cost_of(r.tiles[t]);
        while (thread < threads && cost * threads >= total * thread)
            r.range[thread++] = static_cast<int64_t>(t) + 1;
    }
    return r;
}

}  // namespace
