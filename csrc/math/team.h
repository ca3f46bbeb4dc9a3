// A team runs one sample's loops. The cores are written once against these members:
//
//   each(n, f)              f(i) for every i
//   sum(n, f)               sum of f(i), as double
//   count(n, f)             number of i for which f(i) holds
//   first(n, f)             smallest i for which f(i) holds
//   max(n, f)               largest non-negative f(i), compared by its bits
//   max_sum(n, f, h)        both at once: max of f(i) and sum of h(f(i))
//   each_sum(n, f)          sum of f(i), which also writes
//   each_max_sum(n, g, f)   max of |g(i)| and sum of f(i, g(i)), which also writes
//   each_highest(n, f)      largest f(i) of any sign, which also writes; a NaN is passed over
//
// SimdTeam is one CPU thread: loops that the compiler vectorises. csrc/cuda/block.cuh has the CUDA block.
#pragma once

#include "real.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

template <typename T>
struct MaxSum {
  T max;
  double sum;
};

struct SimdTeam {
  // A lane adds up at most kChunk / 4 terms in the accumulation type (kChunk / 64 with AVX-512), and chunks are added in
  // double: the error of a sum does not grow with n. Four accumulators hide the latency of an addition.
  static constexpr int64_t kChunk = 1024;
  static constexpr int64_t kWays = 4, kLanes = 16;

  template <typename F>
  SOATFAST_HD void each(int64_t n, F f) const {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) f(i);
  }

  template <typename F>
  SOATFAST_HD double sum(int64_t n, F f) const {
    using T = decltype(f(int64_t{0}));
    double total = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t size = n - start < kChunk ? n - start : kChunk;
      const int64_t way = size / (kWays * kLanes) * kLanes;
      T a = 0, b = 0, c = 0, d = 0;
#pragma omp simd reduction(+ : a, b, c, d)
      for (int64_t i = start; i < start + way; ++i) {
        a += f(i);
        b += f(i + way);
        c += f(i + 2 * way);
        d += f(i + 3 * way);
      }
#pragma omp simd reduction(+ : a)
      for (int64_t i = start + 4 * way; i < start + size; ++i) a += f(i);
      total += (static_cast<double>(a) + static_cast<double>(b)) + (static_cast<double>(c) + static_cast<double>(d));
    }
    return total;
  }

  // A loop that also writes: one accumulator, in the order of memory.
  template <typename F>
  SOATFAST_HD double each_sum(int64_t n, F f) const {
    using T = decltype(f(int64_t{0}));
    double total = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = n - start < kChunk ? n : start + kChunk;
      T a = 0;
#pragma omp simd reduction(+ : a)
      for (int64_t i = start; i < stop; ++i) a += f(i);
      total += static_cast<double>(a);
    }
    return total;
  }

  // The same with the largest |g(i)| beside the sum of f(i, g(i)).
  template <typename G, typename F>
  SOATFAST_HD auto each_max_sum(int64_t n, G g, F f) const -> MaxSum<decltype(g(int64_t{0}))> {
    using T = decltype(g(int64_t{0}));
    Bits<T> m = 0;
    double total = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t stop = n - start < kChunk ? n : start + kChunk;
      T a = 0;
#pragma omp simd reduction(+ : a) reduction(max : m)
      for (int64_t i = start; i < stop; ++i) {
        const T value = g(i);
        const Bits<T> bits = bit_cast<Bits<T>>(magnitude(value));
        m = bits > m ? bits : m;
        a += f(i, value);
      }
      total += static_cast<double>(a);
    }
    return {bit_cast<T>(m), total};
  }

  // Smallest i for which f(i) holds; there must be one.
  template <typename F>
  SOATFAST_HD int64_t first(int64_t n, F f) const {
    constexpr int64_t kBlock = 256;
    int64_t start = 0;
    while (start + kBlock < n) {
      int32_t any = 0;
#pragma omp simd reduction(| : any)
      for (int64_t i = start; i < start + kBlock; ++i) any |= f(i) ? 1 : 0;
      if (any) break;
      start += kBlock;
    }
    while (!f(start)) ++start;
    return start;
  }

  template <typename F>
  SOATFAST_HD auto max(int64_t n, F f) const -> decltype(f(int64_t{0})) {
    using T = decltype(f(int64_t{0}));
    Bits<T> largest = 0;
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; ++i) {
      const Bits<T> bits = bit_cast<Bits<T>>(f(i));
      largest = bits > largest ? bits : largest;
    }
    return bit_cast<T>(largest);
  }

  template <typename F>
  SOATFAST_HD auto each_highest(int64_t n, F f) const -> decltype(f(int64_t{0})) {
    using T = decltype(f(int64_t{0}));
    T largest = static_cast<T>(-HUGE_VAL);
#pragma omp simd reduction(max : largest)
    for (int64_t i = 0; i < n; ++i) {
      const T value = f(i);
      largest = value > largest ? value : largest;
    }
    return largest;
  }

  template <typename F>
  SOATFAST_HD int64_t count(int64_t n, F f) const {
    int64_t total = 0;
    for (int64_t start = 0; start < n; start += 4 * kChunk) {
      const int64_t stop = n - start < 4 * kChunk ? n : start + 4 * kChunk;
      int32_t a = 0;
#pragma omp simd reduction(+ : a)
      for (int64_t i = start; i < stop; ++i) a += f(i) ? 1 : 0;
      total += a;
    }
    return total;
  }

  template <typename F, typename H>
  SOATFAST_HD auto max_sum(int64_t n, F f, H h) const -> MaxSum<decltype(f(int64_t{0}))> {
    using T = decltype(f(int64_t{0}));
    Bits<T> m = 0, m2 = 0;
    double total = 0;
    for (int64_t start = 0; start < n; start += kChunk) {
      const int64_t size = n - start < kChunk ? n - start : kChunk;
      const int64_t way = size / (2 * kLanes) * kLanes;
      T a = 0, b = 0;
#pragma omp simd reduction(+ : a, b) reduction(max : m, m2)
      for (int64_t i = start; i < start + way; ++i) {
        const T u = f(i), v = f(i + way);
        m = bit_cast<Bits<T>>(u) > m ? bit_cast<Bits<T>>(u) : m;
        m2 = bit_cast<Bits<T>>(v) > m2 ? bit_cast<Bits<T>>(v) : m2;
        a += h(u);
        b += h(v);
      }
#pragma omp simd reduction(+ : a) reduction(max : m)
      for (int64_t i = start + 2 * way; i < start + size; ++i) {
        const T u = f(i);
        m = bit_cast<Bits<T>>(u) > m ? bit_cast<Bits<T>>(u) : m;
        a += h(u);
      }
      total += static_cast<double>(a) + static_cast<double>(b);
    }
    return {bit_cast<T>(m > m2 ? m : m2), total};
  }
};

}  // namespace SOATFAST_ISA
}  // namespace soatfast
