// The forward pass of the experts on the tile unit; the plan is in `experts_tiles.h`.
#pragma once

#include "experts_tiles.h"

#if defined(__AVX512BF16__)

namespace {

template <int PARTS>
struct TilesForward : TilesPass<PARTS> {
    using Pass = TilesPass<PARTS>;
    using Pass::l, Pass::s, Pass::r, Pass::asides, Pass::TILE;
    float *y, *saved;
    Buffer x_tiles{2 * s.n * s.D_depth * TILE}, h{s.n * 2 * s.H * SQUARE}, a_tiles{s.n * s.H_depth * TILE};
    Buffer w_in{2 * s.H * s.D_depth * TILE}, w_out{s.D * s.H_depth * TILE};
    float scale[2][BLOCK];  // a block's gates, and the next one's

    TilesForward(const Layer& layer, const Routing& routing, float* y, float* saved)
        : Pass{layer, routing}, y(y), saved(saved) {}

    float* x_of(int64_t t) { return x_tiles.data + t % 2 * s.n * s.D_depth * TILE; }

    void pack_in(int64_t t) {
        const float* in = this->w_gate_up(t);
        this->pack_as_columns(asides.later, in, w_in.data);
        this->pack_as_columns(asides.later, in + l.H * l.D, w_in.data + s.H * s.D_depth * TILE);
    }
    void pack_out(int64_t t) {
        const int64_t D = l.D, H = l.H;
        const float* down = this->w_down(t);
        const auto row = [=](int64_t i) { return i < H ? down + i * D : nullptr; };
        this->pack_as_rows(asides.later, row, s.H_depth, w_out.data);
    }

    // Packs a = silu(g) * u of the block's row i into the left factor a_tiles; `kept` is null for padding.
    void activate(int64_t i, float* kept) {
        const float* row = h.data + i / SIDE * 2 * s.H * SQUARE + i % SIDE * SIDE;
        const auto part = [&](int64_t j) {
            if (j >= s.H) return vec{};
            const vec g = load(row + j * SQUARE), u = load(row + (s.H + j) * SQUARE);
            if (kept) {
                keep<PARTS>(kept, i, 0, j, l.H, g);
                keep<PARTS>(kept, i, 1, j, l.H, u);
            }
            return g * sigmoid(g) * u;
        };
        float* at = row_at<PARTS>(a_tiles.data, i, s.H_depth);
        for (int64_t k = 0; k < s.H_depth; k++) {
            vec words[PARTS];
            const vec first = part(2 * k);
            words_along(first, part(2 * k + 1), words);
            store_words<PARTS>(words, at + k * TILE);
        }
    }
    void activate_group(int64_t t, int64_t i, int64_t rows) {
        const int64_t n = this->tokens(t);
        float* kept = this->kept(saved, t);
        asides.now.add_rows(rows * SIDE, s.rows, [this, n, kept, i](int64_t row) {
            activate(i * SIDE + row, i * SIDE + row < n ? kept : nullptr);
        });
    }

    void run(int64_t from, int64_t to) {
        if (from < to) {
            pack_in(from);
            this->pack_left(asides.later, l.x, from, x_of(from));
            asides.later.finish();
        }
        for (int64_t t = from; t < to; t++) {
            const int64_t m = squares_of(this->tokens(t)), last = this->last_group(m);
            if (t == from || this->new_expert(t)) pack_out(t);
            this->fetch_rows(asides.later, y, t);
            if (t + 1 < to) {
                this->fetch_rows(asides.later, l.x, t + 1);
                this->pack_left(asides.later, l.x, t + 1, x_of(t + 1));
            }
            asides.later.share(this->group_steps(m, 2 * s.H, s.D_depth));
            this->by_groups(
                m, x_of(t), w_in.data, 2 * s.H, s.D_depth,
                [&](int64_t i) { return h.data + i * 2 * s.H * SQUARE; },
                [&](int64_t i, int64_t) {
                    if (i > 0) activate_group(t, i - s.group, s.group);
                });
            asides.later.finish();

            float* gates = scale[t % 2];
            for (int64_t i = 0; i < this->tokens(t); i++) gates[i] = this->gate(t, i);
            activate_group(t, last, m - last);
            if (last == 0) asides.now.finish();  // the next product needs them
            if (t + 1 < to && this->new_expert(t + 1)) pack_in(t + 1);
            asides.later.share(this->group_steps(m, s.D, s.H_depth));
            this->by_groups(
                m, a_tiles.data, w_out.data, s.D, s.H_depth,
                [&](int64_t i) { return this->group_squares(i); },
                [&](int64_t i, int64_t) {
                    if (i > 0) this->add_rows(t, i - s.group, s.group, gates, y);
                });
            this->add_rows(t, last, m - last, gates, y);  // during the next block's first group
            asides.later.finish();
        }
        asides.now.finish();
    }
};

template <int PARTS>
int32_t tiles_forward(const Layer& l, float* y, float* saved) {
    const auto run = [&](const Routing& r, int me, float* rows) {
        const TileRegisters registers;
        TilesForward<PARTS>(l, r, rows, saved).run(r.range[me], r.range[me + 1]);
    };
    return over_experts(l, BLOCK, PACKING_COST, y, [](const Routing&) {}, [](int) {}, run, [](int) {});
}

}  // namespace

#endif
