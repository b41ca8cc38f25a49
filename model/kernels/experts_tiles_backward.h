// The backward pass of the experts on the tile unit; the plan is in `experts_tiles.h`.
#pragma once

#include "experts_tiles.h"

#if defined(__AVX512BF16__)

namespace {

// Weight gradients too large to be still in cache when they are next read are written with non-temporal stores,
// which skip reading the line first (10 % of the layer at 256 experts of 64, LOG.md, 2026-11-26).
constexpr int64_t STREAM_FROM_BYTES = 4 << 20;

// Copies row i of squares with D columns to `out`.
inline void unpack_row(const float* squares, int64_t i, int64_t D, bool stream, float* out) {
    const float* sums = squares + i / SIDE * squares_of(D) * SQUARE + i % SIDE * SIDE;
    for (; D >= SIDE; D -= SIDE, out += SIDE, sums += SQUARE)
        if (stream)
            _mm512_stream_ps(out, (__m512)load(sums));
        else
            store(out, load(sums));
    if (D) store_first(out, load(sums), static_cast<int>(D));
}

template <int PARTS>
struct TilesBackward : TilesPass<PARTS> {
    using Pass = TilesPass<PARTS>;
    using Pass::l, Pass::s, Pass::r, Pass::asides, Pass::TILE;
    const float* saved;
    const Gradients& out;
    const WeightGradients& weights;
    const int me;
    float* dx;
    // Only whole, aligned cache lines, and only if there are many.
    const bool stream = l.D % SIDE == 0 && reinterpret_cast<uintptr_t>(out.dw_gate_up) % 64 == 0 &&
                        reinterpret_cast<uintptr_t>(out.dw_down) % 64 == 0 &&
                        3 * l.E * l.H * l.D * 4 >= STREAM_FROM_BYTES;
    Buffer dy_left{s.n * s.D_depth * TILE}, dy_right{s.D * s.n_depth * TILE}, x_right{s.D * s.n_depth * TILE};
    Buffer w_in_rows{s.D * s.H * TILE}, w_out{s.H * s.D_depth * TILE};
    Buffer da{s.n * s.H * SQUARE}, dh_left{s.n * s.H * TILE}, aw_left{s.n * s.H_depth * TILE};
    Buffer inner_left{3 * s.H * s.n_depth * TILE}, dw{3 * s.H * s.D * SQUARE};
    Buffer row{3 * s.H * SIDE};
    // Only used where H is recomputed.
    Buffer w_in{saved ? 0 : 2 * s.H * s.D_depth * TILE}, x_left{saved ? 0 : s.n * s.D_depth * TILE};
    Buffer h{saved ? 0 : s.n * 2 * s.H * SQUARE};

    TilesBackward(const Layer& layer, const Routing& routing, const float* saved, const Gradients& out,
                  const WeightGradients& weights, int me, float* dx)
        : Pass{layer, routing}, saved(saved), out(out), weights(weights), me(me), dx(dx) {}

    // Queues packing what the first two products of block t need and, with `weights_too`, its expert's weights.
    void pack_left_factors(int64_t t, bool weights_too) {
        this->pack_left(asides.later, out.dy, t, dy_left.data);
        if (!weights_too) return;
        const int64_t D = l.D, H = l.H;
        const float* in = this->w_gate_up(t);
        this->pack_as_columns(asides.later, this->w_down(t), w_out.data);
        const auto row = [=](int64_t i) { return gate_up_row(in, i, H, D); };
        this->pack_as_rows(asides.later, row, s.H, w_in_rows.data);
    }
    // Queues packing the tokens as right factors, for the weight gradients.
    void pack_right_factors(int64_t t) {
        const int64_t columns = s.D, squares = squares_of(this->tokens(t)), depth = depths_of(this->tokens(t));
        const int64_t D_depth = s.D_depth;
        const float* left = dy_left.data;
        float* right = dy_right.data;
        asides.later.add_rows(depth * SIDE, s.rows, [=](int64_t pair) {
            const PackedRows rows = packed_rows<PARTS>(left, squares, pair / SIDE, 0, D_depth);
            pack_packed_pair<PARTS>(rows, pair % SIDE, columns, depth, pair_at<PARTS>(right, pair));
        });
        this->pack_right(asides.later, l.x, t, x_right.data);
    }

