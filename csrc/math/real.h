// Scalars: bit patterns, the contract's finite value, sign, clamp, and a vectorisable power and exponential.
//
// Everything under csrc/math is a template over the team that runs it (see team.h), so one source serves the CPU row
// kernels, CUDA blocks and the NumPy bindings. The CPU compiles it once per instruction set; SOATFAST_ISA names an
// inline namespace so that the copies never meet in the linker.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define SOATFAST_HD __host__ __device__ __forceinline__
#define SOATFAST_BODY
#else
#define SOATFAST_HD inline __attribute__((always_inline))
#define SOATFAST_BODY __attribute__((always_inline))  // after a lambda's parameters: it is the body of a SIMD loop
#endif

#ifndef SOATFAST_ISA
#define SOATFAST_ISA portable
#endif

namespace soatfast {
inline namespace SOATFAST_ISA {

template <typename To, typename From>
SOATFAST_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

// What the rest needs to know about the two accumulation types.
template <typename T>
struct Real;

template <>
struct Real<float> {
  using Bits = int32_t;
  static constexpr Bits kSign = INT32_MIN;
  static constexpr Bits kMagnitude = 0x7fffffff;
  static constexpr Bits kInfinity = 0x7f800000;
  static constexpr Bits kLargest = 0x7f7fffff;
  static constexpr int kMantissa = 23, kBias = 127, kSafe = 40;
  static constexpr float kEpsilon = 0x1p-23f;
};

template <>
struct Real<double> {
  using Bits = int64_t;
  static constexpr Bits kSign = INT64_MIN;
  static constexpr Bits kMagnitude = 0x7fffffffffffffff;
  static constexpr Bits kInfinity = 0x7ff0000000000000;
  static constexpr Bits kLargest = 0x7fefffffffffffff;
  static constexpr int kMantissa = 52, kBias = 1023, kSafe = 400;
  static constexpr double kEpsilon = 0x1p-52;
};

template <typename T>
using Bits = typename Real<T>::Bits;

// Bits of |g|, NaN as 0 and infinity as the largest finite number. Non-negative floats order like their bits.
template <typename T>
SOATFAST_HD Bits<T> finite_magnitude(T g) {
  Bits<T> a = bit_cast<Bits<T>>(g) & Real<T>::kMagnitude;
  a = a > Real<T>::kInfinity ? 0 : a;
  return a > Real<T>::kLargest ? Real<T>::kLargest : a;
}

// torch.nan_to_num, the rule for every gradient entry.
template <typename T>
SOATFAST_HD T finite(T g) {
  return bit_cast<T>(finite_magnitude(g) | (bit_cast<Bits<T>>(g) & Real<T>::kSign));
}

template <typename T>
SOATFAST_HD T magnitude(T g) {
  return bit_cast<T>(bit_cast<Bits<T>>(g) & Real<T>::kMagnitude);
}

// |size| with the sign bit of g.
template <typename T>
SOATFAST_HD T with_sign(T size, T g) {
  return bit_cast<T>(bit_cast<Bits<T>>(size) | (bit_cast<Bits<T>>(g) & Real<T>::kSign));
}

// size * sgn(g), sgn(0) = sgn(NaN) = 0.
template <typename T>
SOATFAST_HD T times_sign(T size, T g) {
  return g > T(0) ? size : (g < T(0) ? -size : T(0));
}

// torch.clamp: NaN stays NaN.
template <typename T>
SOATFAST_HD T clamp(T t, T lower, T upper) {
  t = t < lower ? lower : t;
  return t > upper ? upper : t;
}

template <typename T>
SOATFAST_HD bool is_safe(T m) {
  const int exponent = static_cast<int>(bit_cast<Bits<T>>(m) >> Real<T>::kMantissa) - Real<T>::kBias;
  return exponent > -Real<T>::kSafe && exponent < Real<T>::kSafe;
}

// A power of two s for which m s is near 1. Zero and NaN give 1.
template <typename T>
SOATFAST_HD T near_one_scale(T m) {
  if (!(m > T(0))) return T(1);
  int exponent = Real<T>::kBias - static_cast<int>(bit_cast<Bits<T>>(m) >> Real<T>::kMantissa);
  exponent = exponent < 1 - Real<T>::kBias ? 1 - Real<T>::kBias : exponent;
  exponent = exponent > Real<T>::kBias - 1 ? Real<T>::kBias - 1 : exponent;
  return bit_cast<T>(static_cast<Bits<T>>(exponent + Real<T>::kBias) << Real<T>::kMantissa);
}

// The same, but exactly 1 where squares of m are harmless anyway.
template <typename T>
SOATFAST_HD T safe_scale(T m) {
  return is_safe(m) ? T(1) : near_one_scale(m);
}

SOATFAST_HD float fused(float a, float b, float c) {
#if defined(__FMA__) || defined(__CUDA_ARCH__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// log2 of r >= 0 to about one ulp, also near 1 and for denormals: r = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)).
SOATFAST_HD float log2_of(float r) {
  const bool tiny = r < 0x1p-126f;
  const int32_t bits = bit_cast<int32_t>(tiny ? r * 0x1p32f : r);
  const int32_t e = (bits - 0x3f3504f3) >> 23;
  const float f = bit_cast<float>(bits - (e << 23)) - 1.0f;
  const float z = f * f;
  float y = 7.0376836292e-2f;  // the minimax polynomial of ln(1 + f) from Cephes
  y = fused(y, f, -1.1514610310e-1f);
  y = fused(y, f, 1.1676998740e-1f);
  y = fused(y, f, -1.2420140846e-1f);
  y = fused(y, f, 1.4249322787e-1f);
  y = fused(y, f, -1.6668057665e-1f);
  y = fused(y, f, 2.0000714765e-1f);
  y = fused(y, f, -2.4999993993e-1f);
  y = fused(y, f, 3.3333331174e-1f);
  const float natural = f + fused(-0.5f, z, y * f * z);
  return fused(natural, 1.44269504088896341f, static_cast<float>(e - (tiny ? 32 : 0)));
}

// 2^f for |f| <= 1/2, to about one ulp.
SOATFAST_HD float exp2_series(float f) {
  float y = 1.535336188319500e-4f;  // Cephes again
  y = fused(y, f, 1.339887440266574e-3f);
  y = fused(y, f, 9.618437357674640e-3f);
  y = fused(y, f, 5.550332471162809e-2f);
  y = fused(y, f, 2.402264791363012e-1f);
  y = fused(y, f, 6.931472028550421e-1f);
  return fused(y, f, 1.0f);
}

// 2^t for t <= 0; below 2^-126 it is 0.
SOATFAST_HD float exp2_of(float t) {
  const float shifter = 0x1.8p23f;  // adding it rounds to an integer
  const float n = (t + shifter) - shifter;
  const float y = exp2_series(t - n);
  const bool vanishes = !(t > -126.0f);
  const int32_t exponent = vanishes ? 0 : static_cast<int32_t>(n);
  return vanishes ? 0.0f : bit_cast<float>(bit_cast<int32_t>(y) + exponent * (1 << 23));
}

// 2^e for -126 <= e <= 127.
SOATFAST_HD float power_of_two(int32_t e) {
  return bit_cast<float>(static_cast<uint32_t>(e + Real<float>::kBias) << Real<float>::kMantissa);
}

// e^t for t <= 0 to about one ulp, down to the denormals; NaN stays NaN. (Not exp2_of(t log2 e): rounding that product
// costs |t| / 2 ulps, and the probabilities of a confident sample have large |t|.)
SOATFAST_HD float exp_of(float t) {
  t = t < -104.0f ? -104.0f : t;  // e^-104 rounds to 0
  const float shifter = 0x1.8p23f;  // as above; its last bits then hold that integer
  const float shifted = fused(t, 1.44269504088896341f, shifter), n = shifted - shifter;
  const float rest = fused(n, 2.12194440e-4f, fused(n, -0.693359375f, t));  // t - n ln 2; the first product is exact
  const float y = exp2_series(rest * 1.44269504088896341f);
  const int32_t exponent = bit_cast<int32_t>(shifted) - bit_cast<int32_t>(shifter);
  const int32_t half = exponent >> 1;  // two factors: 2^exponent may be denormal
  return y * power_of_two(half) * power_of_two(exponent - half);
}

SOATFAST_HD double exp_of(double t) { return exp(t); }

// r^y for r in [0, 1] and y > 0.
SOATFAST_HD float unit_power(float r, float y) {
  const float power = exp2_of(y * log2_of(r));
  return r > 0.0f ? power : 0.0f;
}

SOATFAST_HD double unit_power(double r, double y) {
#ifdef __CUDA_ARCH__
  return exp2(y * log2(r));  // pow is a call that spills; weighted by r^y, this one's error is below one rounding of 1
#else
  return pow(r, y);
#endif
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
