// One mixture-of-experts layer on a CPU, forward and backward, fused per tile of one expert's tokens.
//
//   y[t] = sum_k gate[t,k] * W_down[e]^T (silu(W_gate[e] x[t]) * (W_up[e] x[t])),   e = expert[t,k]
//
// Shapes: x, y [T, D]; expert, gate [T, K]; w_gate_up [E, 2H, D], gate rows first; w_down [E, H, D].
// D lies innermost in both weights, so that every one of the six matrix products streams contiguous
// rows and no weight is ever packed or transposed:
//
//   forward   H^T  [2H, n] = W_gate_up [2H, D] . X^T [D, n]        tokens in the vector lanes
//             y    [n, D] += gate * (A [n, H] . W_down [H, D])     straight into the rows of y
//   backward  dA^T [H, n]  = W_down [H, D] . dY^T [D, n]
//             dW_down     += (gate A)^T [H, n] . dY [n, D]
//             dW_gate_up  += dH^T [2H, n] . X [n, D]
//             dx   [n, D] += dH [n, 2H] . W_gate_up [2H, D]        straight into the rows of dx
//
// with n <= TILE tokens of one expert. Nothing of size T*K*D exists anywhere. The gate's gradient is
// <A, dA> per token, so the experts' outputs are not kept either; only the pre-activations H are, and
// not even those when the caller passes no buffer: they are then computed again in the backward pass.
//
// Work is cut by tiles, in expert order, into one contiguous range a thread: ranges are even to a tile
// whatever the routing, and the result depends on the number of threads alone, never on their timing.
// Only plain C++ and the compiler's vector types are used: the same source serves AVX2, AVX-512 and NEON.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#include <omp.h>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16, MAX_NR = 4, ACCUMULATORS = 26;
#elif defined(__AVX__)
constexpr int LANES = 8, MAX_NR = 3, ACCUMULATORS = 12;
#else
constexpr int LANES = 4, MAX_NR = 3, ACCUMULATORS = 24;
#endif
// Tokens of one expert handled together; a multiple of every LANES. 32, 48, 64, 96 and 128 were tried on
// Zen 4: 32 was best or within the noise of the best for widths 64 to 512.
constexpr int64_t TILE = 32;

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef float vec_unaligned __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(4 * LANES)));

inline vec load(const float* p) { return *reinterpret_cast<const vec_unaligned*>(p); }
inline void store(float* p, vec v) { *reinterpret_cast<vec_unaligned*>(p) = v; }
inline vec splat(float s) { return s - vec{}; }
inline vec load_first(const float* p, int count) {
    vec v{};
    std::memcpy(&v, p, count * sizeof(float));
    return v;
}
inline void store_first(float* p, vec v, int count) { std::memcpy(p, &v, count * sizeof(float)); }
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

// ---------------------------------------------------------------------------------- matrix products

// Where a product goes: rows at `data + i * stride`, or at `rows[i]` each scaled by `scale[i]`.
struct Destination {
    float* data;
    int64_t stride;
    float* const* rows;
    const float* scale;
    bool add;

    float* row(int64_t i) const { return rows ? rows[i] : data + i * stride; }
};

// C[M, N] = or += A[M, K] . B[K, N]. A is read one scalar at a time, at a + i*a_row + k*a_k.
struct Product {
    const float* a;
    int64_t a_row, a_k;
    const float* b;
    int64_t b_row;
    int64_t M, N, K;
    Destination c;
};

// MR x NR accumulators; with TAIL the last of the NR vectors holds only `tail` columns.
template <int MR, int NR, bool TAIL>
void tile(const Product& p, int64_t i0, int64_t j0, int tail) {
    vec acc[MR][NR];
    for (int i = 0; i < MR; i++)
        for (int j = 0; j < NR; j++) acc[i][j] = vec{};
    const float* a = p.a + i0 * p.a_row;
    const float* b = p.b + j0;
    for (int64_t k = 0; k < p.K; k++) {
        vec bv[NR];
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++)
            bv[j] = TAIL && j == NR - 1 ? load_first(b + j * LANES, tail) : load(b + j * LANES);
#pragma GCC unroll 32
        for (int i = 0; i < MR; i++) {
            const vec av = splat(a[i * p.a_row]);
#pragma GCC unroll 8
            for (int j = 0; j < NR; j++) acc[i][j] += av * bv[j];
        }
        a += p.a_k;
        b += p.b_row;
    }
