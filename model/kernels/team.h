// How many threads an operation is worth.
//
// Waking a sleeping thread and waiting for it costs 60 to 75 us on a quiet machine, so a second thread pays only
// when each has more than that to do (LOG.md, 2026-11-26). The number of threads follows from an estimate of the
// work that depends on sizes alone: a result depends on the sizes and the threads allowed, never on how busy the
// machine was.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

namespace {

// Rough costs on one core, good to a factor of two.
constexpr double NS_A_NUMBER = 0.5;           // of element-wise work: norms, activations, scaling
constexpr double NS_A_MULTIPLY = 1.0 / 75.0;  // of a multiply-add in a matrix product
constexpr double NS_AN_ATTENDED = 1.0 / 30.0;  // of a multiply-add in attention, softmax included

double least_ns = 100e3;  // the least work worth a thread

inline int team(double ns, int threads) {
    if (ns >= least_ns * threads) return threads;
    return static_cast<int>(std::max(1.0, ns / least_ns));
}

// A barrier that spins briefly before it sleeps. A sleeping thread takes about 50 us to wake, and threads with equal
// shares arrive within that of each other, so the first to arrive polls for about that long. It yields between
// polls: on a busy machine the others may be waiting for this very core.
class Meeting {
  public:
    explicit Meeting(int threads) : threads(threads) {}

    void wait() {
        look_out();
#pragma omp barrier
    }
    // Polls without the barrier: before the end of a parallel region, which has a barrier of its own.
    void look_out() {
        const int all = (arrived.fetch_add(1) / threads + 1) * threads;  // arrivals at this meeting and all before it
        for (int looks = 0; looks < MOST_LOOKS && arrived.load() < all; looks++) std::this_thread::yield();
    }

  private:
    static constexpr int MOST_LOOKS = 300;  // some 50 us
    const int threads;
    std::atomic<int> arrived{0};
};

}  // namespace

// For tests: sets the least work worth a thread; returns the previous value.
extern "C" double wt_least_ns(double ns) {
    const double before = least_ns;
    least_ns = ns;
    return before;
}