    // Packs row i of the block: d_gate and d_up into the left factor dh_left, gate * a into aw_left. Rows past the
    // last token are zero.
    void activate(int64_t t, int64_t i) {
        const bool token = i < this->tokens(t);
        const float* da_row = da.data + i / SIDE * s.H * SQUARE + i % SIDE * SIDE;
        const float* h_row = h.data + i / SIDE * 2 * s.H * SQUARE + i % SIDE * SIDE;
        const float* kept = this->kept(saved, t);
        const vec w = splat(token ? this->gate(t, i) : 0.0f);
        vec dgate_sum{};
        for (int64_t j = 0; j < s.H; j++) {
            vec g{}, u{};
            if (!saved) {
                g = load(h_row + j * SQUARE);
                u = load(h_row + (s.H + j) * SQUARE);
            } else if (token) {
                g = read_kept<PARTS>(kept, i, 0, j, l.H);
                u = read_kept<PARTS>(kept, i, 1, j, l.H);
            }
            const vec sig = sigmoid(g), silu = g * sig, a = silu * u;
            const vec da_part = load(da_row + j * SQUARE), dwa = w * da_part;
            dgate_sum += a * da_part;
            store(row.data + j * SIDE, dwa * u * (sig + silu * (1.0f - sig)));
            store(row.data + (s.H + j) * SIDE, dwa * silu);
            store(row.data + (2 * s.H + j) * SIDE, w * a);
        }
        pack_row<PARTS>(row.data, 2 * s.H * SIDE, row_at<PARTS>(dh_left.data, i, s.H));
        pack_row<PARTS>(row.data + 2 * s.H * SIDE, s.H * SIDE, row_at<PARTS>(aw_left.data, i, s.H_depth));
        if (token) out.dgate[this->slot(t, i)] = sum_of(dgate_sum);
    }
    void activate_group(int64_t t, int64_t i, int64_t rows) {
        asides.now.add_rows(rows * SIDE, s.rows, [this, t, i](int64_t row) { activate(t, i * SIDE + row); });
    }
    // Queues packing the inner gradients of a group a second time, as a left factor that reduces over tokens.
    void transpose_group(int64_t t, int64_t i, int64_t rows) {
        const int64_t m = squares_of(this->tokens(t)), depth = depths_of(this->tokens(t));
        asides.now.add((rows + 1) / 2 * 3 * s.H * PARTS, [this, i, m, depth](int64_t piece) {
            const int part = static_cast<int>(piece % PARTS);
            const int64_t j = piece / PARTS % (3 * s.H), k = i / 2 + piece / PARTS / (3 * s.H);
            const bool is_dh = j < 2 * s.H;
            const int64_t column = is_dh ? j : j - 2 * s.H;
            const PackedRows rows = packed_rows<PARTS>(is_dh ? dh_left.data : aw_left.data, m, k, column / 2,
                                                       is_dh ? s.H : s.H_depth);
            float* tile = tile_at<PARTS>(inner_left.data, j, k, depth);
            if (column % 2)
                pack_packed_columns<PARTS, true>(rows, part, tile);
            else
                pack_packed_columns<PARTS, false>(rows, part, tile);
        });
    }

    // Recomputes H of block t.
    void project_up(int64_t t, bool weights_packed) {
        const float* in = this->w_gate_up(t);
        Asides alone;
        if (!weights_packed) {
            this->pack_as_columns(alone.now, in, w_in.data);
            this->pack_as_columns(alone.now, in + l.H * l.D, w_in.data + s.H * s.D_depth * TILE);
        }
        this->pack_left(alone.now, l.x, t, x_left.data);
        alone.now.finish();
        multiply_tiles<PARTS>(x_left.data, squares_of(this->tokens(t)), w_in.data, 2 * s.H, s.D_depth, h.data,
                              2 * s.H, false, alone);
    }

