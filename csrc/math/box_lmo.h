// The linear maximisation oracle of ball and box for one sample, p = 1 and 2. (For p = inf it is the ball's, clamped.)
#pragma once

#include "lmo.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// How far entry i may go along sgn(g); a NaN in x has no room. double: a sum of rooms decides how much is left.
template <typename T>
SOATFAST_HD double room_of(T g, T x, T lower, T upper) {
  const double room = g > T(0) ? static_cast<double>(upper) - static_cast<double>(x)
                               : static_cast<double>(x) - static_cast<double>(lower);
  return g != T(0) && room > 0 ? room : 0.0;
}

// |g| in units of about max|g|; below 1e-150 of it, where squares end, an entry counts as 0.
template <typename T>
SOATFAST_HD double relative(T g, double unit) {
  const double size = static_cast<double>(magnitude(g)) * unit;
  return size > 1e-150 ? size : 0.0;
}

// Rule for an entry, to be clamped to its room: for p = 1 all of eps where |g| is above the level.
template <Order P, typename T>
struct BoxOracle {
  T max;                // max|g|
  T eps;                // radius
  Bits<T> level = 0;    // p = 1: |g| at which eps runs out, as bits
  int64_t edge = -1;    // p = 1: the entry of that |g| which gets the rest; those before it are filled
  T rest = T(0);        // p = 1
  double unit = 1, factor = 0;  // p = 2: s_i = |g_i| unit factor

  SOATFAST_HD T operator()(int64_t i, T g) const {
    if constexpr (P == Order::kOne) {
      const Bits<T> size = finite_magnitude(g);
      const bool full = size > level || (size == level && i < edge);
      return times_sign(full ? eps : size == level && i == edge ? rest : T(0), g);
    } else {
      const double size = relative(g, unit);
      return with_sign(size > 0 ? static_cast<T>(size * factor) : T(0), g);  // infinite: clamped to the room
    }
  }
};

// p = 1. The level is found bit by bit, as non-negative floats order like their bits; among entries of that |g|, the
// edge by halving. g(i) is finite, room(i) >= 0, eps > 0.
template <typename T, typename Team, typename G, typename R>
SOATFAST_HD void fill(const Team& team, int64_t n, G g, R room, BoxOracle<Order::kOne, T>& oracle) {
  const auto size = [=](int64_t i) SOATFAST_BODY { return finite_magnitude(g(i)); };
  const double eps = static_cast<double>(oracle.eps);
  const Bits<T> largest = bit_cast<Bits<T>>(oracle.max);
  Bits<T> level = 0;
  for (int bit = static_cast<int>(8 * sizeof(T)) - 2; bit >= 0; --bit) {
    const Bits<T> candidate = level | (Bits<T>(1) << bit);
    if (candidate > largest) continue;
    const double above =
        team.sum(n, [=](int64_t i) SOATFAST_BODY { return size(i) >= candidate ? room(i) : 0.0; });
    if (above >= eps) level = candidate;
  }
  oracle.level = level;
  if (level == 0) return;  // not even all room is eps
  const double rest =
      eps - team.sum(n, [=](int64_t i) SOATFAST_BODY { return size(i) > level ? room(i) : 0.0; });
  int64_t full = 0, end = n;  // entries of this |g| below index `full` fit in the rest
  double spent = 0;
  if (team.count(n, [=](int64_t i) SOATFAST_BODY { return size(i) == level; }) > 1) {
    while (full < end) {
      const int64_t middle = full + (end - full + 1) / 2;
      const double taken = team.sum(
          n, [=](int64_t i) SOATFAST_BODY { return (size(i) == level) & (i < middle) ? room(i) : 0.0; });
      if (taken <= rest) {
        full = middle;
        spent = taken;
      } else {
        end = middle - 1;
      }
    }
  }
  oracle.edge = full == n ? n : team.first(n, [=](int64_t i) SOATFAST_BODY { return (size(i) == level) & (i >= full); });
  oracle.rest = static_cast<T>(rest - spent);
}

