// The output layer and its cross-entropy in vector registers, a block of positions and a panel of the vocabulary at a
// time (loss.cpp has the plain way, loss_tiles.h the tile unit's).
//
// A panel's logits become exponentials relative to the panel's own maximum while they are in L2; once all panels of a
// block are done, one factor per position and panel turns them into probabilities, which are multiplied right away.
// Rows of a panel are PAD floats apart from a power of two: the weights' gradient reads the logits by columns, and
// rows 2^n bytes apart would all fall into one set of the cache.
//
// Threads take a block of positions each, then a part of the vocabulary each for the weights' gradient, which is
// summed in the order of positions: a result does not depend on the number of threads.
#pragma once

#include <vector>

#include "linear.h"
#include "loss.h"

namespace {

class LossInPanels {
  public:
    explicit LossInPanels(const Loss& loss) : l(loss) {
        for (int64_t v = 0; v < l.V; v += columns) widths.push_back(std::min(columns, l.V - v));
    }

    void run(int threads) {
        const double ns = (l.d_hidden ? 3 : 1) * l.N * static_cast<double>(l.V) * l.D * NS_A_MULTIPLY;
        const int count = static_cast<int>(std::min<int64_t>(team(ns, threads), (l.N + rows - 1) / rows));
        for (int i = 0; i < count; i++) blocks.emplace_back(new Block(*this));
        Meeting meeting(count);
        together(count, [&](int me) {
            for (int64_t first = 0; first < l.N; first += count * rows) {
                blocks[me]->run(first + me * rows);
                if (!l.d_hidden) continue;
                meeting.wait();
                for (int64_t p = panels() * me / count; p < panels() * (me + 1) / count; p++)
                    for (const auto& block : blocks) block->add_to_weights(p, first > 0 || block != blocks[0]);
                meeting.wait();
            }
            meeting.look_out();
        });
    }

  private:
    static constexpr int64_t MOST_COLUMNS = 320, MOST_ROWS = 128, SCORES_HELD = 1 << 21, PAD = 16;
    static constexpr float NO_SCORE = -1e30f;

    struct Block {
        const LossInPanels& all;
        const Loss& l = all.l;
        const int64_t row = all.columns + PAD, panel = all.rows * row;  // floats
        Buffer scores{panel * (l.d_hidden ? all.panels() : 1)}, weights{round_up(all.columns, PANEL) * l.D};
        Buffer largest{all.panels() * all.rows}, sum{all.panels() * all.rows}, factor{all.panels() * all.rows};
        Buffer right_score{all.rows};
        int64_t first = 0, n = 0;  // the block's positions; none where there are no more

        explicit Block(const LossInPanels& all) : all(all) {}

        float* scores_of(int64_t p) { return scores.data + (l.d_hidden ? p * panel : 0); }
        const float* hidden() const { return l.hidden + first * l.D; }
        const float* output(int64_t p) const { return l.output + p * all.columns * l.D; }

        // Losses and the hidden states' gradients of the block at `position`; leaves the logits' in `scores`.
        void run(int64_t position) {
            first = position, n = std::max<int64_t>(0, std::min(all.rows, l.N - position));
            if (n == 0) return;
            for (int64_t p = 0; p < all.panels(); p++) score(p);
            normalise(l, first, n, {all.panels(), all.rows, largest.data, sum.data, right_score.data}, factor.data);
            if (!l.d_hidden) return;
            for (int64_t p = 0; p < all.panels(); p++) {
                to_gradients(p);
                multiply<false>({scores_of(p), row, 1, {output(p), l.D, nullptr}, n, l.D, all.widths[p]},
                                l.d_hidden + first * l.D, l.D, p > 0);
            }
        }

        // The panel's rows of the weights' gradient = or += the logits' gradients^T . hidden.
        void add_to_weights(int64_t p, bool add) {
            if (n == 0) return;
            multiply<false>({scores_of(p), 1, row, {hidden(), l.D, nullptr}, all.widths[p], l.D, n},
                            l.d_output + p * all.columns * l.D, l.D, add);
        }

        // A panel's logits, as exponentials relative to each position's maximum, which is kept with their sum.
        void score(int64_t p) {
            const int64_t width = all.widths[p], begin = p * all.columns;
            float* at = scores_of(p);
            pack_transposed(output(p), width, l.D, weights.data);
            for (int64_t c = 0; c < width; c += PANEL)
                multiply<false>({hidden(), l.D, 1, {weights.data + c * l.D, PANEL, nullptr}, n,
                                 std::min(PANEL, width - c), l.D}, at + c, row, false);
            for (int64_t i = 0; i < n; i++) {
                const int64_t right = l.target[first + i] - begin;
                if (right >= 0 && right < width) right_score.data[i] = at[i * row + right];
                std::fill(at + i * row + width, at + i * row + round_up(width, LANES), NO_SCORE);
            }
            for (int64_t i = 0; i < n; i += LANES) exponentials(p, i);
        }
        // The same of LANES positions from i on, whose maxima and sums are then in the lanes of one vector.
        void exponentials(int64_t p, int64_t i) {
            const int64_t vectors = round_up(all.widths[p], LANES), here = std::min<int64_t>(LANES, n - i);
            float* at = scores_of(p) + i * row;
            vec most[LANES] = {}, sums[LANES] = {};
            for (int64_t r = 0; r < here; r++) {
                most[r] = load(at + r * row);
                for (int64_t c = LANES; c < vectors; c += LANES) most[r] = larger_of(load(at + r * row + c), most[r]);
            }
            transpose(most);
            for (int64_t r = 1; r < LANES; r++) most[0] = larger_of(most[r], most[0]);
            float* largest_here = largest.data + p * all.rows + i;
            store(largest_here, most[0]);
            for (int64_t r = 0; r < here; r++) {
                const vec over = splat(largest_here[r]);
                for (int64_t c = 0; c < vectors; c += LANES) {
                    const vec e = exp_of_difference(load(at + r * row + c), over);
                    store(at + r * row + c, e);
                    sums[r] += e;
                }
            }
            transpose(sums);
            for (int64_t r = 1; r < LANES; r++) sums[0] += sums[r];
            store(sum.data + p * all.rows + i, sums[0]);
        }

        // A panel's exponentials become the gradients of its logits.
        void to_gradients(int64_t p) {
            const int64_t width = all.widths[p];
            for (int64_t i = 0; i < n; i++) {
                float* at = scores_of(p) + i * row;
                const vec by = splat(factor.data[p * all.rows + i]);
                for (int64_t c = 0; c < width; c += LANES) store(at + c, load(at + c) * by);
                const int64_t right = l.target[first + i] - p * all.columns;
                if (right >= 0 && right < width) at[right] -= l.weights ? l.weights[first + i] : 1.0f;
            }
        }
    };

    int64_t panels() const { return static_cast<int64_t>(widths.size()); }

    const Loss& l;
    // Of a panel: as equal as whole vectors allow.
    const int64_t columns = round_up((l.V + (l.V - 1) / MOST_COLUMNS) / ((l.V - 1) / MOST_COLUMNS + 1), LANES);
    const int64_t rows = std::clamp<int64_t>(SCORES_HELD / l.V / LANES * LANES, LANES, MOST_ROWS);
    std::vector<int64_t> widths;
    std::vector<std::unique_ptr<Block>> blocks;
};

}  // namespace
