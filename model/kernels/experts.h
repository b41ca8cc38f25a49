// What all implementations of the expert layer share: its arguments, its gradients, and the reductions over threads.
//
//   y[t] = sum_k gate[t,k] * W_down[e]^T (silu(W_gate[e] x[t]) * (W_up[e] x[t])),   e = expert[t,k]
//
// Shapes: x, y [T, D]; expert, gate [T, K]; w_gate_up [E, 2H, D], gate rows first; w_down [E, H, D].
#pragma once

#include <optional>

#include "routing.h"
#include "team.h"

namespace {

struct Layer {
    int64_t T, D, E, H, K;
    const float* x;
    const int64_t* expert;
    const float *gate, *w_gate_up, *w_down;
    int32_t threads;
};

struct Gradients {
    const float* dy;
    float *dx, *dgate, *dw_gate_up, *dw_down;
};

// Each thread accumulates into its own copy of the output; the copies are summed in thread order.
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

// Where an expert's weight gradients are written. An expert whose tiles straddle two ranges is completed by adding
// the later threads' shares.
struct WeightGradients {
    WeightGradients(const Layer& layer, const Routing& routing, const Gradients& out)
        : layer(layer), routing(routing), out(out), size(3 * layer.H * layer.D), shared(layer.threads, -1),
          share(layer.threads) {
        for (int i = 1; i < layer.threads; i++)
            if (routing.range[i] < routing.range[i + 1] && !routing.tiles[routing.range[i]].first_of_expert) {
                shared[i] = routing.tiles[routing.range[i]].expert;
                share[i] = std::make_unique<Buffer>(size);
            }
    }
    float* gate_up(int thread, int64_t e) const {
        return is_share(thread, e) ? share[thread]->data : out.dw_gate_up + e * 2 * layer.H * layer.D;
    }
    float* down(int thread, int64_t e) const {
        const int64_t HD = layer.H * layer.D;
        return is_share(thread, e) ? share[thread]->data + 2 * HD : out.dw_down + e * HD;
    }
    bool is_share(int thread, int64_t e) const { return e == shared[thread]; }
    void clear_unvisited(int thread) const {
        const int64_t E = layer.E, HD = layer.H * layer.D;
        for (int64_t e = E * thread / layer.threads; e < E * (thread + 1) / layer.threads; e++)
            if (!routing.visited[e]) {
                std::memset(out.dw_gate_up + e * 2 * HD, 0, 2 * HD * sizeof(float));
                std::memset(out.dw_down + e * HD, 0, HD * sizeof(float));
            }
    }
    void add_shares(int thread) const {  // after a barrier
        const int64_t HD = layer.H * layer.D;
        for (int i = 1; i < layer.threads; i++) {
            if (shared[i] < 0) continue;
            float *in = out.dw_gate_up + shared[i] * 2 * HD, *down = out.dw_down + shared[i] * HD;
            const int64_t from = size * thread / layer.threads, to = size * (thread + 1) / layer.threads;
            for (int64_t at = from; at < to; at++)
                (at < 2 * HD ? in[at] : down[at - 2 * HD]) += share[i]->data[at];
        }
    }
    const Layer& layer;
    const Routing& routing;
    const Gradients& out;
    int64_t size;
    std::vector<int64_t> shared;
    std::vector<std::unique_ptr<Buffer>> share;
};

// A pass over all experts by the layer's threads. prepare(routing) is called once and begin(thread) by every thread;
// when all have, every thread calls run(routing, thread, rows) for its own tiles, of at most `most` tokens,
// accumulating into its own rows[T, D], which are then summed into out; finish(thread) comes last. Returns 0, or 1 if
// an expert index is out of range.
template <class Prepare, class Begin, class Run, class Finish>
int32_t over_experts(const Layer& l, int64_t most, int64_t visit_cost, float* out, Prepare prepare, Begin begin,
                     Run run, Finish finish) {
    Routing routing;
    RowSums sums(out, l.T, l.D, l.threads);
    Meeting meeting(l.threads);
    together(l.threads, [&](int me) {
        if (me == 0) {  // while the other threads wake up and clear their rows
            routing = route(l.expert, l.T * l.K, l.K, l.E, l.threads, most, visit_cost);
            if (routing.valid) prepare(routing);
        }
        float* rows = sums.of(me);
        begin(me);
        meeting.wait();
        if (routing.valid) {
            run(routing, me, rows);
            meeting.wait();
            sums.reduce(me);
            finish(me);
        }
        meeting.look_out();
    });
    return routing.valid ? 0 : 1;
}

}  // namespace