// p = 2: the factor t with sum_i min(t |g_i|, room_i)^2 = eps^2, by Newton's steps from below: entries that have reached
// their room keep it, so no step passes the root. After 16 of them every second one is a bisection by ratio.
template <typename T, typename Team, typename G, typename R>
SOATFAST_HD void stretch(const Team& team, int64_t n, G g, R room, BoxOracle<Order::kTwo, T>& oracle) {
  const double unit = near_one_scale(static_cast<double>(oracle.max)), inverse = 1 / static_cast<double>(oracle.eps);
  const auto size = [=](int64_t i) SOATFAST_BODY { return relative(g(i), unit); };
  const auto share = [=](int64_t i) SOATFAST_BODY { return size(i) > 0 ? room(i) * inverse : 0.0; };  // in units of eps
  oracle.unit = unit;
  const double all = team.sum(n, [=](int64_t i) SOATFAST_BODY { return share(i) * share(i); });
  if (all <= 1) {
    oracle.factor = HUGE_VAL;
    return;
  }
  const double total = team.sum(n, [=](int64_t i) SOATFAST_BODY { return size(i) * size(i); });
  double t = 1 / sqrt(total), low = t, high = HUGE_VAL;
  for (int k = 0; k < 200; ++k) {
    const double free =
        team.sum(n, [=](int64_t i) SOATFAST_BODY { return t * size(i) < share(i) ? size(i) * size(i) : 0.0; });
    const double capped =
        team.sum(n, [=](int64_t i) SOATFAST_BODY { return t * size(i) < share(i) ? 0.0 : share(i) * share(i); });
    const double next = free > 0 && capped < 1 ? sqrt((1 - capped) / free) : 0;
    if (t * t * free + capped > 1) {
      high = t;
    } else if (next > t) {
      low = next;
    }
    if (!(next > t * (1 + 4 * Real<double>::kEpsilon)) && !(high <= t)) break;  // on the root's piece
    if (high <= low * (1 + 4 * Real<double>::kEpsilon)) break;
    const bool halve = high <= t || (k > 16 && k % 2 == 1);
    t = !halve ? low : high < HUGE_VAL ? low * sqrt(high / low) : low * 16;
  }
  oracle.factor = low * static_cast<double>(oracle.eps);
}

// g(i) is finite, x(i) loads the sample. scratch (D,).
template <Order P, typename T, typename Team, typename G, typename X>
SOATFAST_HD BoxOracle<P, T> make_box_oracle(
    const Team& team, int64_t n, G g, X x, T eps, T lower, T upper, T* scratch) {
  team.each(n, [=](int64_t i) SOATFAST_BODY { scratch[i] = g(i); });
  const auto value = [=](int64_t i) SOATFAST_BODY { return scratch[i]; };
  const auto room = [=](int64_t i) SOATFAST_BODY { return room_of(scratch[i], x(i), lower, upper); };
  BoxOracle<P, T> oracle{team.max(n, [=](int64_t i) SOATFAST_BODY { return magnitude(scratch[i]); }), eps};
  if (!(oracle.max > T(0)) || !(eps > T(0))) {
    oracle.level = Real<T>::kInfinity;  // nothing moves
  } else if constexpr (P == Order::kOne) {
    fill(team, n, value, room, oracle);
  } else {
    stretch(team, n, value, room, oracle);
  }
  return oracle;
}

// The oracle of the ball, or of ball and box.
template <Order P, bool Boxed, typename T, typename Team, typename G, typename X>
SOATFAST_HD auto oracle_of(
    const Team& team, int64_t n, G g, X x, double p, T eps, T lower, T upper, T* scratch) {
  if constexpr (Boxed) {
    return make_box_oracle<P, T>(team, n, g, x, eps, lower, upper, scratch);
  } else {
    return make_oracle<P, T>(team, n, g, p, eps, scratch);
  }
}

// s (D,) = lmo of g (D,) over ball and box, at x (D,).
template <Order P, bool Boxed, typename S, typename Team>
SOATFAST_HD void box_lmo_row(
    const Team& team, int64_t n, const S* g, const S* x, double p, accumulate_t<S> eps, accumulate_t<S> lower,
    accumulate_t<S> upper, S* s, accumulate_t<S>* scratch) {
  using T = accumulate_t<S>;
  const auto value = [=](int64_t i) SOATFAST_BODY { return finite(load(g[i])); };
  const auto origin = [=](int64_t i) SOATFAST_BODY { return load(x[i]); };
  const auto oracle = oracle_of<P, Boxed, T>(team, n, value, origin, p, eps, lower, upper, scratch);
  team.each(n, [=](int64_t i) SOATFAST_BODY {
    s[i] = store<S>(clamp(oracle(i, value(i)), lower - origin(i), upper - origin(i)));
  });
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
