// Projection of one sample on the L^p ball around x and on the box; p = 1, 2, inf.
#pragma once

#include "norm.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

// Root of a monotone equation in [lo, hi], from t. propose(t) is a Newton step, exact on the linear or quadratic piece
// that t lies in: above t where the root is above, t itself on the root's piece. A step out of the bracket is replaced
// by bisection, and after 16 steps every second one is, so that no piecewise shape is slow.
template <typename T, typename F>
SOATFAST_HD T bracketed_newton(T t, T lo, T hi, F propose) {
  for (int k = 0; k < 200; ++k) {
    T next = propose(t);
    if (next == t) break;
    if (next > t) {
      lo = t;
    } else {
      hi = t;
    }
    const bool outside = !(next >= lo && next <= hi);
    if (outside || (k > 16 && k % 2 == 1)) next = lo + (hi - lo) / T(2);
    if (next == t || hi - lo <= 2 * Real<T>::kEpsilon * hi) return hi;
    t = next;
  }
  return t;
}

template <typename T>
struct Box {
  T lower, upper;
  // How far an entry at x may go in the direction of delta.
  SOATFAST_HD T room(T delta, T x) const { return delta > T(0) ? upper - x : x - lower; }
};

// t in [0, 1] with sum_i min(t |delta_i|, room_i)^2 = eps^2, or 1 where the sum is below eps^2 at t = 1. Without
// Exact, room is infinite. From below, Newton's steps rise to t: entries that have reached their room keep it.
template <bool Exact, typename T, typename Team, typename X>
SOATFAST_HD T shrinkage(const Team& team, int64_t n, const T* delta, X x, T eps, Box<T> box) {
  const auto size = [=](int64_t i) SOATFAST_BODY { return magnitude(delta[i]); };
  const ScaledNorm<T> row = scaled_norm<Order::kTwo, T>(team, n, size, T(2));
  const T scale = row.scale, radius = eps * scale;
  if (!(row.norm > radius)) return T(1);
  const T start = radius / row.norm;
  if constexpr (!Exact) return start;
  const double target = static_cast<double>(radius) * static_cast<double>(radius);
  return bracketed_newton(start, start, T(1), [=](T t) {
    const auto is_free = [=](int64_t i) SOATFAST_BODY { return t * size(i) < box.room(delta[i], x(i)); };
    const double free = team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const T a = size(i) * scale;
      return is_free(i) ? a * a : T(0);
    });
    const double capped = team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const T a = box.room(delta[i], x(i)) * scale;
      return is_free(i) ? T(0) : a * a;
    });
    if (!(free > 0)) return capped > target ? T(0) : T(1);
    const double square = (target - capped) / free;
    return square >= 1 ? T(1) : static_cast<T>(sqrt(square > 0 ? square : 0.0));
  });
}

// tau >= 0 with sum_i min(max(|delta_i| - tau, 0), room_i) = eps, or 0 where that sum is below eps at tau = 0.
template <bool Exact, typename T, typename Team, typename X>
SOATFAST_HD T threshold(const Team& team, int64_t n, const T* delta, X x, T eps, Box<T> box) {
  const auto size = [=](int64_t i) SOATFAST_BODY { return magnitude(delta[i]); };
  const T largest = team.max(n, size);
  return bracketed_newton(T(0), T(0), largest, [=](T tau) {
    // Moving entries go down with tau; those at their room do not.
    const auto moves = [=](int64_t i) SOATFAST_BODY {
      const T rest = size(i) - tau;
      bool moving = rest > T(0);
      if constexpr (Exact) moving = moving & (rest < box.room(delta[i], x(i)));
      return moving;
    };
    const double moving = team.sum(n, [=](int64_t i) SOATFAST_BODY { return moves(i) ? size(i) : T(0); });
    const double count = team.sum(n, [=](int64_t i) SOATFAST_BODY { return moves(i) ? T(1) : T(0); });
    double capped = 0;
    if constexpr (Exact) {
      capped = team.sum(n, [=](int64_t i) SOATFAST_BODY {
        const T room = box.room(delta[i], x(i));
        return size(i) - tau >= room ? room : T(0);
      });
    }
    const double excess = moving + capped - static_cast<double>(eps);
    if (!(count > 0)) return excess > 0 ? largest : T(0);
    return excess > 0 ? static_cast<T>(excess / count) : T(0);
  });
}

// tau of a far move as base + middle + rest. tau itself is as large as the move, and its rounding would be larger than
// eps; the differences |delta_i| - base of the entries that move are exact. Each round finds what is missing from those
// and adds it to the base, until the base holds all of tau that a double can; one more finds what the middle lacks.
struct Split {
  double base, middle, rest;

