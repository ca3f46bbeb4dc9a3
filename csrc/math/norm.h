// Scaled norms of one sample.
#pragma once

#include "storage.h"
#include "team.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// The orders that have loops of their own.
enum class Order { kOne, kTwo, kInf, kGeneral };

SOATFAST_HD Order order_of(double p) {
  return p == 1 ? Order::kOne : p == 2 ? Order::kTwo : p == HUGE_VAL ? Order::kInf : Order::kGeneral;
}

// ||g||_p = norm / scale with scale a power of two; max = max|g|.
template <typename T>
struct ScaledNorm {
  T max;
  T scale;
  T norm;
};

// size(i) = |g_i|, finite. One pass where max|g| is of ordinary size (p = 1, 2, inf), two otherwise.
template <Order P, typename T, typename Team, typename F>
SOATFAST_HD ScaledNorm<T> scaled_norm(const Team& team, int64_t n, F size, T p) {
  if constexpr (P == Order::kInf) {
    const T m = team.max(n, size);
    return {m, T(1), m};
  } else if constexpr (P == Order::kOne) {
    const MaxSum<T> all = team.max_sum(n, size, [](T a) SOATFAST_BODY { return a; });
    const T s = safe_scale(all.max);
    const double total =
        s == T(1) ? all.sum : team.sum(n, [=](int64_t i) SOATFAST_BODY { return size(i) * s; });
    return {all.max, s, static_cast<T>(total)};
  } else if constexpr (P == Order::kTwo) {
    const MaxSum<T> all = team.max_sum(n, size, [](T a) SOATFAST_BODY { return a * a; });
    const T s = safe_scale(all.max);
    const double total = s == T(1) ? all.sum : team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const T a = size(i) * s;
      return a * a;
    });
    return {all.max, s, static_cast<T>(sqrt(total))};
  } else {
    const T m = team.max(n, size);
    if (!(m > T(0))) return {m, T(1), m};
    const T s = safe_scale(m);
    double total;
    if (p == T(3)) {
      total = team.sum(n, [=](int64_t i) SOATFAST_BODY {
        const T r = size(i) / m;
        return r * r * r;
      });
    } else {
      total = team.sum(n, [=](int64_t i) SOATFAST_BODY { return unit_power(size(i) / m, p); });
    }
    return {m, s, static_cast<T>(static_cast<double>(m * s) * pow(total, 1.0 / static_cast<double>(p)))};
  }
}

// The norm of one row of storage g (D,).
template <Order P, typename S, typename Team>
SOATFAST_HD accumulate_t<S> lp_norm_row(const Team& team, int64_t n, const S* g, double p) {
  using T = accumulate_t<S>;
  const auto size = [=](int64_t i) SOATFAST_BODY { return bit_cast<T>(finite_magnitude(load(g[i]))); };
  const ScaledNorm<T> row = scaled_norm<P, T>(team, n, size, static_cast<T>(p));
  return row.norm / row.scale;
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