#pragma GCC unroll 32
    for (int i = 0; i < MR; i++) {
        float* c = p.c.row(i0 + i) + j0;
        const vec scale = splat(p.c.scale ? p.c.scale[i0 + i] : 1.0f);
#pragma GCC unroll 8
        for (int j = 0; j < NR; j++) {
            float* at = c + j * LANES;
            if (TAIL && j == NR - 1) {
                const vec old = p.c.add ? load_first(at, tail) : vec{};
                store_first(at, acc[i][j] * scale + old, tail);
            } else {
                const vec old = p.c.add ? load(at) : vec{};
                store(at, acc[i][j] * scale + old);
            }
        }
    }
}

// The tile with exactly `rows` rows, found by counting down from the most that fit in registers.
template <int MR, int NR, bool TAIL>
void tile_of(int rows, const Product& p, int64_t i0, int64_t j0, int tail) {
    if constexpr (MR > 0) {
        if (rows == MR) return tile<MR, NR, TAIL>(p, i0, j0, tail);
        tile_of<MR - 1, NR, TAIL>(rows, p, i0, j0, tail);
    }
}

constexpr int max_rows(int nr) { return std::min(12, ACCUMULATORS / nr); }

template <int NR, bool TAIL>
void strip(const Product& p, int64_t j0, int tail) {
    // As few row groups as registers allow, of as equal height as possible: 20 rows are 7+7+6.
    const int64_t groups = (p.M + max_rows(NR) - 1) / max_rows(NR);
    for (int64_t g = 0, i = 0; g < groups; g++) {
        const int rows = static_cast<int>((p.M - i + groups - g - 1) / (groups - g));
        tile_of<max_rows(NR), NR, TAIL>(rows, p, i, j0, tail);
        i += rows;
    }
}

template <int NR>
void strip_of(int nr, const Product& p, int64_t j0, int tail) {
    if constexpr (NR > 0) {
        if (nr != NR) return strip_of<NR - 1>(nr, p, j0, tail);
        if (tail) return strip<NR, true>(p, j0, tail);
        return strip<NR, false>(p, j0, tail);
    }
}

void multiply(const Product& p) {
    const int tail_columns = static_cast<int>(p.N % LANES);
    const int64_t vectors = (p.N + LANES - 1) / LANES;
    const int64_t strips = (vectors + MAX_NR - 1) / MAX_NR;
    for (int64_t s = 0, v = 0; s < strips; s++) {
        const int nr = static_cast<int>((vectors - v + strips - s - 1) / (strips - s));
        const bool last = v + nr == vectors;
        strip_of<MAX_NR>(nr, p, v * LANES, last ? tail_columns : 0);
        v += nr;
    }
}

// ------------------------------------------------------------------------------------------ gathering

// LANES x LANES transpose by a butterfly of two-source shuffles.
inline void transpose(vec (&r)[LANES]) {
#pragma GCC unroll 8
    for (int half = 1; half < LANES; half *= 2) {
        ivec low, high;
        for (int i = 0; i < LANES; i++) {
            low[i] = (i & half) ? i - half + LANES : i;
            high[i] = (i & half) ? i + LANES : i + half;
        }
#pragma GCC unroll 32
        for (int i = 0; i < LANES; i++) {
            if (i & half) continue;
            const vec a = r[i], b = r[i + half];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + half] = __builtin_shuffle(a, b, high);
        }
    }
}

// columns[c*np + i] = source[token[i]*D + c], zero for i in [n, np); rows[i*D + c] too when wanted.
void gather(const float* source, const int64_t* token, int64_t n, int64_t np, int64_t D,
            float* columns, float* rows) {
    if (rows)
        for (int64_t i = 0; i < n; i++)
            std::memcpy(rows + i * D, source + token[i] * D, D * sizeof(float));
    if (!columns) return;
    for (int64_t i0 = 0; i0 < np; i0 += LANES) {
        for (int64_t c0 = 0; c0 < D; c0 += LANES) {
            const int width = static_cast<int>(std::min<int64_t>(LANES, D - c0));
            vec r[LANES];
            for (int i = 0; i < LANES; i++) {
                if (i0 + i >= n) {
                    r[i] = vec{};
                    continue;
                }
                const float* p = source + token[i0 + i] * D + c0;
                r[i] = width == LANES ? load(p) : load_first(p, width);
            }
            transpose(r);
            for (int c = 0; c < width; c++) store(columns + (c0 + c) * np + i0, r[c]);
        }
    }
}

