// One projected-gradient step for one sample.
#pragma once

#include "lmo.h"
#include "projection.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// The k-th largest of n non-negative bit patterns, found bit by bit: exact, without moving anything.
template <typename B, typename Team>
SOATFAST_HD B kth_largest(const Team& team, int64_t n, const B* bits, int64_t k) {
  B answer = 0;
  for (int bit = static_cast<int>(8 * sizeof(B)) - 2; bit >= 0; --bit) {
    const B candidate = answer | (B(1) << bit);
    if (team.count(n, [=](int64_t i) SOATFAST_BODY { return bits[i] >= candidate; }) >= k) answer = candidate;
  }
  return answer;
}

// x_new (D,) = project(x_adv + alpha step_p(g), x). scratch (2D,).
template <Order P, bool Exact, typename S, typename Team>
SOATFAST_HD void pgd_step_row(
    const Team& team, int64_t n, const S* x_adv, const S* g, const S* x, accumulate_t<S> eps, accumulate_t<S> alpha,
    int64_t k, Box<accumulate_t<S>> box, S* x_new, accumulate_t<S>* scratch) {
  using T = accumulate_t<S>;
  const auto gradient = [=](int64_t i) SOATFAST_BODY { return finite(load(g[i])); };
  const auto origin = [=](int64_t i) SOATFAST_BODY { return load(x[i]); };
  if constexpr (P == Order::kOne) {
    Bits<T>* const bits = reinterpret_cast<Bits<T>*>(scratch + n);
    team.each(n, [=](int64_t i) SOATFAST_BODY { bits[i] = finite_magnitude(load(g[i])); });
    const Bits<T> smallest = kth_largest(team, n, bits, k);
    const Bits<T> least = smallest > 0 ? smallest : 1;  // a zero entry never moves
    const int64_t chosen = team.count(n, [=](int64_t i) SOATFAST_BODY { return bits[i] >= least; });
    const T step = alpha * (T(1) / static_cast<T>(chosen > 0 ? chosen : 1));
    const auto delta = [=](int64_t i) SOATFAST_BODY {
      const T move = bits[i] >= least ? with_sign(step, load(g[i])) : T(0);
      return (load(x_adv[i]) + move) - load(x[i]);
    };
    project_row<P, Exact, S>(team, n, delta, origin, eps, box, x_new, scratch);
  } else {
    const Oracle<P, T> oracle = make_oracle<P, T>(team, n, gradient, 2.0, T(1), scratch);
    const auto delta = [=](int64_t i) SOATFAST_BODY {
      return (load(x_adv[i]) + alpha * oracle(i, gradient(i))) - load(x[i]);
    };
    project_row<P, Exact, S>(team, n, delta, origin, eps, box, x_new, scratch);
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
