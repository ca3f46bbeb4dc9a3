// Start and step of the quadratic Frank-Wolfe attack for one sample.
#pragma once

#include "box_lmo.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

enum class Init { kScaled = 0, kLmo = 1, kRaw = 2 };

// v (D,) = the start made from g0 (D,), with x + v in the box (infinite: anywhere); probe (D,) = x + h v, and
// minus (D,) = x - h v if Central. Boxed: kLmo is the maximiser over ball and box.
template <Order P, bool Boxed, bool Central, typename S, typename Team>
SOATFAST_HD void frank_wolfe_init_row(
    const Team& team, int64_t n, const S* g0, const S* x, double p, accumulate_t<S> eps, Init init, accumulate_t<S> h,
    accumulate_t<S> lower, accumulate_t<S> upper, S* v, S* probe, S* minus, accumulate_t<S>* scratch) {
  using T = accumulate_t<S>;
  const auto value = [=](int64_t i) SOATFAST_BODY { return finite(load(g0[i])); };
  const auto write = [=](int64_t i, T free) SOATFAST_BODY {
    const T origin = load(x[i]), start = clamp(free, lower - origin, upper - origin), step = h * start;
    v[i] = store<S>(start);
    probe[i] = store<S>(origin + step);
    if constexpr (Central) minus[i] = store<S>(origin - step);
  };
  if (init == Init::kRaw) {
    team.each(n, [=](int64_t i) SOATFAST_BODY { write(i, value(i)); });
  } else if (init == Init::kLmo) {
    const auto origin = [=](int64_t i) SOATFAST_BODY { return load(x[i]); };
    const auto oracle = oracle_of<P, Boxed, T>(team, n, value, origin, p, eps, lower, upper, scratch);
    team.each(n, [=](int64_t i) SOATFAST_BODY { write(i, oracle(i, value(i))); });
  } else {
    const auto size = [=](int64_t i) SOATFAST_BODY { return magnitude(value(i)); };
    const ScaledNorm<T> row = scaled_norm<P, T>(team, n, size, static_cast<T>(p));
    const T scale = P == Order::kInf ? safe_scale(row.max) : row.scale;
    const T norm = P == Order::kInf ? row.max * scale : row.norm;
    const T factor = norm > T(0) ? eps / norm : T(0);
    team.each(n, [=](int64_t i) SOATFAST_BODY { write(i, value(i) * scale * factor); });
  }
}

template <typename S>
struct FrankWolfeRow {
  using T = accumulate_t<S>;
  const S* g0;     // (D,) gradient at x
  const S* g1;     // (D,) gradient at x + h v
  const S* g2;     // (D,) gradient at x - h v, central differences only
  const S* v;      // (D,)
  const S* x;      // (D,)
  S* v_new;        // (D,)
  S* probe;        // (D,) clamp(x + reach v')
  S* minus;        // (D,) x - reach v', central differences only
  T* scratch;      // (D,)
};

template <typename T>
struct FrankWolfeStep {
  double p;
  T gamma, h, twice_h;
  T reach, lower, upper;       // of the probe: h and no bounds, or, on the last step, 1 and the box
  T box_lower, box_upper;      // of x + s, infinite where s only has to lie in the ball
};

// Returns the gap <G, s - v>. The operations on an entry are the reference's, in its order (compiled without
// contraction), so that a sign or an arg max falls as it does there. Boxed: p is 1 or 2, and s of ball and box.
template <Order P, bool Boxed, bool Central, typename S, typename Team>
SOATFAST_HD accumulate_t<S> frank_wolfe_step_row(
    const Team& team, int64_t n, const FrankWolfeRow<S> row, const FrankWolfeStep<accumulate_t<S>> step,
    accumulate_t<S> eps) {
  using T = accumulate_t<S>;
  const auto gradient = [=](int64_t i) SOATFAST_BODY {
    const T base = load(row.g0[i]), ahead = load(row.g1[i]);
    if constexpr (Central) {
      return finite(base + (ahead - load(row.g2[i])) / step.twice_h);
    } else {
      return finite(base + (ahead - base) / step.h);
    }
  };
  const auto origin_of = [=](int64_t i) SOATFAST_BODY { return load(row.x[i]); };
  const auto oracle = oracle_of<P, Boxed, T>(
      team, n, gradient, origin_of, step.p, eps, step.box_lower, step.box_upper, row.scratch);
  const auto advance = [=](int64_t i, T g) SOATFAST_BODY {
    const T old = load(row.v[i]), origin = load(row.x[i]);
    const T direction = clamp(oracle(i, g), step.box_lower - origin, step.box_upper - origin) - old;
    const T fresh = old + step.gamma * direction;
    row.v_new[i] = store<S>(fresh);
    row.probe[i] = store<S>(clamp(origin + step.reach * fresh, step.lower, step.upper));
    if constexpr (Central) row.minus[i] = store<S>(origin - step.reach * fresh);
    return direction;
  };
  const auto gap_at = [=](T scale) SOATFAST_BODY {
    return team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const T g = gradient(i), origin = load(row.x[i]);
      return g * scale * (clamp(oracle(i, g), step.box_lower - origin, step.box_upper - origin) - load(row.v[i]));
    });
  };
  if constexpr (P == Order::kInf) {  // one pass; the scale is known only after it
    const MaxSum<T> all = team.each_max_sum(
        n, gradient, [=](int64_t i, T g) SOATFAST_BODY { return g * advance(i, g); });
    const T scale = safe_scale(all.max);
    return static_cast<T>(scale == T(1) ? all.sum : gap_at(scale) / static_cast<double>(scale));
  } else {
    const T scale = safe_scale(oracle.max);
    const double gap = team.each_sum(n, [=](int64_t i) SOATFAST_BODY {
      const T g = gradient(i);
      return g * scale * advance(i, g);
    });
    return static_cast<T>(gap / static_cast<double>(scale));
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