// ------------------------------------------------------------------------------------------- the plan

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

Routing route(const int64_t* expert, int64_t pairs, int64_t K, int64_t E, int threads) {
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
        const int64_t count = start[e + 1] - start[e];
        const int64_t parts = (count + TILE - 1) / TILE;
        for (int64_t part = 0, first = start[e]; part < parts; part++) {
            const int64_t n = std::min(TILE, start[e + 1] - first);
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

// Uninitialised floats on a cache line's boundary.
struct Buffer {
    explicit Buffer(int64_t count)
        : data(static_cast<float*>(std::aligned_alloc(64, round_up(std::max<int64_t>(count, 1) * 4, 64)))) {}
    ~Buffer() { std::free(data); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;
    float* data;
};

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

// hT[2H, np] = W_gate_up . X^T
void project_up(const float* w, const float* xT, int64_t H, int64_t D, int64_t np, float* hT) {
    multiply({w, D, 1, xT, np, 2 * H, np, D, {hT, np, nullptr, nullptr, false}});
}

}  // namespace

extern "C" {

int32_t wt_lanes() { return LANES; }

// Floats of the buffer that keeps H between forward and backward, for any routing of T*K pairs.
int64_t wt_saved_floats(int64_t pairs, int64_t E, int64_t H) {
    const int64_t tiles = pairs / TILE + std::min(pairs, E);
    return 2 * H * (pairs + tiles * (LANES - 1));
}

// Returns 0, or 1 when an expert index is out of range and nothing was computed; so does backward.
int32_t wt_experts_forward(int64_t T, int64_t D, int64_t E, int64_t H, int64_t K, const float* x,
                        const int64_t* expert, const float* gate, const float* w_gate_up,
                        const float* w_down, float* y, float* saved, int32_t threads) {
    const Routing r = route(expert, T * K, K, E, threads);
    if (!r.valid) return 1;
    RowSums sums(y, T, D, threads);
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float* my_y = sums.of(me);
        Buffer xT(D * TILE), own_h(saved ? 0 : 2 * H * TILE), aT(H * TILE);
        float* rows[TILE];
        float scale[TILE];
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const Tile& tile = r.tiles[t];
            const int64_t np = tile.np;
            float* hT = saved ? saved + tile.saved * 2 * H : own_h.data;
            gather(x, &r.token[tile.first], tile.n, np, D, xT.data, nullptr);
            project_up(w_gate_up + tile.expert * 2 * H * D, xT.data, H, D, np, hT);
            for (int64_t i = 0; i < H * np; i += LANES) {
                const vec g = load(hT + i);
                store(aT.data + i, g / (1.0f + exponential(-g)) * load(hT + H * np + i));
            }
            for (int64_t i = 0; i < tile.n; i++) {
                rows[i] = my_y + r.token[tile.first + i] * D;
                scale[i] = gate[r.slot[tile.first + i]];
            }
            multiply({aT.data, 1, np, w_down + tile.expert * H * D, D, tile.n, D, H,
                      {nullptr, 0, rows, scale, true}});
        }
#pragma omp barrier
        sums.reduce(me);
    }
    return 0;
}

int32_t wt_experts_backward(int64_t T, int64_t D, int64_t E, int64_t H, int64_t K, const float* x,
                         const int64_t* expert, const float* gate, const float* w_gate_up,
                         const float* w_down, const float* saved, const float* dy, float* dx,
                         float* dgate, float* dw_gate_up, float* dw_down, int32_t threads) {
    const Routing r = route(expert, T * K, K, E, threads);
    if (!r.valid) return 1;
    RowSums sums(dx, T, D, threads);
    // An expert whose tiles straddle two ranges is finished by adding the later threads' shares.
    std::vector<int64_t> shared_expert(threads, -1);
    std::vector<std::unique_ptr<Buffer>> share(threads);
    for (int i = 1; i < threads; i++)
        if (r.range[i] < r.range[i + 1] && !r.tiles[r.range[i]].first_of_expert) {
            shared_expert[i] = r.tiles[r.range[i]].expert;
            share[i] = std::make_unique<Buffer>(3 * H * D);
        }
#pragma omp parallel num_threads(threads)
    {
        const int me = omp_get_thread_num();
        float* my_dx = sums.of(me);
        Buffer dyT(D * TILE), dy_rows(D * TILE), x_rows(D * TILE), daT(H * TILE), awT(H * TILE);
        Buffer xT(saved ? 0 : D * TILE), own_h(saved ? 0 : 2 * H * TILE), dhT(2 * H * TILE);
        float* rows[TILE];
        float gates[TILE];
        for (int64_t e = E * me / threads; e < E * (me + 1) / threads; e++)
            if (!r.visited[e]) {
                std::memset(dw_gate_up + e * 2 * H * D, 0, 2 * H * D * sizeof(float));
                std::memset(dw_down + e * H * D, 0, H * D * sizeof(float));
            }
        int64_t current = -1;
        for (int64_t t = r.range[me]; t < r.range[me + 1]; t++) {
            const Tile& tile = r.tiles[t];
            const int64_t n = tile.n, np = tile.np, e = tile.expert;
            const int64_t* token = &r.token[tile.first];
            const float* w_in = w_gate_up + e * 2 * H * D;
            gather(dy, token, n, np, D, dyT.data, dy_rows.data);
            gather(x, token, n, np, D, saved ? nullptr : xT.data, x_rows.data);
            const float* hT = saved ? saved + tile.saved * 2 * H : own_h.data;
            if (!saved) project_up(w_in, xT.data, H, D, np, own_h.data);
            multiply({w_down + e * H * D, D, 1, dyT.data, np, H, np, D,
                      {daT.data, np, nullptr, nullptr, false}});

            for (int64_t i = 0; i < np; i++) gates[i] = i < n ? gate[r.slot[tile.first + i]] : 0.0f;
            for (int64_t i0 = 0; i0 < np; i0 += LANES) {
                const vec w = load(gates + i0);
                vec dgate_sum{};
                for (int64_t j = 0; j < H; j++) {
                    const int64_t at = j * np + i0;
                    const vec g = load(hT + at), u = load(hT + H * np + at);
                    const vec sigmoid = 1.0f / (1.0f + exponential(-g));
                    const vec silu = g * sigmoid;
                    const vec a = silu * u, da = load(daT.data + at);
                    dgate_sum += a * da;
                    const vec dwa = w * da;
                    store(awT.data + at, w * a);
                    store(dhT.data + at, dwa * u * (sigmoid + silu * (1.0f - sigmoid)));
                    store(dhT.data + H * np + at, dwa * silu);
                }
                for (int i = 0; i < LANES && i0 + i < n; i++)
                    dgate[r.slot[tile.first + i0 + i]] = dgate_sum[i];
            }

            const bool in_share = e == shared_expert[me];
            float* dw_in = in_share ? share[me]->data : dw_gate_up + e * 2 * H * D;
            float* dw_out = in_share ? share[me]->data + 2 * H * D : dw_down + e * H * D;
            const bool add = e == current;
            current = e;
            multiply({awT.data, np, 1, dy_rows.data, D, H, D, n,
                      {dw_out, D, nullptr, nullptr, add}});
            multiply({dhT.data, np, 1, x_rows.data, D, 2 * H, D, n,
                      {dw_in, D, nullptr, nullptr, add}});
            for (int64_t i = 0; i < n; i++) rows[i] = my_dx + token[i] * D;
            multiply({dhT.data, 1, np, w_in, D, n, D, 2 * H, {nullptr, 0, rows, nullptr, true}});
        }
#pragma omp barrier
        sums.reduce(me);
        for (int i = 1; i < threads; i++) {
            if (shared_expert[i] < 0) continue;
            const int64_t e = shared_expert[i];
            const int64_t from = 3 * H * D * me / threads, to = 3 * H * D * (me + 1) / threads;
            for (int64_t at = from; at < to; at++) {
                float* target = at < 2 * H * D ? dw_gate_up + e * 2 * H * D + at
                                               : dw_down + e * H * D + (at - 2 * H * D);
                *target += share[i]->data[at];
            }
        }
    }
    return 0;
}

}  // extern "C"
