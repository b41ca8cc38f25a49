// How many threads an operation is worth.
//
// Waking a sleeping thread and waiting for it costs 60 to 75 us on a quiet machine, so a second thread pays only
// when each has more than that to do (LOG.md, 2026-11-26). The number of threads follows from an estimate of the
// work that depends on sizes alone: a result depends on the sizes and the threads allowed, never on how busy the
// machine was.
//
// The threads are those of the framework's own OpenMP runtime, whose functions are handed over as addresses: every
// compiler will do, also one without OpenMP (Apple's), and no process gets a second runtime with threads of its own.
// Without the addresses everything is computed on the calling thread.
#pragma once

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

// As GCC's and LLVM's runtime both name and define them: GOMP_parallel, GOMP_barrier, omp_get_thread_num
// and omp_get_thread_limit.
struct Runtime {
    void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
    void (*barrier)();
    int (*thread)();
    int (*limit)();
} runtime{};

// Calls work(thread) on each of so many threads and returns when all have.
template <class Work>
void together(int threads, Work work) {
    if (threads == 1) return work(0);
    runtime.parallel([](void* data) { (*static_cast<Work*>(data))(runtime.thread()); }, &work, threads, 0);
}

inline int team(double ns, int threads) {
    threads = runtime.parallel ? std::min(threads, runtime.limit()) : 1;
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
        if (threads > 1) runtime.barrier();
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

// Sets the addresses of the runtime's functions.
extern "C" void wt_use_threads(void* parallel, void* barrier, void* thread, void* limit) {
    runtime = {reinterpret_cast<decltype(Runtime::parallel)>(parallel),
               reinterpret_cast<decltype(Runtime::barrier)>(barrier),
               reinterpret_cast<decltype(Runtime::thread)>(thread),
               reinterpret_cast<decltype(Runtime::limit)>(limit)};
}

// For tests: sets the least work worth a thread; returns the previous value.
extern "C" double wt_least_ns(double ns) {
    const double before = least_ns;
    least_ns = ns;
    return before;
}
