// One step of power iteration on the Hessian of one sample.
#pragma once

#include "storage.h"
#include "team.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

template <typename S>
struct PowerRow {
  using T = accumulate_t<S>;
  const S* g0;  // (D,) gradient at x
  const S* g1;  // (D,) gradient at x + h u
  const S* u;   // (D,) unit vector
  const S* x;   // (D,)
  S* fresh;     // (D,) u' = H u / ||H u||, or u where H u = 0
  S* probe;     // (D,) x + h u'
  T* scratch;   // (D,) H u; may be fresh where that is as wide
};

template <typename T>
struct Curvature {
  T rayleigh;  // <u, H u>
  T norm;      // ||H u||_2
};

// Two passes over the row; a third only where squares of H u would under- or overflow.
template <typename S, typename Team>
SOATFAST_HD Curvature<accumulate_t<S>> power_step_row(
    const Team& team, int64_t n, const PowerRow<S> row, accumulate_t<S> h) {
  using T = accumulate_t<S>;
  const MaxSum<T> all = team.each_max_sum(
      n, [=](int64_t i) SOATFAST_BODY { return finite((load(row.g1[i]) - load(row.g0[i])) / h); },
      [=](int64_t i, T product) SOATFAST_BODY {
        row.scratch[i] = product;
        return product * product;
      });
  const T scale = safe_scale(all.max);
  const double squares = scale == T(1) ? all.sum : team.sum(n, [=](int64_t i) SOATFAST_BODY {
    const T product = row.scratch[i] * scale;
    return product * product;
  });
  const T norm = static_cast<T>(sqrt(squares));
  const bool moves = norm > T(0);
  const T factor = moves ? T(1) / norm : T(0);
  const double rayleigh = team.each_sum(n, [=](int64_t i) SOATFAST_BODY {
    const T product = row.scratch[i] * scale, old = load(row.u[i]);
    const T fresh = moves ? product * factor : old;
    row.fresh[i] = store<S>(fresh);
    row.probe[i] = store<S>(load(row.x[i]) + h * fresh);
    return old * product;
  });
  return {static_cast<T>(rayleigh / static_cast<double>(scale)), norm / scale};
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