  template <typename T>
  SOATFAST_HD double left(T delta) const {
    return static_cast<double>(magnitude(delta)) - base - middle - rest;
  }
};

// The rest, within +-reach, for which sum_i min(max(|delta_i| - base - middle - rest, 0), room_i) = eps.
template <bool Exact, typename T, typename Team, typename X>
SOATFAST_HD double split_rest(
    const Team& team, int64_t n, const T* delta, X x, T eps, Box<T> box, Split split, double reach) {
  const double target = static_cast<double>(eps);
  double low = -reach, high = reach;
  for (int k = 0; k < 200; ++k) {
    const auto room = [=](int64_t i) SOATFAST_BODY {
      return Exact ? static_cast<double>(box.room(delta[i], x(i))) : HUGE_VAL;
    };
    const double moving = team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const double left = split.left(delta[i]), most = room(i);
      return left > 0 ? (left < most ? left : most) : 0.0;
    });
    const double count = team.sum(n, [=](int64_t i) SOATFAST_BODY {
      const double left = split.left(delta[i]);
      return (left > 0) & (left < room(i)) ? 1.0 : 0.0;
    });
    if (moving > target) {
      low = split.rest;
    } else {
      high = split.rest;
    }
    double next = count > 0 ? split.rest + (moving - target) / count : HUGE_VAL;
    const bool outside = !(next >= low && next <= high);
    if (outside || (k > 16 && k % 2 == 1)) next = low + (high - low) / 2;
    const double step = next > split.rest ? next - split.rest : split.rest - next;
    split.rest = next;
    if (step <= target * Real<T>::kEpsilon / 8) break;
  }
  return split.rest;
}

template <bool Exact, typename T, typename Team, typename X>
SOATFAST_HD Split split_threshold(const Team& team, int64_t n, const T* delta, X x, T eps, Box<T> box, T tau) {
  const double reach = 1e-3 * static_cast<double>(tau) + static_cast<double>(eps);
  Split split{static_cast<double>(tau), 0, 0};
  for (int round = 0; round < 8; ++round) {
    const double rest = split_rest<Exact>(team, n, delta, x, eps, box, split, reach), sum = split.base + rest;
    if (sum == split.base) {
      split.middle = rest;
      break;
    }
    split.base = sum;
  }
  split.rest = split_rest<Exact>(team, n, delta, x, eps, box, split, reach);
  return split;
}

// out (D,) = x + the projection of delta(i), clamped to the box; x(i) loads the centre, delta_row (D,) is scratch.
template <Order P, bool Exact, typename S, typename Team, typename D, typename X>
SOATFAST_HD void project_row(
    const Team& team, int64_t n, D delta, X x, accumulate_t<S> eps, Box<accumulate_t<S>> box, S* out,
    accumulate_t<S>* delta_row) {
  using T = accumulate_t<S>;
  if constexpr (P == Order::kInf) {
    team.each(n, [=](int64_t i) SOATFAST_BODY {
      const T origin = x(i);
      out[i] = store<S>(clamp(origin + clamp(delta(i), -eps, eps), box.lower, box.upper));
    });
  } else if constexpr (P == Order::kTwo) {
    team.each(n, [=](int64_t i) SOATFAST_BODY { delta_row[i] = delta(i); });
    const T t = shrinkage<Exact>(team, n, delta_row, x, eps, box);
    team.each(n, [=](int64_t i) SOATFAST_BODY {
      out[i] = store<S>(clamp(x(i) + delta_row[i] * t, box.lower, box.upper));
    });
  } else {
    team.each(n, [=](int64_t i) SOATFAST_BODY { delta_row[i] = delta(i); });
    const T tau = threshold<Exact>(team, n, delta_row, x, eps, box);
    if (tau > eps && eps > T(0)) {
      const Split split = split_threshold<Exact>(team, n, delta_row, x, eps, box, tau);
      team.each(n, [=](int64_t i) SOATFAST_BODY {
        const T d = delta_row[i];
        const double left = split.left(d);
        const T moved = left > 0 ? with_sign(static_cast<T>(left), d) : T(0) * d;  // NaN stays NaN
        out[i] = store<S>(clamp(x(i) + moved, box.lower, box.upper));
      });
      return;
    }
    team.each(n, [=](int64_t i) SOATFAST_BODY {
      const T d = delta_row[i], rest = magnitude(d) - tau;
      const T moved = rest > T(0) ? with_sign(rest, d) : T(0) * d;  // NaN stays NaN
      out[i] = store<S>(clamp(x(i) + moved, box.lower, box.upper));
    });
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
