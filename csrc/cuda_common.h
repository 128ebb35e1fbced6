/* What the CUDA kernels share: how a kernel's body runs, on the device and, for tests, on the host.
 *
 * A body is a function of one block, made of phases: lambdas of a thread's or a warp's index. On the device each thread
 * runs its part of a phase and meets the others at a barrier; on the host a phase is a loop. What lies between phases
 * is the same for all threads of a block.
 */
#ifndef HARDSAMPLE_CUDA_COMMON_H
#define HARDSAMPLE_CUDA_COMMON_H

#include <cuda_runtime.h>

#include <climits>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "hardsample.h"

#define HD __host__ __device__ __forceinline__

constexpr int WARP = 32;
constexpr int64_t DEFAULT_SHARED_BYTES = 48 * 1024;  // a launch may take more only after cudaFuncSetAttribute

template <int THREADS, class Phase>
HD void each_thread(Phase phase) {
#ifdef __CUDA_ARCH__
    phase(int(threadIdx.x));
    __syncthreads();
#else
    for (int thread = 0; thread < THREADS; ++thread) phase(thread);
#endif
}

template <int THREADS, class Phase>
HD void each_warp(Phase phase) {
#ifdef __CUDA_ARCH__
    phase(int(threadIdx.x / WARP));
    __syncthreads();
#else
    for (int warp = 0; warp < THREADS / WARP; ++warp) phase(warp);
#endif
}

/* Inside a phase of a warp: what each of its lanes does, without a barrier. */
template <class Part>
HD void each_lane(int warp, Part part) {
#ifdef __CUDA_ARCH__
    part(int(threadIdx.x));
#else
    for (int lane = 0; lane < WARP; ++lane) part(warp * WARP + lane);
#endif
}

/* Registers that a warp's lanes share in one phase, or that a thread keeps from one phase to the next. */
template <class T, int THREADS>
struct PerThread {
#ifdef __CUDA_ARCH__
    T own;
    HD T &operator[](int) { return own; }
#else
    T all[THREADS];
    HD T &operator[](int thread) { return all[thread]; }
#endif
};

/* Reads through the read-only path, which may keep what many blocks read. */
template <class T>
HD T load(const T *from) {
#ifdef __CUDA_ARCH__
    return __ldg(from);
#else
    return *from;
#endif
}

/* Writes what nobody reads soon: the caches had better keep other things. */
template <class T>
HD void store_streaming(T *to, T value) {
#ifdef __CUDA_ARCH__
    __stcs(to, value);
#else
    *to = value;
#endif
}

template <class T>
HD T smaller(T a, T b) {
    return a < b ? a : b;
}

template <class T>
HD T larger(T a, T b) {
    return a < b ? b : a;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

/* Where a body runs: on a stream, or on the host. */
struct Target {
    bool host;
    cudaStream_t stream;
};

template <class Body>
__global__ void __launch_bounds__(Body::THREADS, Body::MIN_BLOCKS) on_device(const __grid_constant__
                                                                             typename Body::Params params) {
    extern __shared__ uint4 memory[];
    Body::run(params, blockIdx.x, memory);
}

/* Runs `blocks` blocks of a body; returns a cudaError_t. */
template <class Body>
int run_blocks(const typename Body::Params &params, int64_t blocks, int64_t shared_bytes, Target target) {
    if (blocks > INT_MAX) return cudaErrorInvalidValue;
    if (target.host) {
        std::vector<uint4> memory(divide_up(shared_bytes, sizeof(uint4)));
        for (int64_t block = 0; block < blocks; ++block) {
            memset(memory.data(), 0xFF, shared_bytes);  // as on the device, nothing good is there
            Body::run(params, block, memory.data());
        }
        return cudaSuccess;
    }
    if (shared_bytes > DEFAULT_SHARED_BYTES) {
        cudaError_t error =
            cudaFuncSetAttribute(on_device<Body>, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
        if (error != cudaSuccess) {
            cudaGetLastError();  // clears it: the next launch is not to blame
            return error;
        }
    }
    on_device<Body><<<unsigned(blocks), Body::THREADS, shared_bytes, target.stream>>>(params);
    return cudaGetLastError();
}

#endif
