// The output layer and its cross-entropy on the tile unit, a block of positions and a panel of the vocabulary at a
// time (loss.cpp has the plain way).
//
// Logits stay in the unit's squares. While a panel is in L2 its logits become exponentials relative to the panel's
// own maximum; once all panels are done, one factor per position and panel turns them into probabilities. These are
// packed once, as the left factor of the hidden states' gradient and the right factor of the weights', and
// multiplied right away. Threads divide the positions; each accumulates its own gradient of the weights.
#pragma once

#include <memory>
#include <vector>

#include "linear_tiles.h"
#include "loss.h"

#if defined(__AVX512BF16__)

namespace {

template <int PARTS>
struct LossOnTiles {
    static constexpr int64_t TILE = PARTS * SQUARE;
    // The best of 8 and 12 tiles with 64, 128 and 256 positions, for vocabularies of 256 to 16,384.
    static constexpr int64_t PANEL_DEPTH = 8, PANEL_COLUMNS = PANEL_DEPTH * DEPTH;  // of the vocabulary
    static constexpr int64_t MOST_ROWS_HELD = 128, SCORES_HELD = 1 << 20;
    static constexpr float NO_SCORE = -1e30f;

    const Loss& l;
    const int64_t D = squares_of(l.D), D_depth = depths_of(l.D), panels = (l.V + PANEL_COLUMNS - 1) / PANEL_COLUMNS;
    const int64_t rows_held =
        std::min(round_up(l.N, DEPTH), std::clamp(SCORES_HELD / l.V / DEPTH * DEPTH, DEPTH, MOST_ROWS_HELD));
    Buffer forward{squares_of(l.V) * D_depth * TILE};        // W^T, in columns of the vocabulary
    Buffer back{l.d_hidden ? D * depths_of(l.V) * TILE : 0};  // W, in panels of the vocabulary

    explicit LossOnTiles(const Loss& loss) : l(loss) {
        pack_along<PARTS, true>([&](int64_t v) { return l.output + v * l.D; }, l.V, l.D, forward.data);
        if (!l.d_hidden) return;
        for (int64_t p = 0; p < panels; p++)
            pack_across<PARTS>([&](int64_t v) { return l.output + (p * PANEL_COLUMNS + v) * l.D; }, columns(p), l.D,
                               back_of(p));
    }

    int64_t columns(int64_t p) const { return std::min(PANEL_COLUMNS, l.V - p * PANEL_COLUMNS); }
    const float* forward_of(int64_t p) const { return forward.data + p * PANEL_COLUMNS / SIDE * D_depth * TILE; }
    float* back_of(int64_t p) const { return back.data + D * p * PANEL_DEPTH * TILE; }

    // Handles positions [begin, end) and accumulates their gradient of the weights: squares [D] of each panel.
    struct Part {
        const LossOnTiles& all;
        const Loss& l = all.l;
        const int64_t D = all.D, held = all.rows_held, tall = held / SIDE;
        const bool back = l.d_hidden != nullptr;
        Buffer left{tall * all.D_depth * TILE}, left_turned{back ? D * depths_of(held) * TILE : 0};
        Buffer scores{held * (back ? all.panels : 1) * PANEL_COLUMNS};
        Buffer largest{all.panels * held}, sum{all.panels * held}, factor{all.panels * held}, right_score{held};
        Buffer rows{back ? held * PANEL_COLUMNS / DEPTH / SIDE * TILE : 0};
        Buffer columns{back ? held * PANEL_COLUMNS / DEPTH / SIDE * TILE : 0};
        Buffer d_hidden{back ? tall * D * SQUARE : 0}, d_output{back ? D * SIDE * all.panels * PANEL_COLUMNS : 0};

        explicit Part(const LossOnTiles& all) : all(all) {
            if (back) std::memset(d_output.data, 0, D * SIDE * all.panels * PANEL_COLUMNS * sizeof(float));
        }
        float* scores_of(int64_t p) { return scores.data + (back ? p * held * PANEL_COLUMNS : 0); }
        float* d_output_of(int64_t p) { return d_output.data + p * D * SIDE * PANEL_COLUMNS; }

