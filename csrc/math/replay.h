// Start and step of Frank-Wolfe with memory for one sample. A memory keeps u = v / eps, |u| <= 1, as float, BFloat16 or
// int8_t; soatfast/ops/quantise.py says how it rounds.
#pragma once

#include <type_traits>

#include "box_lmo.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// u from the memory; scale is of int8 only.
template <typename T, typename M>
SOATFAST_HD T remembered(M kept, T scale) {
  if constexpr (std::is_same_v<M, int8_t>) {
    return static_cast<T>(kept) * static_cast<T>(1.0 / 127.0) * scale;
  } else {
    return static_cast<T>(load(kept));
  }
}

// u into [-limit, limit]; NaN stays NaN.
template <typename T>
SOATFAST_HD T within(T limit, T u) {
  const T size = magnitude(u);
  return with_sign(size > limit ? limit : size, u);
}

// u, |u| <= 1, for the memory. For p = inf to nearest, int8 with halves away from 0; else towards 0, int8 in steps of top / 127.
template <Order P, typename M, typename T>
SOATFAST_HD M kept(T u, T top) {
  if constexpr (std::is_same_v<M, int8_t>) {
    // Only for a top that was rounded, of a denormal row, is a quotient above 127.
    T steps = P == Order::kInf ? u * T(127) + with_sign(T(0.5), u) : within(T(127), u * T(127) / top);
    steps = steps == steps ? steps : T(0);  // of a NaN in x
    return static_cast<int8_t>(static_cast<int32_t>(steps));
  } else if constexpr (std::is_same_v<M, BFloat16> && P != Order::kInf) {
    return {static_cast<uint16_t>(bit_cast<uint32_t>(static_cast<float>(u)) >> 16)};
  } else {
    return store<M>(static_cast<float>(u));
  }
}

// x_adv (D,) = clamp(x + eps u).
template <typename S, typename M, typename Team>
SOATFAST_HD void replay_start_row(
    const Team& team, int64_t n, const M* memory, S scale, const S* x, S eps, S lower, S upper, S* x_adv) {
  team.each(n, [=](int64_t i) SOATFAST_BODY {
    x_adv[i] = clamp(x[i] + eps * remembered<S>(memory[i], scale), lower, upper);
  });
}

template <typename S, typename M>
struct ReplayRow {
  M* memory;      // (D,) updated
  float* scale;   // one number, updated; null unless M is int8
  const S* g;     // (D,) gradient at the point of replay_start_row
  const S* x;     // (D,)
  S* x_adv;       // (D,) clamp(x + v')
  S* scratch;     // (D,)
};

template <typename S>
struct ReplayStep {
  double p;
  S gamma, lower, upper;
  S box_lower, box_upper;  // of x + s, infinite where s only has to lie in the ball
};

// One pass for p = inf; Boxed: p is 1 or 2, and s of ball and box. The operations on an entry are the reference's, in its order.
template <Order P, bool Boxed, typename S, typename M, typename Team>
SOATFAST_HD void replay_step_row(
    const Team& team, int64_t n, const ReplayRow<S, M> row, const ReplayStep<S> step, S eps) {
  constexpr bool kByTop = std::is_same_v<M, int8_t> && P != Order::kInf;
  const S old_scale = row.scale == nullptr ? S(1) : static_cast<S>(*row.scale);
  // A radius so small that 1 / eps overflows counts as none: 0 times infinity would stay in the memory as NaN.
  const S inverse = eps > S(0) && S(1) / eps < static_cast<S>(HUGE_VAL) ? S(1) / eps : S(0);
  const auto gradient = [=](int64_t i) SOATFAST_BODY {
    return P == Order::kInf ? row.g[i] : finite(row.g[i]);  // a sign needs no finite number: NaN has none
  };
  const auto origin_of = [=](int64_t i) SOATFAST_BODY { return row.x[i]; };
  const auto oracle = oracle_of<P, Boxed, S>(
      team, n, gradient, origin_of, step.p, eps, step.box_lower, step.box_upper, row.scratch);
  const auto advance = [=](int64_t i) SOATFAST_BODY {  // writes x_adv, gives u'
    const S origin = row.x[i], down = step.lower - origin, up = step.upper - origin;
    const S v = clamp(eps * remembered<S>(row.memory[i], old_scale), down, up);
    const S s = clamp(oracle(i, gradient(i)), step.box_lower - origin, step.box_upper - origin);
    const S fresh = clamp(v + step.gamma * (s - v), down, up);
    row.x_adv[i] = clamp(origin + fresh, step.lower, step.upper);
    return within(S(1), fresh * inverse);
  };
  if constexpr (kByTop) {
    // u' takes the place of the oracle's number of the same entry, which is not read again.
    const float top = static_cast<float>(team.max(n, [=](int64_t i) SOATFAST_BODY {
      const S u = advance(i);
      row.scratch[i] = u;
      return magnitude(u);
    }));
    const S divisor = top > 0.0f ? static_cast<S>(top) : S(1);
    team.each(n, [=](int64_t i) SOATFAST_BODY { row.memory[i] = kept<P, M>(row.scratch[i], divisor); });
    *row.scale = top;
  } else {
    team.each(n, [=](int64_t i) SOATFAST_BODY { row.memory[i] = kept<P, M>(advance(i), S(1)); });
    if (row.scale != nullptr) *row.scale = 1.0f;
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
