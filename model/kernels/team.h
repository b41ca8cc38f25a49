// How many threads an operation is worth.
//
// To wake a sleeping thread and to wait for it costs 60 to 75 us on a quiet machine, and nothing is gained
// before each thread has more than that to do (LOG.md, 2026-11-26). So threads are asked for by an estimate of
// the work, made of sizes alone: a result depends on the sizes and the number of threads, never on how busy
// the machine was.
#pragma once

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>

namespace {

// Rough prices on one core, good to a factor of two.
constexpr double NS_A_NUMBER = 0.5;           // of rows that are normalised, activated, scaled
constexpr double NS_A_MULTIPLY = 1.0 / 75.0;  // of a matrix product
constexpr double NS_AN_ATTENDED = 1.0 / 30.0;  // of the products of attention, its softmax in it

double least_ns = 100e3;  // of a thread's share

inline int team(double ns, int threads) {
    if (ns >= least_ns * threads) return threads;
    return static_cast<int>(std::max(1.0, ns / least_ns));
}

// Where the threads of a team wait for each other. One that has fallen asleep takes some 50 us to come back, and
// threads with equal shares arrive within that of each other; so who comes first looks out for the others that
// long before it sleeps. It yields between two looks: on a busy machine the others may wait for its very core.
class Meeting {
  public:
    explicit Meeting(int threads) : threads(threads) {}

    void wait() {
        look_out();
#pragma omp barrier
    }
    // Before the team's end, which is a meeting of its own.
    void look_out() {
        const int all = (arrived.fetch_add(1) / threads + 1) * threads;  // of this meeting and those before
        for (int looks = 0; looks < MOST_LOOKS && arrived.load() < all; looks++) std::this_thread::yield();
    }

  private:
    static constexpr int MOST_LOOKS = 300;  // some 50 us
    const int threads;
    std::atomic<int> arrived{0};
};

}  // namespace

// For tests: from how much work on another thread is asked for. Returns what was set.
extern "C" double wt_least_ns(double ns) {
    const double before = least_ns;
    least_ns = ns;
    return before;
}