        void run(int64_t begin, int64_t end) {
            const TileRegisters registers;
            for (int64_t first = begin; first < end; first += held) {
                const int64_t n = std::min(held, end - first);
                const auto hidden = [&](int64_t i) { return l.hidden + (first + i) * l.D; };
                pack_along<PARTS, false>(hidden, n, l.D, left.data);
                for (int64_t p = 0; p < all.panels; p++) score(first, n, p);
                normalise(l, first, n, {all.panels, held, largest.data, sum.data, right_score.data}, factor.data);
                if (!back) continue;
                pack_across<PARTS>(hidden, n, l.D, left_turned.data);
                for (int64_t tile = 0; tile < D * depths_of(n); tile++)
                    transpose_tiles<PARTS>(left_turned.data + tile * TILE);
                for (int64_t p = 0; p < all.panels; p++) differentiate(first, n, p);
                write_d_hidden(first, n);
            }
        }

        // A panel's logits become exponentials relative to each position's maximum, which is kept with their sum.
        void score(int64_t first, int64_t n, int64_t p) {
            const int64_t wide = squares_of(all.columns(p)), begin = p * PANEL_COLUMNS;
            float* squares = scores_of(p);
            multiply_squares<PARTS>(left.data, squares_of(n), all.forward_of(p), wide, all.D_depth,
                                    SquaresApart{squares, wide}, false);
            for (int64_t i = 0; i < squares_of(n); i++) {
                float* strip = squares + i * wide * SQUARE;
                const int64_t rows = std::min(SIDE, n - i * SIDE);
                for (int64_t r = 0; r < rows; r++) {
                    const int64_t at = l.target[first + i * SIDE + r] - begin;
                    if (at >= 0 && at < all.columns(p))
                        right_score.data[i * SIDE + r] = strip[at / SIDE * SQUARE + r * SIDE + at % SIDE];
                }
                if (const int64_t rest = all.columns(p) % SIDE)  // padding beyond the vocabulary
                    for (int64_t r = 0; r < SIDE; r++)
                        std::fill_n(strip + (wide - 1) * SQUARE + r * SIDE + rest, SIDE - rest, NO_SCORE);
                vec most[SIDE], sums[SIDE];
                for (int64_t r = 0; r < SIDE; r++) most[r] = load(strip + r * SIDE);
                for (int64_t j = 1; j < wide; j++)
#pragma GCC unroll 16
                    for (int64_t r = 0; r < SIDE; r++) {
                        const vec v = load(strip + j * SQUARE + r * SIDE);
                        most[r] = v > most[r] ? v : most[r];
                    }
                transpose(most);
                for (int64_t r = 1; r < SIDE; r++) most[0] = most[r] > most[0] ? most[r] : most[0];
                float* largest_here = largest.data + p * held + i * SIDE;
                store(largest_here, most[0]);
                for (int64_t r = 0; r < SIDE; r++) {
                    const vec over = splat(largest_here[r]);
                    vec even{}, odd{};
                    int64_t j = 0;
                    for (float* at = strip + r * SIDE; j < wide; j += 2, at += 2 * SQUARE) {
                        const vec e = exp_of_difference(load(at), over);
                        store(at, e);
                        even += e;
                        if (j + 1 == wide) break;
                        const vec f = exp_of_difference(load(at + SQUARE), over);
                        store(at + SQUARE, f);
                        odd += f;
                    }
                    sums[r] = even + odd;
                }
                transpose(sums);
                for (int64_t r = 1; r < SIDE; r++) sums[0] += sums[r];
                store(sum.data + p * held + i * SIDE, sums[0]);
            }
        }

        // The gradients of row i's logits in tile k of a panel, both of its squares.
        void d_scores(int64_t first, int64_t n, int64_t p, int64_t i, int64_t k, vec (&d)[2]) {
            const int64_t wide = squares_of(all.columns(p));
            d[0] = d[1] = vec{};
            if (i >= n) return;
            const float* at = scores_of(p) + (i / SIDE * wide + 2 * k) * SQUARE + i % SIDE * SIDE;
            const vec by = splat(factor.data[p * held + i]);
            d[0] = load(at) * by;
            if (2 * k + 1 < wide) d[1] = load(at + SQUARE) * by;
            const int64_t right = l.target[first + i] - p * PANEL_COLUMNS - k * DEPTH;
            if (right < 0 || right >= DEPTH) return;
            const float weight = l.weights ? l.weights[first + i] : 1.0f;
            d[right / SIDE][right % SIDE] -= weight;
        }

