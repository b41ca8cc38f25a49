// Gives a driver's kernels the threads of the OpenMP runtime that it is linked with (-lgomp).
#pragma once

#include "team.h"

extern "C" {
void GOMP_parallel(void (*work)(void*), void* data, unsigned threads, unsigned flags);
void GOMP_barrier();
int omp_get_thread_num();
int omp_get_thread_limit();
}

inline void use_threads() {
    wt_use_threads(reinterpret_cast<void*>(GOMP_parallel), reinterpret_cast<void*>(GOMP_barrier),
                   reinterpret_cast<void*>(omp_get_thread_num), reinterpret_cast<void*>(omp_get_thread_limit));
    wt_least_ns(0);  // threads share whatever there is
}
