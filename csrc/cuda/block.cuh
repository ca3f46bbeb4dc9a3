// A team of one CUDA block: the sums and maxima of csrc/math/team.h over a sample, one thread an entry at a time.
#pragma once

#include "../math/team.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// A thread's running sum. In float it keeps what rounding loses (Kahan), so that a long row's norm is as exact as a short
// one's; the intrinsics are never fused or reordered.
template <typename T>
struct RunningSum {
  T total = 0;
  __device__ __forceinline__ void add(T value) { total += value; }
  __device__ __forceinline__ double value() const { return static_cast<double>(total); }
};

template <>
struct RunningSum<float> {
  float total = 0, lost = 0;
  __device__ __forceinline__ void add(float value) {
    const float wanted = __fsub_rn(value, lost);
    const float next = __fadd_rn(total, wanted);
    lost = __fsub_rn(__fsub_rn(next, total), wanted);
    total = next;
  }
  __device__ __forceinline__ double value() const { return static_cast<double>(total) - static_cast<double>(lost); }
};

template <int kThreads>
struct BlockTeam {
  static constexpr int kWarps = kThreads / 32;

  template <typename V, typename Op>
  __device__ __forceinline__ V reduce(V value, Op op) const {
    __shared__ V partial[kWarps];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value = op(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    __syncthreads();
    value = partial[0];
#pragma unroll
    for (int warp = 1; warp < kWarps; ++warp) value = op(value, partial[warp]);  // every thread, in one order
    __syncthreads();
    return value;
  }

  template <typename F>
  __device__ __forceinline__ double sum(int64_t n, F f) const {
    using T = decltype(f(int64_t{0}));
    RunningSum<T> mine;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) mine.add(f(i));
    return reduce(mine.value(), [](double a, double b) { return a + b; });
  }

  template <typename F>
  __device__ __forceinline__ auto max(int64_t n, F f) const -> decltype(f(int64_t{0})) {
    using T = decltype(f(int64_t{0}));
    Bits<T> mine = 0;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const Bits<T> bits = bit_cast<Bits<T>>(f(i));
      mine = bits > mine ? bits : mine;
    }
    return bit_cast<T>(reduce(mine, [](Bits<T> a, Bits<T> b) { return a > b ? a : b; }));
  }

  template <typename F, typename H>
  __device__ __forceinline__ auto max_sum(int64_t n, F f, H h) const -> MaxSum<decltype(f(int64_t{0}))> {
    using T = decltype(f(int64_t{0}));
    Bits<T> largest = 0;
    RunningSum<T> mine;
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      const T value = f(i);
      const Bits<T> bits = bit_cast<Bits<T>>(value);
      largest = bits > largest ? bits : largest;
      mine.add(h(value));
    }
    const Bits<T> m = reduce(largest, [](Bits<T> a, Bits<T> b) { return a > b ? a : b; });
    return {bit_cast<T>(m), reduce(mine.value(), [](double a, double b) { return a + b; })};
  }
};

}  // namespace SOATFAST_ISA
}  // namespace soatfast