        void differentiate(int64_t first, int64_t n, int64_t p) {
            const int64_t wide = squares_of(all.columns(p)), depth = depths_of(all.columns(p)), n_depth = depths_of(n);
            for (int64_t pair = 0; pair < n_depth * SIDE; pair++) {
                const int64_t from = pair / SIDE * DEPTH, w = pair % SIDE;
                const int64_t i = from + first_of_word<PARTS>(w), j = from + second_of_word<PARTS>(w);
                for (int64_t k = 0; k < depth; k++) {
                    vec upper[2], lower[2], words[PARTS];
                    d_scores(first, n, p, i, k, upper);
                    d_scores(first, n, p, j, k, lower);
                    if (i < round_up(n, SIDE)) {
                        words_along(upper[0], upper[1], words);
                        store_words<PARTS>(words, tile_at<PARTS>(rows.data, i / SIDE, k, depth) + i % SIDE * SIDE);
                    }
                    if (j < round_up(n, SIDE)) {
                        words_along(lower[0], lower[1], words);
                        store_words<PARTS>(words, tile_at<PARTS>(rows.data, j / SIDE, k, depth) + j % SIDE * SIDE);
                    }
                    for (int64_t c = 0; c < 2 && 2 * k + c < wide; c++) {
                        words_across(upper[c], lower[c], words);
                        float* tile = tile_at<PARTS>(columns.data, 2 * k + c, pair / SIDE, n_depth);
                        store_words<PARTS>(words, tile + w * SIDE);
                    }
                }
            }
            multiply_squares<PARTS>(rows.data, squares_of(n), all.back_of(p), D, depth,
                                    SquaresApart{d_hidden.data, D}, p > 0);
            multiply_squares<PARTS>(left_turned.data, D, columns.data, wide, n_depth,
                                    SquaresApart{d_output_of(p), wide}, true);
        }

        void write_d_hidden(int64_t first, int64_t n) {
            for (int64_t i = 0; i < n; i++)
                for (int64_t c = 0; c < l.D; c += SIDE)
                    store_first(l.d_hidden + (first + i) * l.D + c,
                                load(d_hidden.data + (i / SIDE * D + c / SIDE) * SQUARE + i % SIDE * SIDE),
                                static_cast<int>(std::min(SIDE, l.D - c)));
        }
    };

    // The weight gradient of vocabulary rows [from, to), from squares with D along their rows.
    void write_d_output(std::vector<std::unique_ptr<Part>>& parts, int64_t p) const {
        const int64_t wide = squares_of(columns(p));
        for (int64_t j = 0; j < wide; j++)
            for (int64_t c = 0; c < D; c++) {
                vec r[LANES];
                for (int64_t i = 0; i < SIDE; i++) {
                    const int64_t at = (c * wide + j) * SQUARE + i * SIDE;
                    r[i] = load(parts[0]->d_output_of(p) + at);
                    for (size_t part = 1; part < parts.size(); part++) r[i] += load(parts[part]->d_output_of(p) + at);
                }
                transpose(r);
                const int64_t word = p * PANEL_COLUMNS + j * SIDE;
                for (int64_t i = 0; i < std::min(SIDE, l.V - word); i++)
                    store_first(l.d_output + (word + i) * l.D + c * SIDE, r[i],
                                static_cast<int>(std::min(SIDE, l.D - c * SIDE)));
            }
    }

    void run(int threads) const {
        const double ns = (l.d_hidden ? 3 : 1) * l.N * static_cast<double>(l.V) * l.D * NS_A_TILE_MULTIPLY<PARTS>;
        const int count = team(ns, threads);
        std::vector<std::unique_ptr<Part>> parts(count);
        Meeting meeting(count);
        together(count, [&](int me) {
            parts[me] = std::make_unique<Part>(*this);
            parts[me]->run(l.N * me / count, l.N * (me + 1) / count);
            meeting.wait();
            if (l.d_output)
                for (int64_t p = me; p < panels; p += count) write_d_output(parts, p);
            meeting.look_out();
        });
    }
};

}  // namespace

#endif