    // Queues writing out the weight gradients of a finished expert.
    void unpack_weights(int64_t e) {
        const int64_t D = l.D, H = l.H, half = s.H * s.D * SQUARE;
        const bool stream = this->stream && !weights.is_share(me, e);
        float *in = weights.gate_up(me, e), *down = weights.down(me, e);
        const float* from = dw.data;
        asides.now.add(3 * H, [=](int64_t i) {
            const int64_t third = i / H;
            unpack_row(from + third * half, i % H, D, stream, third == 2 ? down + (i - 2 * H) * D : in + i * D);
        });
    }

    void run(int64_t from, int64_t to) {
        if (from < to) {
            pack_left_factors(from, true);
            asides.later.finish();
        }
        for (int64_t t = from; t < to; t++) {
            const int64_t m = squares_of(this->tokens(t)), depth = depths_of(this->tokens(t));
            const int64_t last = this->last_group(m);
            const bool first = t == from || this->new_expert(t);
            pack_right_factors(t);
            this->fetch_rows(asides.later, dx, t);
            if (t + 1 < to) this->fetch_rows(asides.later, out.dy, t + 1);
            asides.later.share(this->group_steps(m, s.H, s.D_depth) + this->group_steps(m, s.D, s.H));
            if (!saved) project_up(t, !first);
            this->by_groups(
                m, dy_left.data, w_out.data, s.H, s.D_depth,
                [&](int64_t i) { return da.data + i * s.H * SQUARE; },
                [&](int64_t i, int64_t) {
                    if (i > 0) activate_group(t, i - s.group, s.group);
                });
            activate_group(t, last, m - last);
            if (last == 0) asides.now.finish();  // the next product needs them
            this->by_groups(
                m, dh_left.data, w_in_rows.data, s.D, s.H,
                [&](int64_t i) { return this->group_squares(i); },
                [&](int64_t i, int64_t rows) {
                    if (i > 0) this->add_rows(t, i - s.group, s.group, nullptr, dx);
                    transpose_group(t, i, rows);
                });
            asides.later.finish();

            this->add_rows(t, last, m - last, nullptr, dx);
            if (t + 1 < to) {
                pack_left_factors(t + 1, this->new_expert(t + 1));
                this->fetch_rows(asides.later, l.x, t + 1);
            }
            asides.later.share(steps_of<PARTS>(2 * s.H, s.D, depth) + steps_of<PARTS>(s.H, s.D, depth));
            multiply_weights(depth, !first);
            asides.later.finish();
            if (t + 1 == to || this->new_expert(t + 1)) unpack_weights(r.tiles[t].expert);
        }
        asides.now.finish();
        if (stream) _mm_sfence();
    }

    void multiply_weights(int64_t depth, bool add) {
        asides.now.share(steps_of<PARTS>(2 * s.H, s.D, depth) + steps_of<PARTS>(s.H, s.D, depth));
        const auto product = [&](int64_t from, int64_t rows, const float* right) {
            multiply_tiles<PARTS>(tile_at<PARTS>(inner_left.data, from, 0, depth), rows, right, s.D, depth,
                                  dw.data + from * s.D * SQUARE, s.D, add, asides);
        };
        product(2 * s.H, s.H, dy_right.data);
        product(0, 2 * s.H, x_right.data);
        asides.now.finish();
    }
};

template <int PARTS>
int32_t tiles_backward(const Layer& l, const float* saved, const Gradients& out) {
    std::optional<WeightGradients> weights;
    const auto run = [&](const Routing& r, int me, float* rows) {
        const TileRegisters registers;
        weights->clear_unvisited(me);
        TilesBackward<PARTS>(l, r, saved, out, *weights, me, rows).run(r.range[me], r.range[me + 1]);
    };
    return over_experts(
        l, BLOCK, PACKING_COST, out.dx, [&](const Routing& r) { weights.emplace(l, r, out); }, [](int) {}, run,
        [&](int me) { weights->add_shares(me); });
}

}  // namespace

#endif
