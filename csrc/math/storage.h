// How elements lie in memory, and the accumulation type that arithmetic is done in. Conversions are plain integer and
// float operations without branches, so the compiler vectorises them on every instruction set.
#pragma once

#include "real.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

struct BFloat16 {
  uint16_t bits;
};

struct Half {
  uint16_t bits;
};

template <typename S>
struct Accumulate {
  using type = float;
};
template <>
struct Accumulate<double> {
  using type = double;
};
template <typename S>
using accumulate_t = typename Accumulate<S>::type;

SOATFAST_HD float load(float v) { return v; }
SOATFAST_HD double load(double v) { return v; }

SOATFAST_HD float load(BFloat16 v) { return bit_cast<float>(static_cast<int32_t>(v.bits) << 16); }

SOATFAST_HD float load(Half v) {
  const int32_t sign = static_cast<int32_t>(v.bits & 0x8000) << 16;
  const int32_t shifted = static_cast<int32_t>(v.bits & 0x7fff) << 13;
  const int32_t rebias = (127 - 15) << 23;
  const int32_t normal = shifted + rebias;
  const int32_t infinite = normal + ((128 - 16) << 23);  // exponent 31 becomes 255
  const float denormal = bit_cast<float>(normal + (1 << 23)) - 0x1p-14f;
  int32_t bits = shifted >= (0x7c00 << 13) ? infinite : normal;
  bits = shifted < (0x0400 << 13) ? bit_cast<int32_t>(denormal) : bits;
  return bit_cast<float>(bits | sign);
}

template <typename S>
SOATFAST_HD S store(accumulate_t<S> v);

template <>
SOATFAST_HD float store<float>(float v) {
  return v;
}

template <>
SOATFAST_HD double store<double>(double v) {
  return v;
}

// Round to nearest, ties to even.
template <>
SOATFAST_HD BFloat16 store<BFloat16>(float v) {
  const uint32_t bits = bit_cast<uint32_t>(v);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded)};
}

template <>
SOATFAST_HD Half store<Half>(float v) {
  const int32_t all = bit_cast<int32_t>(v);
  const int32_t sign = (all >> 16) & 0x8000;
  const int32_t bits = all & 0x7fffffff;
  const int32_t normal = (bits + ((15 - 127) * (1 << 23)) + 0xfff + ((bits >> 13) & 1)) >> 13;
  const float magic = bit_cast<float>(((127 - 15) + (23 - 10) + 1) << 23);  // aligns the mantissa of a denormal
  const int32_t denormal = bit_cast<int32_t>(bit_cast<float>(bits) + magic) - bit_cast<int32_t>(magic);
  const int32_t special = bits > 0x7f800000 ? 0x7e00 : 0x7c00;
  int32_t half = bits < (113 << 23) ? denormal : normal;
  half = bits >= ((127 + 16) << 23) ? special : half;
  return {static_cast<uint16_t>(half | sign)};
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
