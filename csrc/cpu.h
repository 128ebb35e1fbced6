/* What both files of libhardsample.so share: the levels of the CPU, threads, and working memory. */
#ifndef HARDSAMPLE_CPU_H
#define HARDSAMPLE_CPU_H

#pragma GCC diagnostic push  // GCC 12 takes the intrinsics' own undefined operands for mistakes
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "hardsample.h"

// The library is compiled for x86-64-v2; functions with these marks may use more, and are called on such CPUs only.
#define HS_TARGET_AVX2 __attribute__((target("avx2,fma,f16c,bmi,bmi2")))
#define HS_TARGET_AVX512 __attribute__((target("avx2,fma,f16c,bmi,bmi2,avx512f,avx512bw,avx512dq,avx512vl")))

inline int best_level() {
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    return !avx2 ? HS_BASELINE : avx512 ? HS_AVX512 : HS_AVX2;
}

inline bool runs_here(int threads, int level) { return threads >= 1 && level >= HS_BASELINE && level <= best_level(); }

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Calls task(i, thread) for 0 <= i < count. One thread enters no OpenMP region: GNU OpenMP hangs in forked children. */
template <class Task>
void each_task(int64_t count, int threads, const Task &task) {
    if (threads == 1 || count <= 1) {
        for (int64_t i = 0; i < count; i++) task(i, 0);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t i = 0; i < count; i++) task(i, omp_get_thread_num());
}

struct Free {
    void operator()(void *memory) const { std::free(memory); }
};

template <class T>
using Memory = std::unique_ptr<T[], Free>;

/* Memory for count elements that starts at a cache line, not cleared; null where there is none. */
template <class T>
Memory<T> allocate(int64_t count) {
    return Memory<T>(static_cast<T *>(std::aligned_alloc(64, ceil_div(count * int64_t(sizeof(T)), 64) * 64 + 64)));
}

#endif
