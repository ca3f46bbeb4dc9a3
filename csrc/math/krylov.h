// A sample's small numbers in a Krylov solve: the Givens rotation of a new Hessenberg column and the back-substitution.
// One thread runs them; soatfast/ops/krylov.py says what the arrays are.
#pragma once

#include "real.h"

namespace soatfast {
inline namespace SOATFAST_ISA {

enum Status : int32_t {  // soatfast/ops/constants.py has the same numbers
  kActive = 0,
  kConverged = 1,
  kBreakdown = 2,
  kSingular = 3,
  kMaxDim = 4,
  kNonfinite = 5,
};

template <typename T>
SOATFAST_HD bool is_finite(T t) {
  return magnitude(t) < static_cast<T>(HUGE_VAL);  // false for NaN
}

// Nothing but rounding is left of a vector of this norm.
template <typename T>
SOATFAST_HD bool exhausted(T left, T norm) {
  return left <= T(10) * Real<T>::kEpsilon * norm;
}

// sqrt(a^2 + b^2), neither overflowing nor underflowing on the way.
template <typename T>
SOATFAST_HD T hypotenuse(T a, T b) {
  a = magnitude(a), b = magnitude(b);
  const T large = a > b ? a : b, small = a > b ? b : a;
  if (!(large > T(0))) return T(0);
  const T ratio = small / large;
  return large * sqrt(T(1) + ratio * ratio);
}

template <typename T>
struct KrylovRow {
  T* triangle;         // (m, m)
  T* rotations;        // (m, 2) cosine and sine
  T* rhs;              // (m + 1,)
  int32_t* iterations;
  int32_t* status;
};

// h (m + 1,) is column j of the Hessenberg matrix, norm that of the vector it came from. Returns the residual norm.
template <typename T>
SOATFAST_HD T givens_row(int64_t m, int64_t j, const KrylovRow<T> row, const T* h, T norm, T target, T rcond) {
  const auto residual = [&] { return magnitude(row.rhs[*row.iterations]); };
  if (*row.status != kActive) return residual();
  bool finite = is_finite(norm);
  for (int64_t i = 0; i < m + 1; ++i) finite = finite && is_finite(h[i]);
  if (!finite) {
    *row.status = kNonfinite;
    return residual();
  }
  T running = h[0], largest = T(0);
  for (int64_t i = 0; i < j; ++i) {
    const T c = row.rotations[2 * i], s = row.rotations[2 * i + 1], below = h[i + 1];
    const T pivot = magnitude(row.triangle[i * m + i]);
    largest = pivot > largest ? pivot : largest;
    row.triangle[i * m + j] = c * running + s * below;
    running = c * below - s * running;
  }
  const T left = h[j + 1], rho = hypotenuse(running, left);
  largest = rho > largest ? rho : largest;
  if (!(rho > rcond * largest)) {
    *row.status = kSingular;
    return residual();
  }
  const T c = running / rho, s = left / rho, old = row.rhs[j];
  row.triangle[j * m + j] = rho;
  row.rotations[2 * j] = c;
  row.rotations[2 * j + 1] = s;
  row.rhs[j] = c * old;
  row.rhs[j + 1] = -s * old;
  *row.iterations = static_cast<int32_t>(j + 1);
  const T now = residual();
  *row.status = now <= target ? kConverged : exhausted(left, norm) ? kBreakdown : kActive;
  return now;
}

// y (m,) with R y = rhs on the first k columns, 0 behind them.
template <typename T>
SOATFAST_HD void back_substitution_row(int64_t m, int64_t k, const T* triangle, const T* rhs, T* y) {
  for (int64_t i = k; i < m; ++i) y[i] = T(0);
  for (int64_t i = k - 1; i >= 0; --i) {
    T left = rhs[i];
    for (int64_t l = i + 1; l < k; ++l) left -= triangle[i * m + l] * y[l];
    y[i] = left / triangle[i * m + i];
  }
}

}  // namespace SOATFAST_ISA
}  // namespace soatfast
