// Runs the output layer's loss and the optimizer over awkward shapes on heap buffers of exactly the right
// size, for the sanitizers.
#include "adamw.cpp"
#include "loss.cpp"

#include <cstdio>

#include "driver_threads.h"

using Floats = std::vector<float>;

static void losses(int64_t N, int64_t D, int64_t V, bool bf16, int threads) {
    Floats hidden(N * D, 0.5f), output(V * D, 0.1f), nats(N), d_hidden(N * D), d_output(V * D), weights(N, 0.3f);
    Floats to_hidden(N * D), to_output(V * D);
    std::vector<int64_t> target(N, V - 1);
    wt_nats_forward(N, D, V, hidden.data(), output.data(), target.data(), nats.data(), nullptr, nullptr, bf16,
                    threads);
    wt_nats_forward(N, D, V, hidden.data(), output.data(), target.data(), nats.data(), d_hidden.data(),
                    d_output.data(), bf16, threads);
    for (float last : {0.3f, 0.4f}) {
        weights.back() = last;
        wt_nats_backward(N, D, V, hidden.data(), output.data(), target.data(), d_hidden.data(), d_output.data(),
                         weights.data(), to_hidden.data(), to_output.data(), bf16, threads);
    }
}

static void optimizers(int64_t first, int64_t second, int threads) {
    const int64_t sizes[] = {first, second};
    Floats weight[2], grad[2], mean[2], square[2], step(2);
    float *weights[2], *grads[2], *means[2], *squares[2], *steps[] = {&step[0], &step[1]};
    const float decays[] = {0.1f, 0.0f};
    for (int i = 0; i < 2; i++) {
        for (auto* each : {&weight[i], &grad[i], &mean[i], &square[i]}) each->assign(sizes[i], 0.5f);
        weights[i] = weight[i].data(), grads[i] = grad[i].data();
        means[i] = mean[i].data(), squares[i] = square[i].data();
    }
    wt_squared_norm(2, sizes, grads, threads);
    wt_scale(2, sizes, grads, 0.5f, threads);
    wt_adamw(2, sizes, weights, grads, means, squares, steps, decays, 1e-3, 0.9, 0.95, 1e-8, 0.5, threads);
}

int main() {
    use_threads();
    int cases = 0;
    for (int run = 0; run < 6; run++) {
        const int threads = run % 2 ? 3 : 1;
        const bool bf16 = run / 2 == 2;
        wt_use_tiles(run / 2 == 1 ? ALWAYS : NEVER);
        losses(1, 1, 1, bf16, threads);
        losses(5, 3, 33, bf16, threads);
        losses(40, 4, 40000, bf16, threads);
        losses(70, 3, 30001, bf16, threads);
        optimizers(1, 40000, threads);
        optimizers(16384, 37, threads);
        cases += 6;
    }
    std::printf("%d cases\n", cases);
}
