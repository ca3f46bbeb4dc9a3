// The linear maximisation oracle of the L^p ball for one sample, as a rule for its entries.
#pragma once

#include "norm.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// After its sums are taken, entry i of argmax <g, s> over ||s||_p <= eps needs only g_i.
template <Order P, typename T>
struct Oracle {
  T max;                        // max|g|
  T eps;                        // radius
  T scale = T(1), factor = T(0);
  int64_t first = -1;           // p = 1: first index of max|g|
  const T* power = nullptr;     // general p: (D,) |g/max|^(q-1)

  SOATFAST_HD T operator()(int64_t i, T g) const {
    if constexpr (P == Order::kInf) {
      return times_sign(eps, g);
    } else if constexpr (P == Order::kOne) {
      return i == first ? times_sign(eps, g) : T(0);
    } else if constexpr (P == Order::kTwo) {
      return g * scale * factor;
    } else {
      return with_sign(power[i] * factor, g);
    }
  }
};

// g(i) is finite. scratch (D,) is used for general p only.
template <Order P, typename T, typename Team, typename G>
SOATFAST_HD Oracle<P, T> make_oracle(const Team& team, int64_t n, G g, double p, T eps, T* scratch) {
  const auto size = [=](int64_t i) SOATFAST_BODY { return magnitude(g(i)); };
  Oracle<P, T> oracle{T(0), eps};
  if constexpr (P == Order::kTwo) {
    const ScaledNorm<T> row = scaled_norm<Order::kTwo, T>(team, n, size, T(2));
    oracle.max = row.max;
    oracle.scale = row.scale;
    oracle.factor = row.norm > T(0) ? eps / row.norm : T(0);
  } else if constexpr (P == Order::kOne) {
    oracle.max = team.max(n, size);
    if (oracle.max > T(0)) {
      const T m = oracle.max;
      oracle.first = team.first(n, [=](int64_t i) SOATFAST_BODY { return size(i) == m; });
    }
  } else if constexpr (P == Order::kGeneral) {
    const T m = oracle.max = team.max(n, size);
    oracle.power = scratch;
    const T divisor = m > T(0) ? m : T(1);
    const T exponent = static_cast<T>(1.0 / (p - 1.0));
    const double total = team.each_sum(n, [=](int64_t i) SOATFAST_BODY {
      const T r = size(i) / divisor;
      const T power = unit_power(r, exponent);
      scratch[i] = power;
      return power * r;
    });
    oracle.factor = total > 0 ? static_cast<T>(static_cast<double>(eps) * pow(total, -1.0 / p)) : T(0);
  }
  return oracle;
}

// s (D,) = lmo of g (D,).
template <Order P, typename S, typename Team>
SOATFAST_HD void lmo_row(
    const Team& team, int64_t n, const S* g, double p, accumulate_t<S> eps, S* s, accumulate_t<S>* scratch) {
  using T = accumulate_t<S>;
  const auto value = [=](int64_t i) SOATFAST_BODY { return finite(load(g[i])); };
  const Oracle<P, T> oracle = make_oracle<P, T>(team, n, value, p, eps, scratch);
  if constexpr (P == Order::kOne) {
    team.each(n, [=](int64_t i) SOATFAST_BODY { s[i] = store<S>(T(0)); });
    if (oracle.first >= 0) s[oracle.first] = store<S>(oracle(oracle.first, value(oracle.first)));
  } else {
    team.each(n, [=](int64_t i) SOATFAST_BODY { s[i] = store<S>(oracle(i, value(i))); });
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
